"""Decoding, cropping, flipping, tinting, word dropout."""

import io

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image, ImageOps

from comp_jax import errors
from comp_jax.data import images, records


def png(pixels, mode="RGB"):
  out = io.BytesIO()
  Image.fromarray(np.asarray(pixels, np.uint8), mode=None).convert(mode).save(
    out, "png"
  )
  return out.getvalue()


GRADIENT = np.broadcast_to(
  np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (64, 64, 3)
)
NOTHING = images.AugmentSpec(
  crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0
)


def test_resize_is_bicubic_of_the_whole():
  expected = Image.fromarray(np.ascontiguousarray(GRADIENT)).resize(
    (16, 16), Image.Resampling.BICUBIC
  )
  out = images.resize(png(GRADIENT), 16)
  np.testing.assert_array_equal(out, np.asarray(expected))


def test_resize_does_not_crop_wide_pictures():
  wide = np.concatenate([np.zeros((8, 8, 3)), np.full((8, 24, 3), 255)], 1)
  out = images.resize(png(wide), 16)
  assert out.shape == (16, 16, 3)
  assert out[8, 1].max() < 10 and out[8, 8].min() > 245


def test_transparency_turns_white():
  pixels = np.zeros((4, 4, 4), np.uint8)
  pixels[:, 2:, 3] = 255
  out = images.resize(png(pixels, "RGBA"), 4)
  assert (out[:, 0] == 255).all() and (out[:, 3] == 0).all()


def test_grey_becomes_rgb():
  assert images.resize(png(GRADIENT, "L"), 8).shape == (8, 8, 3)


def _encoded(image, kind):
  out = io.BytesIO()
  image.save(out, kind)
  return out.getvalue()


@pytest.mark.parametrize(
  ("mode", "kind"),
  [("P", "png"), ("CMYK", "tiff"), ("YCbCr", "tiff"), ("LA", "png")],
)
def test_every_mode_shows_the_same_picture(mode, kind):
  picture = Image.fromarray(np.ascontiguousarray(GRADIENT))
  out = images.resize(_encoded(picture.convert(mode), kind), 8)
  expected = images.resize(png(GRADIENT), 8)
  # Palettes and other colour spaces round.
  assert np.max(np.abs(out.astype(int) - expected)) <= 8


def test_of_16_bits_the_upper_8_stay():
  """Pillow by itself would turn all above 255 white."""
  deep = Image.fromarray(GRADIENT[..., 0].astype(np.uint16) * 257)
  out = images.resize(_encoded(deep, "png"), 8)
  np.testing.assert_array_equal(out, images.resize(png(GRADIENT), 8))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_deeper_pictures_are_refused_when_data_are_built(dtype):
  deep = _encoded(Image.fromarray(GRADIENT[..., 0].astype(dtype)), "tiff")
  with pytest.raises(errors.UserError, match=r"deep.tiff is not .*32 bits"):
    records.checked_image(deep, "deep.tiff")


def test_no_augmentation_is_resize():
  out = images.augment(png(GRADIENT), 16, NOTHING, np.random.default_rng(0))
  np.testing.assert_array_equal(out, images.resize(png(GRADIENT), 16))


def test_flip():
  spec = images.AugmentSpec(
    crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=1.0
  )
  out = images.augment(png(GRADIENT), 16, spec, np.random.default_rng(0))
  expected = images.resize(png(GRADIENT), 16)[:, ::-1]
  np.testing.assert_array_equal(out, expected)


def test_crop_keeps_the_asked_area():
  # On a horizontal ramp the range of values is the width of the crop.
  spec = images.AugmentSpec(
    crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0), flip=0.0
  )
  lefts = set()
  for seed in range(8):
    out = images.augment(png(GRADIENT), 32, spec, np.random.default_rng(seed))
    row = out[16, :, 0].astype(int)
    assert 110 < row[-1] - row[0] < 135  # Half of 252.
    lefts.add(row[0])
  assert len(lefts) > 4


def test_jitter_changes_colours_only_when_asked():
  spec = images.AugmentSpec(
    crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, jitter=0.5
  )
  plain = images.resize(png(GRADIENT), 16)
  out = images.augment(png(GRADIENT), 16, spec, np.random.default_rng(0))
  assert (out != plain).any()


@pytest.mark.parametrize(
  "field, value",
  [
    ("crop_scale", (0.0, 1.0)),
    ("crop_scale", (0.5, 1.5)),
    ("crop_ratio", (2.0, 1.0)),
    ("flip", 1.5),
    ("word_dropout", -0.1),
  ],
)
def test_bad_spec(field, value):
  with pytest.raises(errors.UserError, match=f"augment.{field}"):
    images.AugmentSpec(**{field: value})


def test_drop_words():
  rng = np.random.default_rng(0)
  text = " ".join(str(i) for i in range(1000))
  assert images.drop_words(text, 0.0, rng) == text
  kept = images.drop_words(text, 0.3, rng).split()
  assert 630 < len(kept) < 770
  assert kept == sorted(kept, key=int)
  assert images.drop_words("one two", 1.0, rng) in ("one", "two")
  assert images.drop_words("", 0.5, rng) == ""


def _shifted(pixels, matrix, offset):
  """Each pixel from matrix @ (y, x) + offset, grey where that is outside."""
  channels = [
    scipy.ndimage.affine_transform(
      pixels[..., c].astype(float), matrix, offset, order=1, cval=-1e4
    )
    for c in range(3)
  ]
  return np.stack(channels, axis=-1)


def test_blips_operations_are_each_drawn_as_often_as_published():
  """Spec `upop.md` 3.1: 3 of 10 change nothing, each runs half of the time."""
  rng = np.random.default_rng(0)
  # Smooth, so that bilinear interpolations agree; not the whole range.
  noise = scipy.ndimage.gaussian_filter(rng.normal(size=(40, 40, 3)), (4, 4, 0))
  pixels = np.interp(noise, (noise.min(), noise.max()), (40, 200))
  pixels = pixels.round().astype(np.uint8)
  picture = Image.fromarray(pixels)
  low, high = pixels.min(axis=(0, 1)), pixels.max(axis=(0, 1))
  expected = {
    "identity": pixels,
    "autocontrast": (pixels - low) * (255.0 / (high - low)),
    "equalize": np.asarray(ImageOps.equalize(picture)),
  }
  turn, middle = np.deg2rad(15), np.full(2, 19.5)
  for sign in (1, -1):
    cos, sin = np.cos(turn), sign * np.sin(turn)
    rotation = np.array([[cos, -sin], [sin, cos]])
    maps = {
      "shear x": ([[1, 0], [sign * 0.15, 1]], (0, 0)),
      "shear y": ([[1, sign * 0.15], [0, 1]], (0, 0)),
      "move x": (np.eye(2), (0, 5 * sign)),
      "move y": (np.eye(2), (5 * sign, 0)),
      "rotate": (rotation, middle - rotation @ middle),
    }
    for name, (matrix, offset) in maps.items():
      expected[f"{name} {sign}"] = _shifted(pixels, np.array(matrix), offset)
  spec = images.AugmentSpec(
    crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, operations=1
  )
  data, draws = png(pixels), 600
  seen = dict.fromkeys(expected, 0)
  for _ in range(draws):
    out = images.augment(data, 40, spec, rng).astype(float)
    # The middle: at the edges interpolation and the outside differ.
    found = [
      name
      for name, wanted in expected.items()
      if np.abs(out - wanted)[8:-8, 8:-8].max() < 6
    ]
    assert len(found) == 1, found
    seen[found[0]] += 1
  assert all(seen.values()), seen
  assert 0.55 < seen["identity"] / draws < 0.75


def test_what_an_operation_moves_in_is_grey():
  spec = images.AugmentSpec(
    crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, operations=1
  )
  data, rng = png(np.full((16, 16, 3), 7)), np.random.default_rng(0)
  found = {
    int(value)
    for _ in range(60)
    for value in images.augment(data, 16, spec, rng)[:, 0, 0]
  }
  assert {7, 128} <= found

"""Decoding, cropping, flipping, tinting, word dropout."""

import io

import numpy as np
import pytest
from PIL import Image

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

"""Encoded pictures to arrays, with and without augmentation."""

import dataclasses
import io
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

from comp_jax import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentSpec:
  """How a training example is varied; the defaults suit photos."""

  crop_scale: tuple[float, float] = (0.5, 1.0)  # Fraction of the area kept.
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # Width : height.
  flip: float = 0.5  # Probability of a horizontal flip.
  jitter: float = 0.0  # Brightness, contrast, saturation in 1 +- jitter.
  word_dropout: float = 0.0  # Probability that a word of the text is left out.
  operations: int = 0  # Random ones of BLIP's ten, each half of the time.
  swap: float = 0.0  # Probability that a pair of images changes places.

  def __post_init__(self):
    for name in ("crop_scale", "crop_ratio"):
      low, high = getattr(self, name)
      top = 1.0 if name == "crop_scale" else math.inf
      if not 0 < low <= high <= top:
        raise errors.UserError(
          f"augment.{name} must be (low, high) with 0 < low <= high"
          f"{' <= 1' if name == 'crop_scale' else ''}, not {(low, high)}."
        )
    for name in ("flip", "jitter", "word_dropout", "swap"):
      if not 0 <= getattr(self, name) <= 1:
        raise errors.UserError(
          f"augment.{name} must be in [0, 1], not {getattr(self, name)}."
        )
    if self.operations < 0:
      raise errors.UserError(
        f"augment.operations must be 0 or more, not {self.operations}."
      )


Picture = bytes | Image.Image  # Encoded, or decoded by `decode`.


def decode(data: Picture) -> Image.Image:
  """The RGB picture of encoded bytes, of any mode with 8 or 16 bits.

  Transparency turns white; of 16 bits the upper 8 stay.

  Raises:
    OSError: not a picture, or one of deeper pixels, whose range is unknown.
  """
  if isinstance(data, Image.Image):
    return data
  image = Image.open(io.BytesIO(data))
  # Pillow cuts deep greys off at 255. Its older versions call 16 bits I.
  if image.mode.startswith("I;16") or (image.mode, image.format) == (
    "I",
    "PNG",
  ):
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  elif image.mode in ("I", "F"):
    raise OSError(f"32 bits per pixel, mode {image.mode}; save it with 8")
  if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(white, image)
  return image.convert("RGB")


def resize(data: Picture, size: int) -> UInt8[np.ndarray, "size size 3"]:
  """The whole picture at `size` x `size` (bicubic; aspect is not kept)."""
  image = decode(data).resize((size, size), Image.Resampling.BICUBIC)
  return np.asarray(image)


def augment(
  data: Picture, size: int, spec: AugmentSpec, rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
  """A random part of the picture at `size` x `size`, flipped and tinted.

  The ratio is taken relative to the picture's own, so photos that were
  squared beforehand and photos that were not are cropped alike.
  """
  image = decode(data)
  area = rng.uniform(*spec.crop_scale)
  ratio = math.exp(rng.uniform(*np.log(spec.crop_ratio)))
  width = min(1.0, math.sqrt(area * ratio)) * image.width
  height = min(1.0, math.sqrt(area / ratio)) * image.height
  left = rng.uniform(0, image.width - width)
  top = rng.uniform(0, image.height - height)
  image = image.resize(
    (size, size),
    Image.Resampling.BICUBIC,
    box=(left, top, left + width, top + height),
  )
  if rng.uniform() < spec.flip:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  if spec.jitter:
    for enhance in (
      ImageEnhance.Brightness,
      ImageEnhance.Contrast,
      ImageEnhance.Color,
    ):
      factor = rng.uniform(1 - spec.jitter, 1 + spec.jitter)
      image = enhance(image).enhance(factor)
  for _ in range(spec.operations):
    operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
    if rng.uniform() < 0.5:
      image = operation(image, 1 if rng.uniform() < 0.5 else -1)
  return np.asarray(image)


def _moved(
  image: Image.Image, sign: int, x: tuple[float, ...], y: tuple[float, ...]
) -> Image.Image:
  """The picture under an affine map, grey where nothing of it falls.

  Args:
    image: what is moved.
    sign: 1, or -1 for the opposite movement.
    x: of a pixel at (x, y), how far it lies from where it came from: factors
      of x and y, and pixels.
    y: the same along y.
  """
  (a, b, c), (d, e, f) = (np.multiply(sign, part) for part in (x, y))
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    (1 + a, b, c, d, 1 + e, f),
    Image.Resampling.BILINEAR,
    fillcolor=_GREY,
  )


_GREY = (128, 128, 128)
# BLIP's operations at its level, 5 of 10 (spec `upop.md` 3.1). At that level
# brightness and sharpness change nothing, as the identity.
_OPERATIONS = (
  *3 * (lambda image, _: image,),
  lambda image, _: ImageOps.autocontrast(image),
  lambda image, _: ImageOps.equalize(image),
  lambda image, sign: _moved(image, sign, (0, 0.15, 0), (0, 0, 0)),
  lambda image, sign: _moved(image, sign, (0, 0, 0), (0.15, 0, 0)),
  lambda image, sign: _moved(image, sign, (0, 0, 5), (0, 0, 0)),
  lambda image, sign: _moved(image, sign, (0, 0, 0), (0, 0, 5)),
  lambda image, sign: image.rotate(
    15 * sign, Image.Resampling.BILINEAR, fillcolor=_GREY
  ),
)


def drop_words(text: str, probability: float, rng: np.random.Generator) -> str:
  """`text` without a random part of its words, never without all of them."""
  words = text.split()
  if not probability or not words:
    return text
  kept = [w for w in words if rng.uniform() >= probability]
  return " ".join(kept or [words[rng.integers(len(words))]])

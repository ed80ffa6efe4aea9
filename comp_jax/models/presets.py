"""Named models: a small one to train from scratch, and a pretrained pair."""

from collections.abc import Callable, Mapping
from typing import Any

from comp_jax.models import specs


def tiny(
  *,
  vocab_size: int,
  image_size: int = 64,
  max_length: int = 32,
  sep_id: int = 3,
  joint_width: int = 96,
  **options: Any,
) -> specs.TwoTowerSpec:
  """About 1 M parameters for 64-pixel images, to train from scratch.

  Args:
    vocab_size: rows of the word table.
    image_size: side of the images, a multiple of 8.
    max_length: rows of the text's position table.
    sep_id: token id of [SEP]; 3 in a tokenizer that the project trained.
    joint_width: width of the joint space.
    **options: fields of both `EncoderSpec`s: granularity, dtype, remat, unroll.
  """
  return specs.TwoTowerSpec(
    vision=specs.VitSpec(
      image_size=_multiple(image_size, 8),
      patch_size=8,
      encoder=specs.encoder(
        width=96,
        depth=6,
        heads=6,
        mlp=384,
        norm_first=True,
        norm_eps=1e-6,
        **options,
      ),
    ),
    text=specs.BertSpec(
      vocab_size=vocab_size,
      max_length=max_length,
      readout="mean",
      sep_id=sep_id,
      encoder=specs.encoder(
        width=96,
        depth=3,
        heads=6,
        mlp=384,
        norm_first=False,
        norm_eps=1e-12,
        **options,
      ),
    ),
    joint_width=joint_width,
  )


def dinov2_s14_minilm(
  *,
  image_size: int = 112,
  joint_width: int = 384,
  max_length: int = 64,
  **options: Any,
) -> specs.TwoTowerSpec:
  """DINOv2 ViT-S/14 and MiniLM-L6, what `interop.pretrained` has weights for.

  Args:
    image_size: side of the images, a multiple of 14.
    joint_width: width of the joint space.
    max_length: rows of the text's position table, at most 512.
    **options: fields of both `EncoderSpec`s: granularity, dtype, remat, unroll.
  """
  if not 1 <= max_length <= 512:
    raise ValueError(f"max_length must be in 1..512, not {max_length}")
  return specs.TwoTowerSpec(
    vision=specs.VitSpec(
      image_size=_multiple(image_size, 14),
      patch_size=14,
      encoder=specs.encoder(
        width=384,
        depth=12,
        heads=6,
        mlp=1536,
        norm_first=True,
        norm_eps=1e-6,
        layer_scale=True,
        **options,
      ),
    ),
    text=specs.BertSpec(
      vocab_size=30522,
      max_length=max_length,
      readout="mean",
      sep_id=102,
      encoder=specs.encoder(
        width=384,
        depth=6,
        heads=12,
        mlp=1536,
        norm_first=False,
        norm_eps=1e-12,
        **options,
      ),
    ),
    joint_width=joint_width,
  )


NAMES: Mapping[str, Callable[..., specs.TwoTowerSpec]] = {
  "tiny": tiny,
  "dinov2_s14_minilm": dinov2_s14_minilm,
}


def spec(name: str, **options: Any) -> specs.TwoTowerSpec:
  """The spec of a named model.

  Raises:
    ValueError: unknown name, or a size that the model cannot have.
  """
  if name not in NAMES:
    raise ValueError(
      f"no model is called {name!r}; there are: {', '.join(sorted(NAMES))}"
    )
  return NAMES[name](**options)


def _multiple(image_size: int, patch_size: int) -> int:
  if image_size < patch_size or image_size % patch_size:
    raise ValueError(
      f"image_size must be a multiple of {patch_size}, not {image_size}"
    )
  return image_size

"""What the shapes of a checkpoint tell of its model, and what they do not."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from comp_jax import errors
from comp_jax.models import specs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Untold:
  """What no shape tells; pairs are of the vision and of the text towers.

  Attributes:
    norm_eps: epsilon of the LayerNorms.
    activations: of the MLPs, of `specs.ACTIVATIONS`.
    heads: None for width / 64.
    image_size: side of the images in pixels; another one than the checkpoint's
      resamples the position table. None keeps the checkpoint's.
  """

  norm_eps: tuple[float, float]
  activations: tuple[str, str]
  heads: tuple[int, int] | None = None
  image_size: int | None = None

  def heads_of(self, side: int, width: int) -> int:
    """Heads of the vision (0) or of a text tower (1) of a residual width."""
    return width // 64 if self.heads is None else self.heads[side]

  def encoder(
    self,
    side: int,
    width: int,
    layers: tuple[specs.LayerSpec, ...],
    **more: Any,
  ) -> specs.EncoderSpec:
    """The encoder of the vision (0) or of a text tower (1).

    Args:
      side: which of the pairs holds.
      width: residual width.
      layers: see `layer_widths`.
      **more: other fields of the spec.
    """
    return specs.EncoderSpec(
      width=width,
      layers=layers,
      scale_width=width // layers[0].heads,
      norm_eps=self.norm_eps[side],
      activation=self.activations[side],
      scan=len(set(layers)) == 1,
      **more,
    )


def shape_of(
  arrays: Mapping[str, np.ndarray], name: str, rank: int, where: str
) -> tuple[int, ...]:
  """The shape of an array that is there; UserError if it has other axes.

  Args:
    arrays: the checkpoint.
    name: of the array.
    rank: axes that it must have.
    where: what is read, for the message.
  """
  shape = np.shape(arrays[name])
  if len(shape) != rank:
    raise errors.UserError(
      f"{where}: {name} has shape {shape}, not {rank} axes"
    )
  return shape


def layer_widths(
  arrays: Mapping[str, np.ndarray],
  where: str,
  pattern: str,
  heads: int,
  *,
  out: str,
  up: str,
  cross: Sequence[str] = (),
) -> tuple[specs.LayerSpec, ...]:
  """The widths of each layer: rows of the output matrices, of the MLP.

  Args:
    arrays: the checkpoint.
    where: what is read, for messages.
    pattern: prefix of a layer with `{}` for its index.
    heads: of every attention block.
    out: output matrix of the attention, below the prefix.
    up: first matrix of the MLP.
    cross: output matrix of each cross-attention.

  Raises:
    UserError: no layer, or rows that are not `heads` of one width.
  """

  if not isinstance(heads, int) or heads < 1:
    raise errors.UserError(
      f"{where}: {heads!r} heads in {pattern.format(0)[:-1]}; give their "
      "number (--heads)"
    )

  def attention(prefix, name):
    if prefix + name not in arrays:
      # Some width: the missing array is named when it is taken.
      return {"heads": heads, "head_width": 64}
    rows = shape_of(arrays, prefix + name, 2, where)[1]
    if rows % heads:
      raise errors.UserError(
        f"{where}: {rows} channels in {prefix}{name} are not {heads} heads of "
        "one width; give the number of heads that the model has (--heads)"
      )
    return {"heads": heads, "head_width": rows // heads}

  layers = []
  while f"{(prefix := pattern.format(len(layers)))}{up}" in arrays:
    layers.append(
      specs.LayerSpec(
        **attention(prefix, out),
        mlp=shape_of(arrays, prefix + up, 2, where)[0],
        cross=tuple(
          specs.AttentionSpec(**attention(prefix, name)) for name in cross
        ),
      )
    )
  if not layers:
    raise errors.UserError(
      f"{where}: no layers, it lacks {pattern.format(0)}{up}"
    )
  return tuple(layers)


def image_size(asked: int | None, grid: int, patch_size: int) -> int:
  """The side of the images: as asked for, or as the position table has it."""
  size = grid * patch_size if asked is None else asked
  if size < patch_size or size % patch_size:
    raise errors.UserError(
      f"image_size must be a multiple of {patch_size}, the side of the model's "
      f"patches, not {size}"
    )
  return size

"""Reading the checkpoint layouts of other code: names, shapes, errors.

A checkpoint is a flat dict of arrays under PyTorch's names. Arrays are taken
one by one, each with the shape that the model wants; at the end everything
that was missing, misshaped or never taken is one message.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from comp_jax import errors
from comp_jax.models import specs, vit

_LISTED = 20  # Differences that an error spells out before it only counts.


class Checkpoint:
  """Arrays that are taken one by one; `finish` raises on all that is wrong."""

  def __init__(self, arrays: Mapping[str, np.ndarray], where: str):
    self._left = dict(arrays)
    self._where = where
    self._problems = []

  def __contains__(self, name: str) -> bool:
    """Whether an array is there and not taken yet."""
    return name in self._left

  def take(self, name: str, *shape: int | None) -> np.ndarray:
    """The array of a name; None in `shape` accepts any size."""
    array = self._left.pop(name, None)
    fits = array is not None and len(array.shape) == len(shape)
    fits = fits and all(
      want in (None, have)
      for have, want in zip(array.shape, shape, strict=True)
    )
    if fits:
      # float64 holds the labels of `export.inverse`, which must stay exact.
      keep = array.dtype == np.float64
      return array if keep else np.asarray(array, np.float32)
    wanted = tuple("any" if size is None else size for size in shape)
    found = "missing" if array is None else tuple(array.shape)
    self._problems.append(f"{name}: {found}, the model has {wanted}")
    return np.zeros([size or 1 for size in shape], np.float32)

  def norm(self, name: str, width: int) -> dict:
    """The scale and bias of a LayerNorm."""
    return {
      "scale": self.take(f"{name}.weight", width),
      "bias": self.take(f"{name}.bias", width),
    }

  def positions(self, name: str, grid: int, *shape: int | None) -> np.ndarray:
    """A table of CLS and a square of patches, resampled to another grid."""
    table = self.take(name, *shape).reshape(-1, shape[-1])
    if len(table) < 2 or round((len(table) - 1) ** 0.5) ** 2 != len(table) - 1:
      self.problem(
        f"{name}: {len(table)} rows are not CLS and a square of patches"
      )
      table = np.zeros((2, shape[-1]), np.float32)
    return vit.resample_positions(table, grid)

  def problem(self, text: str) -> None:
    """Notes something else that is wrong."""
    self._problems.append(text)

  def finish(self, unused: Iterable[str] = ()) -> None:
    """Raises on everything that did not fit, and on what nobody took.

    Args:
      unused: names that may stay behind; one that ends in a dot stands for
        all that begin with it.

    Raises:
      UserError: names each missing, unexpected and misshaped array.
    """
    names = {name for name in unused if not name.endswith(".")}
    prefixes = tuple(name for name in unused if name.endswith("."))
    problems = self._problems + [
      f"{name}: {tuple(self._left[name].shape)}, unknown to the model"
      for name in sorted(self._left)
      if name not in names and not name.startswith(prefixes)
    ]
    if problems:
      more = len(problems) - _LISTED
      listed = "; ".join(problems[:_LISTED])
      listed += f"; and {more} more" if more > 0 else ""
      raise errors.UserError(
        f"{self._where}: {len(problems)} arrays do not fit the model: {listed}."
        " They belong to another model, or are not all of one"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNames:
  """Where a layout keeps the arrays of one layer, below the layer's prefix.

  Attributes:
    norm1: LayerNorm of the attention block.
    qkv: names of query, key and value; or the one array of all three, as a
      pattern with `{kind}` for weight and bias.
    out: output matrix of the attention.
    norm2: LayerNorm of the MLP block.
    up: first matrix of the MLP.
    down: second matrix of the MLP.
    layer_scales: both LayerScales, where the layout has them.
  """

  norm1: str
  qkv: Sequence[str] | str
  out: str
  norm2: str
  up: str
  down: str
  layer_scales: Sequence[str] = ()


def attention(
  checkpoint: Checkpoint,
  qkv: Sequence[str] | str,
  out: str,
  *,
  width: int,
  source_width: int,
  layer: specs.LayerSpec | specs.AttentionSpec,
) -> dict:
  """An attention block in our layout; linear kernels are stored [out, in].

  Args:
    checkpoint: what is read.
    qkv: full names of query, key and value; or the pattern of their one array.
    out: full name of the output matrix.
    width: residual width.
    source_width: width of what keys and values read.
    layer: the widths that are wanted.
  """
  units = (layer.heads, layer.head_width)
  inner = layer.heads * layer.head_width
  widths = (width, source_width, source_width)
  if isinstance(qkv, str):
    kernels = np.split(
      checkpoint.take(qkv.format(kind="weight"), 3 * inner, width), 3
    )
    biases = np.split(checkpoint.take(qkv.format(kind="bias"), 3 * inner), 3)
  else:
    kernels = [
      checkpoint.take(f"{name}.weight", inner, size)
      for name, size in zip(qkv, widths, strict=True)
    ]
    biases = [checkpoint.take(f"{name}.bias", inner) for name in qkv]
  params = {
    name: {
      "kernel": kernel.T.reshape(size, *units),
      "bias": bias.reshape(units),
    }
    for name, kernel, bias, size in zip(
      ("query", "key", "value"), kernels, biases, widths, strict=True
    )
  }
  kernel = checkpoint.take(f"{out}.weight", width, inner).T
  params["out"] = {
    "kernel": kernel.reshape(*units, width),
    "bias": checkpoint.take(f"{out}.bias", width),
  }
  return params


def mlp(
  checkpoint: Checkpoint, up: str, down: str, *, width: int, neurons: int
) -> dict:
  """An MLP block in our layout, from the full names of its matrices."""
  sizes = {"up": (up, width, neurons), "down": (down, neurons, width)}
  return {
    part: {
      "kernel": checkpoint.take(f"{name}.weight", outputs, inputs).T,
      "bias": checkpoint.take(f"{name}.bias", outputs),
    }
    for part, (name, inputs, outputs) in sizes.items()
  }


def encoder(
  checkpoint: Checkpoint,
  pattern: str,
  names: LayerNames,
  spec: specs.EncoderSpec,
) -> dict:
  """The layers of an encoder, stacked where the spec scans them.

  Args:
    checkpoint: what is read.
    pattern: prefix of a layer with `{}` for its index.
    names: the layout.
    spec: the encoder.
  """
  d = spec.width

  def one(index, layer):
    prefix = pattern.format(index)
    qkv = names.qkv
    full = (
      prefix + qkv if isinstance(qkv, str) else [prefix + name for name in qkv]
    )
    params = {
      "norm1": checkpoint.norm(prefix + names.norm1, d),
      "attention": attention(
        checkpoint,
        full,
        prefix + names.out,
        width=d,
        source_width=d,
        layer=layer,
      ),
      "norm2": checkpoint.norm(prefix + names.norm2, d),
      "mlp": mlp(
        checkpoint,
        prefix + names.up,
        prefix + names.down,
        width=d,
        neurons=layer.mlp,
      ),
    }
    for number, scale in enumerate(names.layer_scales, 1):
      params[f"layer_scale{number}"] = checkpoint.take(prefix + scale, d)
    return params

  layers = [one(index, layer) for index, layer in enumerate(spec.layers)]
  return stacked(layers, spec.scan)


def stacked(layers: Sequence[Mapping], scan: bool) -> dict:
  """The parameters of an encoder from those of its layers."""
  if scan:
    return {"layers": jax.tree.map(lambda *arrays: np.stack(arrays), *layers)}
  return {f"layers_{index}": layer for index, layer in enumerate(layers)}


def patches(
  kernel: Float[np.ndarray, "d 3 p p"],
) -> Float[np.ndarray, "p p 3 d"]:
  """The kernel of a patch convolution in our layout."""
  return kernel.transpose(2, 3, 1, 0)


def at_full_scale(
  encoder: Mapping, scale_width: int, block: str = "attention"
) -> dict:
  """Layers whose attention divides by the root of the original head width.

  UPop's compressed CLIP and BERT divide by the root of the width that is left
  (spec `upop.md` part 2); the queries take up the difference.

  Args:
    encoder: layers, stacked or not.
    scale_width: head width before compression.
    block: `attention` or `cross`.
  """
  layers = {}
  for name, layer in encoder.items():
    query = layer[block]["query"]
    left = query["kernel"].shape[-1]
    if left not in (0, scale_width):
      factor = np.float32((scale_width / left) ** 0.5)
      query = {key: value * factor for key, value in query.items()}
      layer = {**layer, block: {**layer[block], "query": query}}
    layers[name] = layer
  return layers

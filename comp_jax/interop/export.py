"""A compact model in the layout of the checkpoint that it came from.

The arrays keep their dense shapes, with zeros where units were removed, so
that any code for the original model computes what the compact one computes.
Token pruning has no place in such a file: it is left behind.
"""

import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from safetensors import numpy as safetensors_numpy

from comp_jax import errors
from comp_jax.interop import atomic, blip, hf_config, store, tensors
from comp_jax.interop import load as load_lib
from comp_jax.models import families, specs, towers

FILE = "model.safetensors"
# What a Hugging Face folder has beside its weights.
_BESIDE = ("*.json", "*.txt")


def export(
  loaded: store.Loaded,
  like: str | os.PathLike,
  to: str | os.PathLike,
  *,
  heads: tuple[int, int] | None = None,
) -> None:
  """Writes a folder with `model.safetensors`, and what lies beside the source.

  Args:
    loaded: a compact or dense model.
    like: the published folder or file that it was made of.
    to: a new folder.
    heads: of the source's towers, where no config tells them.

  Raises:
    UserError: a source of another model, or a folder that is not empty.
  """
  like, to = pathlib.Path(like), pathlib.Path(to)
  if to.exists() and (not to.is_dir() or any(to.iterdir())):
    raise errors.UserError(f"{to}: is not a new folder; give another one")
  source = load_lib.read(like)
  family = loaded.spec.family
  task = None if family == "two_tower" else family
  build = lambda arrays: source.build(arrays, task, heads, None)  # noqa: E731
  spec, _ = build(source.arrays)
  ours, theirs = loaded.spec.vision.image_size, spec.vision.image_size
  if spec.family != loaded.spec.family or ours != theirs:
    raise errors.UserError(
      f"{like} is a {spec.family} model for {theirs} pixels; the one to export "
      f"is a {loaded.spec.family} model for {ours}"
    )
  params = widened(loaded.params, loaded.spec, spec, str(like))
  arrays = inverse(
    params, source.arrays, lambda labels: build(labels)[1], str(like)
  )
  arrays |= {
    copy: arrays[first] for copy, first in blip.TIED.items() if copy in arrays
  }
  to.mkdir(parents=True, exist_ok=True)
  for pattern in _BESIDE if like.is_dir() else ():
    for path in like.glob(pattern):
      if "index" not in path.name:  # Of shards, which are joined here.
        shutil.copy(path, to / path.name)
  if source.config:
    atomic.write_json(to / hf_config.FILE, _in_float32(source.config))
  with atomic.replacing(to / FILE) as temporary:
    safetensors_numpy.save_file(arrays, temporary, metadata={"format": "pt"})


def _in_float32(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config of float32 weights: transformers casts to what it names."""

  def value_of(key, value):
    if isinstance(value, Mapping):
      return _in_float32(value)
    return "float32" if value and key in ("dtype", "torch_dtype") else value

  return {key: value_of(key, value) for key, value in config.items()}


def widened(
  params: Mapping, spec: specs.ModelSpec, dense: specs.ModelSpec, where: str
) -> dict:
  """The parameters of the dense model: the units that are left, then zeros.

  A unit's place among its like changes nothing, so those that are left take
  the first places.

  Args:
    params: of the compact model.
    spec: the compact model.
    dense: the model it came from.
    where: of the dense one, for the message of an error.

  Raises:
    UserError: models that do not belong together.
  """
  _, apart = towers.unrolled(spec, params)
  small = tensors.flatten(apart)
  wide = {}
  for path, shape in tensors.flatten(families.param_shapes(dense)).items():
    array = np.zeros(shape.shape, np.float32)
    if "/layers/" in path:
      parts = [
        small.get(path.replace("/layers/", f"/layers_{i}/"))
        for i in range(len(array))
      ]
      places = list(array)
    else:
      parts, places = [small.get(path)], [array]
    for part, place in zip(parts, places, strict=True):
      if part is None or any(
        have > want for have, want in zip(part.shape, place.shape, strict=True)
      ):
        raise errors.UserError(
          f"{where}: not what the model was made of, {path} does not fit"
        )
      place[tuple(slice(0, size) for size in part.shape)] = part
    wide[path] = array
  return tensors.unflatten(wide)


def inverse(
  params: Mapping,
  arrays: Mapping[str, np.ndarray],
  read: Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]],
  where: str,
) -> dict[str, np.ndarray]:
  """Arrays that `read` would turn into `params`; the others stay as they are.

  A reader moves numbers, and scales some. Shown ones, it tells by how much;
  shown the position of every number instead of the number, it tells where each
  parameter came from. What is then still float32 is a number of its own (the
  temperature, where a layout has none), which stays behind.

  Args:
    params: nested dict, of the shapes that `read` returns.
    arrays: a checkpoint in the layout to write.
    read: from that layout to ours; keeps what is float64.
    where: the checkpoint lies, for the message of an error.

  Raises:
    UserError: a layout in which two parameters share a place.
  """
  sizes = {name: int(np.size(array)) for name, array in arrays.items()}
  ends = np.cumsum([0, *sizes.values()]).tolist()
  starts = dict(zip(sizes, ends[:-1], strict=True))
  shapes = {name: np.shape(array) for name, array in arrays.items()}

  def shown(values_of):
    values = {n: values_of(n).reshape(shape) for n, shape in shapes.items()}
    return tensors.flatten(read(values))

  places = shown(lambda n: starts[n] + np.arange(sizes[n], dtype=np.float64))
  scales = shown(lambda n: np.broadcast_to(np.float64(1), sizes[n]))
  flat, written = np.zeros(ends[-1], np.float32), np.zeros(ends[-1], bool)
  for path, values in tensors.flatten(params).items():
    if places[path].dtype != np.float64:
      continue
    place = np.rint(places[path] / scales[path]).astype(np.int64).reshape(-1)
    if np.any(written[place]):
      raise errors.UserError(
        f"{where}: has one place for {path} and for another parameter that "
        "began as the same; its layout cannot hold the model"
      )
    flat[place] = (np.asarray(values) / scales[path]).reshape(-1)
    written[place] = True
  result = {}
  for name, array in arrays.items():
    span = slice(starts[name], starts[name] + sizes[name])
    if written[span].any():
      before = np.asarray(array, np.float32).reshape(-1)
      after = np.where(written[span], flat[span], before)
      result[name] = after.reshape(np.shape(array))
    else:  # The same type and bits; safetensors wants them in order.
      result[name] = np.array(array, order="C")
  return result

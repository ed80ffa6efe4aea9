"""Tensors of PyTorch's files (.pth, .pt, .bin), without running their code.

A PyTorch file is a zip archive of raw storages and one pickle that describes
the tensors over them. A pickle can name any function and have it called: here
only what builds tensors and plain containers is known, and a file that names
anything else is refused. TorchScript archives (OpenAI's CLIP) are read for
their weights; their code is not looked at.
"""

import collections
import io
import math
import os
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from comp_jax import errors

_DTYPES = {
  "FloatStorage": np.dtype("<f4"),
  "DoubleStorage": np.dtype("<f8"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype("<u2"),
  "LongStorage": np.dtype("<i8"),
  "IntStorage": np.dtype("<i4"),
  "ShortStorage": np.dtype("<i2"),
  "CharStorage": np.dtype("<i1"),
  "ByteStorage": np.dtype("<u1"),
  "BoolStorage": np.dtype("?"),
}
# What authors saved beside the weights (options, counters, best scores) is read
# as something that does nothing. All of these packages; nothing imports them.
_INERT = (
  "argparse",
  "datetime",
  "easydict",
  "numpy",
  "omegaconf",
  "pathlib",
  "ruamel",
  "torch.optim",
  "yaml",
)
_BUILTINS = (
  *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset"),
  *("int", "list", "long", "object", "range", "set", "slice", "str", "tuple"),
  *("unicode", "xrange"),
)
# And these names of modules that hold more; `__builtin__` is of old pickles.
_INERT_NAMES = {
  "__builtin__": _BUILTINS,
  "builtins": _BUILTINS,
  # Bytes, in the pickles of torch.save.
  "_codecs": ("encode",),
  "collections": ("Counter", "defaultdict", "deque"),
  "torch": (
    *("bfloat16", "bool", "device", "float16", "float32", "float64"),
    *("int16", "int32", "int64", "int8", "uint8"),
  ),
}


class _Inert(dict):
  """Stands for an object that nobody needs; what it was made of is lost.

  As a dict it takes the entries of one (a defaultdict may hold the weights),
  and it can be a key, as a number of NumPy can.
  """

  __hash__ = object.__hash__

  def __init__(self, *args, **kwargs):
    super().__init__()

  def __setstate__(self, state):
    pass

  def append(self, value):
    pass

  def extend(self, values):
    pass


class _RefusedError(Exception):
  """A pickle asks for more than tensors and what may lie beside them."""


class _Module:
  """A TorchScript module: its attributes alone."""

  def __setstate__(self, state):
    self.attributes = state


class _Unpickler(pickle.Unpickler):
  """Builds arrays, containers and nothing else."""

  def __init__(self, file, storage):
    super().__init__(file)
    self._storage = storage

  def find_class(self, module: str, name: str) -> Any:
    if module == "torch._utils" and name.startswith("_rebuild_tensor"):
      return _rebuild_tensor
    if module == "torch._utils" and name == "_rebuild_parameter":
      return lambda data, *_: data
    if module == "torch" and name in _DTYPES:
      return name
    if (module, name) == ("torch", "Size"):
      return tuple
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    if module.startswith("__torch__"):
      return _Module
    if module == "torch.jit._pickle" and name.startswith("build_"):
      return lambda data, *_: data
    if module.startswith(_INERT) or name in _INERT_NAMES.get(module, ()):
      return _Inert
    raise _RefusedError(f"it asks for {module}.{name}")

  def persistent_load(self, pid: Any) -> np.ndarray:
    _, kind, key, _, count = pid
    return self._storage(kind, key, count)


def _rebuild_tensor(storage, offset, size, stride, *_):
  """The array over a storage; a copy, so that the file can be closed."""
  span = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
  if 0 in size:
    return np.zeros(size, storage.dtype)
  if math.prod(size) > storage.size:  # Some megabytes could ask for terabytes.
    raise ValueError("a tensor is larger than its storage")
  if offset < 0 or min(stride, default=0) < 0 or offset + span > storage.size:
    raise ValueError("a tensor reaches beyond its storage")
  strides = [s * storage.itemsize for s in stride]
  view = np.lib.stride_tricks.as_strided(
    storage[offset:], size, strides, writeable=False
  )
  return np.array(view)


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The named tensors of a file, flat; bfloat16 comes back as float32.

  A state dict may lie at the top or below `model`, `state_dict` or `module`;
  what lies beside it (optimiser, config, epoch) is left out.

  Raises:
    UserError: not a PyTorch file, a truncated one, one that asks for code to
      run, or one without tensors.
  """
  path = pathlib.Path(path)
  try:
    with zipfile.ZipFile(path) as archive:
      tree = _read(archive)
  except FileNotFoundError as error:
    raise errors.UserError(f"{path}: no such file; check the path") from error
  except zipfile.BadZipFile as error:
    raise errors.UserError(
      f"{path}: not a whole PyTorch file ({error}); fetch it again. Files of "
      "PyTorch before 1.6 are saved anew with torch.save"
    ) from error
  except _RefusedError as error:
    raise errors.UserError(
      f"{path}: refused, since {error}, which is more than tensors; save its "
      "state_dict alone with torch.save"
    ) from error
  # A broken pickle can raise anything at all.
  except Exception as error:
    raise errors.UserError(
      f"{path}: not a readable PyTorch file ({type(error).__name__}: {error})"
    ) from error
  arrays = _tensors(tree)
  if not arrays:
    raise errors.UserError(f"{path}: holds no state dict of tensors")
  return arrays


def _read(archive: zipfile.ZipFile) -> Any:
  names = archive.namelist()
  found = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
  if len(found) != 1:
    raise ValueError("it has no data.pkl, so it is no torch.save")
  root = found[0].removesuffix("data.pkl")
  storages = {}

  def storage(kind, key, count):
    if key not in storages:
      data = archive.read(f"{root}data/{key}")
      array = np.frombuffer(data, _DTYPES[kind], count)
      if kind == "BFloat16Storage":
        array = (array.astype(np.uint32) << 16).view(np.float32)
      storages[key] = array
    return storages[key]

  data = archive.read(found[0])
  return _Unpickler(io.BytesIO(data), storage).load()


def _tensors(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
  """The arrays of a state dict, wherever it lies."""
  if isinstance(tree, _Module):
    tree = tree.attributes
  if not isinstance(tree, Mapping):
    return {}
  if not prefix:
    for key in ("model", "state_dict", "module"):
      # Something inert may have the name: it is empty.
      if isinstance(tree.get(key), Mapping | _Module) and tree[key] != {}:
        return _tensors(tree[key])
  arrays = {}
  for key, value in tree.items():
    if isinstance(value, np.ndarray):
      arrays[f"{prefix}{key}"] = value
    elif isinstance(value, _Module):
      arrays.update(_tensors(value, f"{prefix}{key}."))
  return {name.removeprefix("module."): a for name, a in arrays.items()}

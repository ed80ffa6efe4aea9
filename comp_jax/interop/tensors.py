"""Dense parameters as one safetensors file, and checks of their shapes."""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
from flax import traverse_util
from safetensors import numpy as safetensors_numpy

from comp_jax import errors
from comp_jax.interop import atomic


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the leaves of a nested dict under their '/'-joined paths."""
  return traverse_util.flatten_dict(dict(params), sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the nested dict of '/'-joined paths: the inverse of flatten."""
  return traverse_util.unflatten_dict(dict(flat), sep="/")


def digest(params: Mapping[str, Any]) -> str:
  """SHA-256 of parameters: of their names, types, shapes and numbers."""
  found = hashlib.sha256()
  for key, value in sorted(flatten(params).items()):
    value = np.ascontiguousarray(value)
    found.update(f"{key} {value.dtype} {np.shape(value)}\n".encode())
    found.update(value.reshape(-1).view(np.uint8))
  return found.hexdigest()


def save_params(
  path: str | os.PathLike,
  params: Mapping[str, Any],
  metadata: Mapping[str, str],
) -> None:
  """Writes parameters and strings about them to one file, atomically.

  Args:
    path: The safetensors file; its folder is created when it is missing.
    params: Nested dict of arrays; no key may hold a '/'.
    metadata: Strings kept in the file's header.
  """
  path = pathlib.Path(path)
  # safetensors writes the raw buffer, so a transposed view must be copied.
  arrays = {
    key: np.ascontiguousarray(value).reshape(np.shape(value))
    for key, value in sorted(flatten(params).items())
  }
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as temporary:
      safetensors_numpy.save_file(arrays, temporary, metadata=dict(metadata))
  except OSError as error:
    raise errors.UserError(
      f"{path}: cannot write it ({error.strerror or error}); give a path that "
      "you may write to"
    ) from error


def load_params(
  path: str | os.PathLike,
) -> tuple[dict[str, Any], dict[str, str]]:
  """Returns the nested parameters and the metadata of a safetensors file.

  Args:
    path: A file that `save_params` wrote.

  Raises:
    UserError: the file is missing, or is not a whole safetensors file.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(
      f"{path}: no such checkpoint file; check the path, or make one with "
      "train.py"
    )
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      metadata = dict(file.metadata() or {})
      arrays = {key: file.get_tensor(key) for key in file.keys()}
  # The library raises types of its own for each way a header can be wrong.
  except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
    raise errors.UserError(
      f"{path}: not a whole safetensors file ({error}); make it again or "
      "fetch it again"
    ) from error
  return unflatten(arrays), metadata


def check_tree(
  params: Mapping[str, Any],
  expected_shapes: Mapping[str, Any],
  where: str,
) -> None:
  """Returns nothing when the trees agree, else raises all differences at once.

  Args:
    params: Nested dict of arrays, as read.
    expected_shapes: Nested dict with the same paths, whose leaves are arrays,
      `jax.ShapeDtypeStruct`s or plain tuples of sizes.
    where: What was read, for the message, such as the path of the file.

  Raises:
    UserError: names each missing, unexpected and misshaped path.
  """
  found = {key: _shape(leaf) for key, leaf in flatten(params).items()}
  wanted = {key: _shape(leaf) for key, leaf in flatten(expected_shapes).items()}
  problems = []
  for key in sorted(found.keys() | wanted.keys()):
    if key not in found:
      problems.append(f"{key}: missing, the model has {wanted[key]}")
    elif key not in wanted:
      problems.append(f"{key}: {found[key]}, unknown to the model")
    elif found[key] != wanted[key]:
      problems.append(f"{key}: {found[key]}, the model has {wanted[key]}")
  if not problems:
    return
  raise errors.UserError(
    f"{where}: a checkpoint of another architecture, {len(problems)} of "
    f"{len(found.keys() | wanted.keys())} arrays do not fit. Use the config "
    f"that it was made with, or another checkpoint: {'; '.join(problems)}"
  )


def _shape(leaf: Any) -> tuple[int, ...]:
  """Returns the sizes of an array or of something that stands for one."""
  return tuple(leaf) if isinstance(leaf, tuple) else tuple(leaf.shape)

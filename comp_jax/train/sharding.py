"""Where arrays live: one axis of devices and a table of path rules."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import tree_util
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from comp_jax import errors

AXIS = "data"
_SMALL = 2**14  # Elements below which splitting costs more than it saves.

# From the shape of an array and the number of devices to its split.
SpecBuilder = Callable[[tuple[int, ...], int], PartitionSpec]
# Patterns that must match a whole '/'-joined path; the first match wins.
Rules = tuple[tuple[str, PartitionSpec | SpecBuilder], ...]


def split_largest(shape: tuple[int, ...], devices: int) -> PartitionSpec:
  """Returns the split of the largest axis that the devices divide evenly.

  Small arrays, and those that no axis fits, are kept whole on each device. Of
  equal axes the first is taken.
  """
  if int(np.prod(shape)) < _SMALL:
    return PartitionSpec()
  fitting = [
    axis for axis, size in enumerate(shape) if size and size % devices == 0
  ]
  if not fitting:
    return PartitionSpec()
  axis = max(fitting, key=lambda axis: shape[axis])
  return PartitionSpec(*(None,) * axis, AXIS)


REPLICATED: Rules = ((".*", PartitionSpec()),)
FULLY_SHARDED: Rules = ((".*", split_largest),)


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns the mesh of all (or the given) devices along one axis, "data"."""
  devices = jax.devices() if devices is None else list(devices)
  # The default axis type, Explicit, refuses top_k along a sharded axis.
  return jax.make_mesh(
    (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
  )


def dividing(mesh: Mesh, count: int) -> Mesh:
  """Returns a mesh of as many of the devices as split `count` rows evenly."""
  devices = list(mesh.devices.flat)
  most = max(n for n in range(1, len(devices) + 1) if count % n == 0)
  return make_mesh(devices[:most])


def tree_shardings(
  mesh: Mesh, shapes: Any, rules: Rules
) -> tuple[Any, tuple[str, ...]]:
  """Returns the sharding of each leaf, and the rules that matched none.

  Args:
    mesh: The devices.
    shapes: Pytree of arrays or `jax.ShapeDtypeStruct`s.
    rules: Tried in order against each leaf's '/'-joined path.

  Raises:
    ValueError: names every path that no rule matches and every array that its
      rule cannot split evenly.
  """
  used, problems = set(), []

  def place(keys: tuple, leaf: Any) -> NamedSharding:
    path = tree_util.keystr(keys, simple=True, separator="/")
    for pattern, rule in rules:
      if not re.fullmatch(pattern, path):
        continue
      used.add(pattern)
      shape = tuple(leaf.shape)
      spec = rule
      if not isinstance(rule, PartitionSpec):
        spec = rule(shape, mesh.size)
      sharding = NamedSharding(mesh, spec)
      try:
        sharding.shard_shape(shape)
      except ValueError as error:
        problems.append(f"{path} {shape} by {spec}: {error}")
      return sharding
    problems.append(f"{path}: no rule matches")
    return NamedSharding(mesh, PartitionSpec())

  shardings = tree_util.tree_map_with_path(place, shapes)
  if problems:
    raise ValueError("cannot place these arrays: " + "; ".join(problems))
  unused = tuple(pattern for pattern, _ in rules if pattern not in used)
  return shardings, unused


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that keeps an array whole on each device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, leading_axes: int = 0) -> NamedSharding:
  """Returns the sharding that splits the batch axis of an array.

  Args:
    mesh: The devices.
    leading_axes: Axes before the batch axis, such as steps or micro-batches.
  """
  return NamedSharding(mesh, PartitionSpec(*(None,) * leading_axes, AXIS))


def check_batch(batch_size: int, mesh: Mesh, micro_batches: int = 1) -> None:
  """Returns nothing when the devices can share the batch evenly.

  Args:
    batch_size: Examples per step.
    mesh: The devices.
    micro_batches: Parts that gradient accumulation cuts the batch into.

  Raises:
    UserError: names both numbers and the nearest batch sizes that work.
  """
  unit = mesh.size * micro_batches
  if batch_size > 0 and batch_size % unit == 0:
    return
  below = max(batch_size, 0) // unit * unit
  nearest = [str(size) for size in (below, below + unit) if size > 0]
  by = f"{mesh.size} devices"
  if micro_batches > 1:
    by += f" times {micro_batches} micro-batches"
  raise errors.UserError(
    f"batch size {batch_size} is not divisible by {by}; use "
    f"{' or '.join(nearest)}"
  )

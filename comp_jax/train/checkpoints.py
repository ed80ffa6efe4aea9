"""Training state on disk: atomic, checked, and resumable after any kill."""

import logging
import os
import pathlib
import shutil
import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax import tree_util

from comp_jax import errors

_LOG = logging.getLogger(__name__)
_STATE, _META = "state", "meta"


class CorruptError(Exception):
  """A checkpoint that cannot be read back as it was written."""


class Checkpoints:
  """The checkpoints of one run: Orbax steps, the newest few of them kept.

  A state is any pytree of arrays; typed PRNG keys are stored as their data.
  The shape, type and checksum of each array lie beside it, so that a damaged
  file is told apart from a state of another model.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    keep: int = 2,
    *,
    asynchronous: bool = False,
  ):
    """Opens the folder, and clears away saves that a kill cut short.

    Args:
      directory: The folder, which is created when it is missing.
      keep: Checkpoints left on disk; two or more leave one to fall back to.
      asynchronous: Whether `save` returns before the files are complete.
    """
    self._directory = pathlib.Path(directory).absolute()
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      enable_async_checkpointing=asynchronous,
      cleanup_tmp_directories=True,
    )
    try:
      self._directory.mkdir(parents=True, exist_ok=True)
      self._options = options
      self._manager = ocp.CheckpointManager(self._directory, options=options)
    except OSError as error:
      raise errors.UserError(
        f"{directory}: cannot keep checkpoints there "
        f"({error.strerror or error}); use another --workdir"
      ) from error

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *unused: Any) -> None:
    self.close()

  def save(
    self, step: int, state: Any, meta: dict[str, Any] | None = None
  ) -> None:
    """Writes one checkpoint; a step that exists already is left as it is.

    Args:
      step: Its number, above those saved before.
      state: Pytree of arrays, none of them empty or of 64 bits.
      meta: Whatever JSON can hold, such as the state of the data pipeline.
    """
    if step in self._manager.all_steps():
      return
    state = tree_util.tree_map(_to_data, state)
    _check_types(state)
    leaves = {
      path: _describe(leaf, checksum=True) for path, leaf in _paths(state)
    }
    done = self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        meta=ocp.args.JsonSave({"meta": meta or {}, "leaves": leaves}),
      ),
    )
    if not done:
      raise ValueError(
        f"step {step} is not above the newest, {self._manager.latest_step()}"
      )

  def wait(self) -> None:
    """Returns once every save is complete on disk."""
    self._manager.wait_until_finished()

  def steps(self) -> tuple[int, ...]:
    """Returns the steps of all complete checkpoints, oldest first."""
    return tuple(sorted(self._manager.all_steps()))

  def latest(self) -> int | None:
    """Returns the step of the newest complete checkpoint, or None."""
    steps = self.steps()
    return steps[-1] if steps else None

  def restore(
    self, step: int, abstract_state: Any
  ) -> tuple[Any, dict[str, Any]]:
    """Returns the state and the meta data of one checkpoint.

    Args:
      step: One of `steps()`.
      abstract_state: The tree to restore into, of `jax.ShapeDtypeStruct`s (or
        arrays); each leaf goes to the sharding that its struct names, else to
        the default device.

    Raises:
      UserError: the checkpoint holds another tree.
      CorruptError: its files are damaged.
    """
    where = self._directory / str(step)
    try:
      stored = self._manager.restore(
        step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
      )[_META]
      meta, leaves = stored["meta"], stored["leaves"]
    # Orbax and its storage raise whatever their layers raise.
    except Exception as error:
      raise CorruptError(f"{where}: {_one_line(error)}") from error
    wanted = tree_util.tree_map(_data_struct, abstract_state)
    _check_leaves(leaves, wanted, where)
    try:
      state = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
      )[_STATE]
    except Exception as error:
      raise CorruptError(f"{where}: {_one_line(error)}") from error
    for path, leaf in _paths(state):
      if _describe(leaf, checksum=True) != leaves[path]:
        raise CorruptError(f"{where}: {path} differs from what was saved")
    return tree_util.tree_map(_from_data, state, abstract_state), meta

  def restore_latest(
    self, abstract_state: Any
  ) -> tuple[int, Any, dict[str, Any]] | None:
    """Returns step, state and meta of the newest sound checkpoint, or None.

    A damaged one is logged and put aside (in "<folder>.damaged"), so that its
    step can be saved again, and the one before it is tried.

    Raises:
      UserError: there are checkpoints, but none can be read; or the newest
        sound one holds another tree.
    """
    damaged = []
    for step in reversed(self.steps()):
      try:
        state, meta = self.restore(step, abstract_state)
      except CorruptError as error:
        _LOG.warning(
          "damaged checkpoint put aside, trying the one before: %s",
          str(error),
        )
        # Its text only: the traceback would keep half-read arrays alive.
        damaged.append((step, str(error)))
        continue
      self._put_aside([step for step, _ in damaged])
      return step, state, meta
    if damaged:
      raise errors.UserError(
        f"{self._directory}: none of the {len(damaged)} checkpoints can be "
        f"read ({damaged[0][1]}); remove the folder to begin again"
      )
    return None

  def close(self) -> None:
    """Finishes pending saves and frees the manager's threads."""
    self._manager.close()

  def _put_aside(self, steps: list[int]) -> None:
    """Moves checkpoints out of the way of new ones with the same step."""
    if not steps:
      return
    aside = self._directory.with_name(self._directory.name + ".damaged")
    aside.mkdir(exist_ok=True)
    for step in steps:
      shutil.rmtree(aside / str(step), ignore_errors=True)
      os.replace(self._directory / str(step), aside / str(step))
    self._manager.reload()


def _is_key(leaf: Any) -> bool:
  """Returns whether a leaf is an array of typed PRNG keys."""
  return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )


def _to_data(leaf: Any) -> Any:
  """Returns the leaf in a form that storage knows."""
  return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _data_struct(leaf: Any) -> jax.ShapeDtypeStruct:
  """Returns what the stored form of a leaf looks like."""
  sharding = getattr(leaf, "sharding", None)
  if _is_key(leaf):
    shape = jax.eval_shape(jax.random.key_data, _struct(leaf))
  else:
    shape = _struct(leaf)
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _from_data(data: Any, like: Any) -> Any:
  """Returns the leaf that the data stand for: the inverse of `_to_data`."""
  if not _is_key(like):
    return data
  kinds = []

  def look(key: jax.Array) -> jax.Array:
    kinds.append(jax.random.key_impl(key))
    return key

  jax.eval_shape(look, _struct(like))
  return jax.random.wrap_key_data(data, impl=kinds[0])


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
  """Returns the shape and type of an array, of a struct or of a number."""
  if hasattr(leaf, "dtype"):
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)
  return jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype)


def _paths(tree: Any) -> list[tuple[str, Any]]:
  """Returns the leaves of a tree with their '/'-joined paths."""
  return [
    (tree_util.keystr(keys, simple=True, separator="/"), leaf)
    for keys, leaf in tree_util.tree_leaves_with_path(tree)
  ]


def _describe(leaf: Any, *, checksum: bool) -> dict[str, Any]:
  """Returns the shape, the type and perhaps the CRC-32 of a leaf."""
  struct = _struct(leaf)
  result = {"shape": list(struct.shape), "dtype": str(struct.dtype)}
  if checksum:
    # Shards of other processes are out of reach: theirs is no checksum.
    reachable = getattr(leaf, "is_fully_addressable", True)
    result["crc32"] = (
      zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))
      if reachable
      else None
    )
  return result


def _check_types(state: Any) -> None:
  """Raises when a leaf would not come back from JAX with the same bits."""
  wide = [
    f"{path} {_struct(leaf).dtype}"
    for path, leaf in _paths(state)
    if jax.dtypes.canonicalize_dtype(_struct(leaf).dtype) != _struct(leaf).dtype
  ]
  if wide:
    raise TypeError(
      f"JAX would shorten these leaves when it restores them: {wide}; store "
      "32-bit arrays, or put the numbers in `meta`"
    )


def _check_leaves(
  stored: dict[str, dict[str, Any]], wanted: Any, where: pathlib.Path
) -> None:
  """Raises UserError when a checkpoint's tree is not the wanted one."""
  found = {
    path: (leaf["shape"], leaf["dtype"]) for path, leaf in stored.items()
  }
  asked = {}
  for path, leaf in _paths(wanted):
    leaf = _describe(leaf, checksum=False)
    asked[path] = leaf["shape"], leaf["dtype"]
  problems = [
    f"{path}: stored {_say(found.get(path))}, needed {_say(asked.get(path))}"
    for path in sorted(found.keys() | asked.keys())
    if found.get(path) != asked.get(path)
  ]
  if problems:
    listed = "; ".join(problems[:20])
    if len(problems) > 20:
      listed += f"; and {len(problems) - 20} more"
    raise errors.UserError(
      f"{where}: a checkpoint of another state, {len(problems)} arrays do not "
      f"fit: {listed}. Use another --workdir"
    )


def _say(leaf: tuple[list[int], str] | None) -> str:
  """Returns a shape and type for a message."""
  return "none" if leaf is None else f"{leaf[1]}{leaf[0]}"


def _one_line(error: Exception) -> str:
  """Returns the beginning of an error's text without line breaks."""
  return " ".join(f"{type(error).__name__}: {error}".split())[:200]

"""The folder of one run: of one program and config, one process at a time."""

import contextlib
import fcntl
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from comp_jax import errors
from comp_jax.interop import atomic

CONFIG = "config.json"
# Its key that is no part of the config.
PROGRAM = "program"
# Why the last process that ran here stopped, where that was a mistake to mend.
FAILURE = "failure.json"
_LOCK = ".lock"
_ABSENT = "(absent)"


def open_workdir(
  path: str | os.PathLike, config: Mapping[str, Any], program: str
) -> None:
  """Leaves a writable folder that holds exactly this program's config.

  The first call creates the folder and writes `config.json`; later ones
  compare with it.

  Args:
    path: The folder.
    config: Nested dict of whatever JSON can hold, with string keys. Tuples
      count as lists.
    program: What the run is of: two of them with one config write files of the
      same names. A folder that names none, as older ones do, is anybody's.

  Raises:
    UserError: the folder cannot be written, belongs to something else, or
      holds a run of another program or with another config.
  """
  path = pathlib.Path(path)
  _create(path)
  _refuse_foreign(path)
  _check_writable(path)
  file = path / CONFIG
  if not file.exists():
    write(path, config, program)
    return
  try:
    stored = dict(json.loads(file.read_text(encoding="utf-8")))
  except (ValueError, TypeError, OSError) as error:
    raise errors.UserError(
      f"{file}: not readable as JSON ({error}); use another --workdir, or "
      "remove this one"
    ) from error
  owner = stored.setdefault(PROGRAM, program)
  if owner != program:
    raise errors.UserError(
      f"{path} holds a run of {owner}; give {program} another --workdir"
    )
  # As JSON has it: tuples are lists.
  wanted = json.loads(atomic.to_json({PROGRAM: program, **config}))
  differences = diff(stored, wanted)
  if differences:
    listed = "; ".join(
      f"{key}: {before} there, {now} now"
      for key, (before, now) in differences.items()
    )
    raise errors.UserError(
      f"{path} holds a run with another config ({listed}); use another "
      "--workdir, or the same config to resume"
    )


def write(
  path: str | os.PathLike, config: Mapping[str, Any], program: str
) -> None:
  """Makes this the config of a claimed folder, whatever stood there."""
  named = {PROGRAM: program, **config}
  atomic.write_json(pathlib.Path(path) / CONFIG, named)


def point(group: str | os.PathLike[str], number: int) -> pathlib.Path:
  """The folder of one point of a sweep's group."""
  return pathlib.Path(group) / f"point_{number}"


def diff(
  before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
  """Returns the dotted keys that differ, with both values as JSON text."""
  before, now = _leaves(before), _leaves(now)
  result = {}
  for key in sorted(before.keys() | now.keys()):
    values = before.get(key, _ABSENT), now.get(key, _ABSENT)
    if values[0] != values[1]:
      result[key] = values
  return result


@contextlib.contextmanager
def lock(path: str | os.PathLike) -> Iterator[None]:
  """Holds the folder for this process until the block ends.

  The operating system lets go of the lock when the process dies, however it
  dies, so that a killed run never blocks the next one.

  Raises:
    UserError: another process holds it.
  """
  path = pathlib.Path(path)
  _create(path)
  _refuse_foreign(path)
  try:
    handle = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
  except OSError as error:
    raise _unwritable(path, error) from error
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise errors.UserError(
        f"{path}: another run is using this workdir; wait for it, or use "
        "another --workdir"
      ) from error
    yield
  finally:
    os.close(handle)


@contextlib.contextmanager
def claim(
  path: str | os.PathLike, config: Mapping[str, Any], program: str
) -> Iterator[pathlib.Path]:
  """Yields the folder, locked and of this program's config: see both above.

  A UserError inside the block leaves its reason in `failure.json` until the
  next process claims the folder.
  """
  path = pathlib.Path(path)
  with lock(path):
    open_workdir(path, config, program)
    (path / FAILURE).unlink(missing_ok=True)
    try:
      yield path
    except errors.UserError as error:
      atomic.write_json(path / FAILURE, {"reason": errors.one_line(error)})
      raise


def _create(path: pathlib.Path) -> None:
  """Makes the folder and its parents."""
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise _unwritable(path, error) from error


def _refuse_foreign(path: pathlib.Path) -> None:
  """Raises when the folder has contents but no config of ours."""
  try:
    names = sorted(entry.name for entry in path.iterdir())
  except OSError as error:
    raise _unwritable(path, error) from error
  # A run killed in its first moments leaves these two kinds of file only.
  held = [
    name
    for name in names
    if name != _LOCK and not name.startswith(f".{CONFIG}.tmp.")
  ]
  if not held or (CONFIG in held and _ours(path / CONFIG)):
    return
  what = f"{held[0]!r} and no {CONFIG}"
  if CONFIG in held:
    what = f"a {CONFIG} of something else"
  raise errors.UserError(
    f"{path}: not a workdir of ours (it holds {what}); use a new or empty "
    "--workdir"
  )


def _ours(file: pathlib.Path) -> bool:
  """Whether a `config.json`, a common name, may be that of a run."""
  try:
    stored = json.loads(file.read_text(encoding="utf-8"))
  except (ValueError, OSError):
    return True  # What it is instead is `open_workdir`'s to tell.
  # Of a version that named no program, a config has a seed at least.
  return isinstance(stored, dict) and bool(stored.keys() & {PROGRAM, "seed"})


def _check_writable(path: pathlib.Path) -> None:
  """Raises when no file can be made in the folder."""
  try:
    with tempfile.TemporaryFile(dir=path):
      pass
  except OSError as error:
    raise _unwritable(path, error) from error


def _unwritable(path: pathlib.Path, error: OSError) -> errors.UserError:
  """Returns the error for a folder that cannot be used."""
  return errors.UserError(
    f"{path}: cannot write there ({error.strerror or error}); use another "
    "--workdir"
  )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
  """Returns the JSON text of each leaf under its dotted key."""
  result = {}
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      result.update(_leaves(value, f"{prefix}{key}."))
    else:
      result[f"{prefix}{key}"] = json.dumps(value, sort_keys=True)
  return result

"""Files that are either the old ones or the new ones, never half of each."""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path whose file becomes `path` when the block ends.

  The temporary file lies in the same folder, so that the last step is a
  rename. When the block raises, `path` is left as it was.

  Args:
    path: The file to write or replace; its folder must exist.
  """
  path = pathlib.Path(path)
  handle, name = tempfile.mkstemp(prefix=f".{path.name}.tmp.", dir=path.parent)
  os.close(handle)
  temporary = pathlib.Path(name)
  try:
    yield temporary
    # mkstemp makes files that only their owner may read.
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)
    with open(temporary, "rb") as file:
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes one text file atomically, as UTF-8."""
  with replacing(path) as temporary:
    temporary.write_text(text, encoding="utf-8")


def to_json(value: Any, sort_keys: bool = True) -> str:
  """Returns JSON with two spaces and a last newline.

  Equal values give equal bytes, unless the order of the keys has a meaning.
  """
  text = json.dumps(value, indent=2, sort_keys=sort_keys, ensure_ascii=False)
  return text + "\n"


def write_json(
  path: str | os.PathLike, value: Any, sort_keys: bool = True
) -> None:
  """Writes one JSON file atomically; see `to_json`."""
  write_text(path, to_json(value, sort_keys))

"""`examples.npz`: what a fine-tuned model did on each reported example.

An array per split and outcome, named `split/outcome` (see `tasks.outcomes`),
its rows in the order of the split. Metrics that are means of these can be
given intervals over examples; `report.json` has the metrics themselves.
"""

import pathlib
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np

from comp_jax import errors
from comp_jax.interop import atomic
from comp_jax.tasks import outcomes

NAME = "examples.npz"
# What NumPy says of a file that is cut or damaged.
_BROKEN = (
  EOFError,
  OSError,
  ValueError,
  zipfile.BadZipFile,
  zlib.error,
)


def write(folder: pathlib.Path, found: Mapping[str, outcomes.Outcomes]) -> None:
  """Writes the outcomes of every split, in one step; equal ones, equal bytes.

  Where no split has any (captions), there is no file.

  Args:
    folder: of the run, made when missing.
    found: split -> what an evaluation found.
  """
  arrays = {
    f"{split}/{name}": array
    for split, each in found.items()
    for name, array in each.examples.items()
  }
  if not arrays:
    return
  folder.mkdir(parents=True, exist_ok=True)
  with atomic.replacing(folder / NAME) as temporary:
    with temporary.open("wb") as stream:
      np.savez_compressed(stream, **arrays)


def read(folder: pathlib.Path, split: str) -> dict[str, np.ndarray]:
  """The outcomes of a split by name; empty where the run kept none.

  Raises:
    UserError: the file cannot be read.
  """
  path, prefix = folder / NAME, f"{split}/"
  if not path.exists():
    return {}
  try:
    # Opened here: NumPy leaves a file that it cannot read open.
    with path.open("rb") as stream:
      stored = np.load(stream, allow_pickle=False)
      return {
        name.removeprefix(prefix): stored[name]
        for name in stored.files
        if name.startswith(prefix)
      }
  except _BROKEN as error:
    raise errors.UserError(
      f"cannot read the outcomes {path}: {error}; without this file the run is "
      "compared by its metrics alone"
    ) from error

"""Writes a run's report: JSON for programs, Markdown, a page, the samples."""

import collections.abc
import io
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from comp_jax import errors
from comp_jax.report import html, schema, tables

SAMPLES_NAME = "samples.npz"


def write(
  workdir: str | os.PathLike[str],
  report: collections.abc.Mapping[str, Any],
  samples: collections.abc.Mapping[str, Any] | None = None,
) -> schema.Report:
  """The report as written: plain Python values, NaN and infinities as None.

  Every file is rendered before the first is written, and each replaces its
  predecessor in one step, `report.json` last: where that file exists, the
  others are whole and of the same run.

  Args:
    workdir: the run's folder, made when missing.
    report: a report as `schema.SHAPE` describes it; array scalars are fine.
    samples: `image` uint8 [s, H, W, 3], `valid` bool [s, layers + 1,
      1 + patches] and `text`, s strings; None for none.
  """
  report = plain(report)
  schema.check(report)
  files = {}
  if samples is not None:
    samples = _checked(samples)
    files[SAMPLES_NAME] = _npz(samples)
  files["report.html"] = html.page(report, samples).encode("utf-8")
  files["report.md"] = markdown(report).encode("utf-8")
  files[schema.FILE_NAME] = (
    json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
  ).encode("utf-8")
  write_files(pathlib.Path(workdir), files)
  return report


def markdown(report: schema.Report) -> str:
  """The whole `report.md` of a checked report."""
  parts = [
    f"# {_line(report['name'])}\n",
    f"Recipe {_line(report['recipe'])}, ratio {report['ratio']:g}, "
    f"seed {report['seed']}, {_line(report['created'])}.\n",
  ]
  for grid in tables.summary(report):
    parts.append(f"## {grid.title}\n\n{tables.markdown(grid)}")
  parts.append("".join(f"- {line}\n" for line in tables.notes(report)))
  if report["stages"]:
    parts.append(f"## Stages\n\n{tables.markdown(tables.stages(report))}")
  config = json.dumps(report["config"], indent=2, ensure_ascii=False)
  parts.append(f"## Configuration\n\n```json\n{config}\n```\n")
  versions = sorted(report["versions"].items())
  lines = "".join(f"- {name} {version}\n" for name, version in versions)
  parts.append(f"## Versions\n\n{lines}")
  return "\n".join(parts)


def read_samples(workdir: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """The arrays of a run's `samples.npz`."""
  path = pathlib.Path(workdir) / SAMPLES_NAME
  try:
    with np.load(path, allow_pickle=False) as stored:
      return {name: stored[name] for name in ("image", "valid", "text")}
  except (OSError, ValueError, KeyError) as error:
    raise errors.UserError(
      f"cannot read the samples {path}: {error}; run the job again"
    ) from error


def plain(value: Any) -> Any:
  """The value as JSON can hold it: arrays as lists, NaN and inf as None."""
  if isinstance(value, bool | str) or value is None:
    return value
  if isinstance(value, int):
    return int(value)
  if isinstance(value, float):
    return float(value) if math.isfinite(value) else None
  if isinstance(value, np.generic) or hasattr(value, "tolist"):
    return plain(value.tolist())
  # Configurations are mappings in all but name.
  if hasattr(value, "items"):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple | set | frozenset):
    return [plain(item) for item in value]
  return str(value)


def _checked(samples: collections.abc.Mapping[str, Any]) -> dict[str, Any]:
  image = np.asarray(samples["image"])
  valid = np.asarray(samples["valid"])
  text = np.asarray([str(line) for line in samples["text"]], dtype=np.str_)
  fits = (
    image.ndim == 4
    and image.shape[-1] == 3
    and image.dtype == np.uint8
    and valid.ndim == 3
    and len(image) == len(valid) == len(text)
  )
  if not fits:
    raise errors.UserError(
      f"samples do not fit: image {image.dtype} {image.shape}, valid "
      f"{valid.dtype} {valid.shape}, text {text.shape}; they should be uint8 "
      "[s, H, W, 3], bool [s, layers + 1, 1 + patches] and s strings"
    )
  return {"image": image, "valid": valid.astype(bool), "text": text}


def _npz(arrays: collections.abc.Mapping[str, np.ndarray]) -> bytes:
  stream = io.BytesIO()
  np.savez_compressed(stream, **arrays)
  return stream.getvalue()


def write_files(
  folder: pathlib.Path, files: collections.abc.Mapping[str, bytes]
) -> None:
  """Nothing; each file replaces its predecessor, all or none begun."""
  temporary: dict[str, pathlib.Path] = {}
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
      path = folder / f".{name}.{os.getpid()}.tmp"
      temporary[name] = path
      with open(path, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    for name in files:
      os.replace(temporary[name], folder / name)
      del temporary[name]
  except OSError as error:
    raise errors.UserError(
      f"cannot write the report to {folder}: {error.strerror or error}; "
      "choose a workdir that is writable and has room"
    ) from error
  finally:
    for path in temporary.values():
      path.unlink(missing_ok=True)


def _line(value: str) -> str:
  return " ".join(value.split())

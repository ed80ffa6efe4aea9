"""Finished runs and points of sweeps, read from their folders."""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from comp_jax import errors
from comp_jax.recipes import library
from comp_jax.recipes import recipe as recipe_lib
from comp_jax.report import schema
from comp_jax.train import examples, workdir
from comp_jax.train import settings as settings_lib

# A sweep's groups of points and what became of each, as `cli.sweep` writes
# them; the points of a group, as `train.sweep_group` does.
GROUP, INDEX = "group_{}", "index.json"
RESULTS = "results.jsonl"
# How a search is cut into stages.
STAGES = ("num_stages", "max_stages", "warmup_stages", "stage_steps")
# What is said of a method whose search is cut otherwise than most.
OWN_STAGES = "stages of its own"
RATES = ("prune.learning_rate", "finetune.learning_rate")
# What a line of a sweep's results has.
_POINT = frozenset(("status", "reason", "how", "metrics", "macs"))
_AGAIN = "the same command goes on with it"
# Path, report and, of one that is left out, the reason.
_Read = Iterator[tuple[pathlib.Path, schema.Report, str]]
# Name of the experiment, preset and pixels.
Model = tuple[str, str | None, int | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """A finished run, or a finished point of a sweep.

  Attributes:
    path: its folder, or its report.json.
    report: checked; of a swept point what its line holds.
    method: the recipe, with what its config changed of it and other runs did
      not.
    cut: the stages of its search, where they are neither those of most runs
      nor in the method's name.
  """

  path: pathlib.Path
  report: schema.Report
  method: str = ""
  cut: str = ""

  @property
  def _recipe(self) -> recipe_lib.Recipe | None:
    """Its recipe as the library has it; None where it has no such name."""
    return library.RECIPES.get(self.report["recipe"])

  @property
  def schedule(self) -> str:
    """When it raised which modes; empty where that is not known."""
    asked = _get(self.report["config"], "recipe.schedule")
    return asked or (self._recipe.schedule if self._recipe else "")

  @property
  def settings(self) -> tuple[dict[str, str] | None, ...]:
    """What the config set of how it prunes; None for what it does not have.

    In this order: fields of the recipe, and of what it prunes; the estimator,
    where the recipe names no score of its own; which steps rest, where one mode
    is raised per stage; how costs are weighed, where they are. What a config
    sets to the value that it has anyway is not set.
    """
    config = self.report["config"]
    recipe = dict(config.get("recipe") or {})
    recipe.pop("name", None)
    strategy = recipe.pop("strategy", None) or {}
    estimator = recipe.pop("estimator", None) or library.ESTIMATORS[0]
    scored = None
    if self._recipe and self._recipe.score is None:
      score = recipe.pop("score", None) or estimator
      scored = {} if score == library.ESTIMATORS[0] else {"score": score}
    if _get(config, "model.granularity") == "channel":
      recipe["granularity"] = "channel"
    if _get(config, "prune.modes"):
      recipe["modes"] = "+".join(_get(config, "prune.modes"))
    resting, weighing = None, None
    if self.schedule in recipe_lib.SINGLE:
      resting = _set(
        {
          "least_step": _but(
            _get(config, "prune.least_step"), settings_lib.Settings.least_step
          ),
          # Off, too, in runs from before there was a pace.
          "keep_pace": None if _get(config, "prune.keep_pace") else False,
        }
      )
    if self.schedule in recipe_lib.WEIGHING:
      own = self._recipe.strategy if self._recipe else None
      changed = {k: _but(v, getattr(own, k, None)) for k, v in strategy.items()}
      weighing = _set({**changed, "cost": _get(config, "prune.cost")})
    return _set(recipe), scored, resting, weighing

  @property
  def training(self) -> dict[str, str]:
    """How its search is cut into stages, and at which rates it trained."""
    config = self.report["config"]
    stages = {name: _get(config, f"prune.{name}") for name in STAGES}
    return _set({**stages, **{name: _get(config, name) for name in RATES}})

  def outcomes(self, split: str) -> dict[str, np.ndarray]:
    """Those of a split's examples; empty where the run kept none."""
    path = self.path
    return examples.read(path.parent if path.is_file() else path, split)

  @property
  def ratio(self) -> float:
    """Fraction of the MACs to remove."""
    return round(self.report["ratio"], 6)

  @property
  def key(self) -> tuple[str, float, int]:
    """Method, ratio and seed: one run of each is enough."""
    return self.method, self.ratio, self.report["seed"]

  @property
  def model(self) -> Model:
    """The experiment and the architecture that it prunes.

    Not its dense MACs: they change with the texts that are validated.
    """
    size = _get(self.report["config"], "model.image_size")
    preset = _get(self.report["config"], "model.preset")
    return self.report["name"], preset, size


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftOut:
  """A run that takes no part, and why."""

  path: pathlib.Path
  reason: str


def read(
  paths: Sequence[str | os.PathLike[str]],
) -> tuple[list[Run], list[LeftOut]]:
  """The finished runs at or below some paths, and the others.

  Args:
    paths: as `gather` takes them.

  Raises:
    UserError: a path that does not exist or holds no run.
  """
  found, left_out = {}, {}
  for folder in dict.fromkeys(p for top in paths for p in _runs(top)):
    for path, report, reason in _read(folder):
      if reason:
        left_out.setdefault(path, LeftOut(path=path, reason=reason))
      else:
        found.setdefault(path, Run(path=path, report=report))
  return list(found.values()), list(left_out.values())


def _runs(top: str | os.PathLike[str]) -> list[pathlib.Path]:
  """The runs at or below a path."""
  top = pathlib.Path(top)
  if not top.exists():
    raise errors.UserError(f"{top}: no such file or folder")
  found = [top] if top.is_file() else list(_below(top))
  if not found:
    raise errors.UserError(
      f"{top}: holds no run (a folder with {workdir.CONFIG} or "
      f"{schema.FILE_NAME}), nor does any folder below it"
    )
  return found


def _below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  if any((folder / n).exists() for n in (workdir.CONFIG, schema.FILE_NAME)):
    yield folder
    return
  for child in sorted(folder.iterdir()):
    if child.is_dir() and not child.name.startswith("."):
      yield from _below(child)


def _json(path: pathlib.Path) -> Mapping[str, Any]:
  """The object in a file; empty where there is none."""
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def _read(path: pathlib.Path) -> _Read:
  """A run, or each point of a sweep."""
  claimed = _json(path / workdir.CONFIG)
  if "groups" in claimed:
    yield from _groups(path, claimed["groups"])
  elif "points" in claimed:
    yield from _points(path, claimed["points"], _names(claimed["points"]))
  elif path.is_dir() and not (path / schema.FILE_NAME).exists():
    yield path, {}, _without_report(path, claimed)
  else:
    try:
      yield path, schema.load(path), ""
    except errors.UserError as error:
      yield path, {}, f"failed: {error}"


def _without_report(path: pathlib.Path, claimed: Mapping[str, Any]) -> str:
  """Why a folder of ours holds no report."""
  if claimed.get(workdir.PROGRAM) == "train.py":
    return "a run of train.py, which prunes nothing"
  if failure := _json(path / workdir.FAILURE):
    return f"failed: {failure.get('reason')}"
  return f"unfinished: no {schema.FILE_NAME}; {_AGAIN}"


def _groups(sweep: pathlib.Path, groups: Sequence[Mapping]) -> _Read:
  """The points of a sweep, also those of groups that never began."""
  index = _json(sweep / INDEX).get("points", ())
  every = [{**g["fixed"], **point} for g in groups for point in g["points"]]
  names = iter(_names(every))
  for number, group in enumerate(groups):
    folder, points = sweep / GROUP.format(number), group["points"]
    said = [
      row.get("reason", "") for row in index if row["group"] == folder.name
    ]
    named = list(itertools.islice(names, len(points)))
    yield from _points(folder, points, named, said)


def _names(points: Sequence[Mapping[str, Any]]) -> list[str]:
  """What tells each point of a sweep from the others."""
  keys = dict.fromkeys(key for point in points for key in point)
  varied = [key for key in keys if len({p.get(key) for p in points}) > 1]
  return [
    " ".join(f"{key}={point[key]}" for key in varied or keys)
    for point in points
  ]


def _points(
  folder: pathlib.Path,
  points: Sequence[Mapping[str, Any]],
  names: Sequence[str],
  said: Sequence[str] = (),
) -> _Read:
  """The points of a sweep's group, each as a run that was never compacted.

  Args:
    folder: of the group; need not exist.
    points: their values.
    names: of the points, for the reasons.
    said: why the group failed, by point; empty where it did not.
  """
  claimed, lines = _json(folder / workdir.CONFIG), []
  if (folder / RESULTS).exists():
    lines = (folder / RESULTS).read_text(encoding="utf-8").splitlines()
  for number, point in enumerate(points):
    path = workdir.point(folder, number)
    if number >= len(lines):
      reason = f"unfinished: not in {RESULTS}" if claimed else "not run"
      reason = f"{reason}; {_AGAIN}"
      if number < len(said) and said[number]:
        reason = f"failed: {said[number]}"
      yield path, {}, f"{reason} ({names[number]})"
      continue
    try:
      row = json.loads(lines[number])
      if not isinstance(row, dict) or not row.keys() >= _POINT:
        raise ValueError("it is no point of a sweep")
    except ValueError as error:
      yield path, {}, f"failed: line {number + 1} of {RESULTS}: {error}"
      continue
    if row["status"] != "done":
      yield path, {}, f"failed: {row['reason']} ({names[number]})"
      continue
    # What is measured masked is not set beside compact models.
    config = {**claimed["config"], "measured": row["how"]}
    for key, value in point.items():
      config = _replaced(config, key.split("."), value)
    tuned = row["metrics"]["finetuned_masked"]
    unknown = {split: dict.fromkeys(values) for split, values in tuned.items()}
    dense = row["metrics"].get("dense", unknown)
    metrics = {"dense": dense, "finetuned": tuned}
    yield path, {**row, "metrics": metrics, "config": config}, ""


def _replaced(config: Mapping, keys: Sequence[str], value: Any) -> dict:
  """The config with the value at a path."""
  key, *rest = keys
  if rest:
    value = _replaced(config.get(key) or {}, rest, value)
  return {**config, key: value}


def tuned_macs(report: schema.Report) -> float | None:
  """MACs of the row `finetuned`: at static counts, of a swept point masked."""
  macs = report["macs"]
  return macs["compacted"] if "compacted" in macs else macs["final"]


def _get(config: Mapping[str, Any], path: str) -> Any:
  section, name = path.split(".")
  return (config.get(section) or {}).get(name)


def _but(value: Any, usual: Any) -> Any:
  """The value; None where it is the usual one."""
  return None if value == usual else value


def _set(fields: Mapping[str, Any]) -> dict[str, str]:
  """The fields that have a value."""
  return {key: str(value) for key, value in fields.items() if value is not None}

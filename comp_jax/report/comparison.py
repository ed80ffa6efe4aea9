"""Recipes side by side: means, their intervals, and paired differences."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence, Set

import numpy as np
from jaxtyping import Float

from comp_jax import errors
from comp_jax.recipes import library
from comp_jax.report import bootstrap, comparable, paper, runs, tables, text
from comp_jax.tasks import outcomes

# Whole CoMP by other estimates: what differences are from where comp lacks.
FORMS = ("comp_wanda", "comp_lookahead")
# How far a metric may be from the mean of its outcomes: rounding.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """What the runs of one method at one ratio reached.

  Attributes:
    method: the recipe, with changes to it.
    ratio: fraction of the MACs to remove.
    seeds: of its runs.
    values: the fine-tuned metric of each seed.
    macs: mean of the final models.
    interval: of the mean; None for one seed without outcomes of examples.
    difference: mean over common seeds of this method minus the reference.
    difference_interval: of it, paired by seed and example; None likewise.
    difference_student: half of Student's interval of it over common seeds; None
      for a single one.
    paired: how many seeds they have in common.
    gaps: the difference of each common seed on each example; None without any.
    published: the paper's number, or None.
  """

  method: str
  ratio: float
  seeds: tuple[int, ...]
  values: tuple[float, ...]
  macs: float
  interval: bootstrap.Interval | None
  difference: float | None
  difference_interval: bootstrap.Interval | None
  difference_student: float | None
  paired: int
  gaps: Float[np.ndarray, "s n"] | None = dataclasses.field(
    repr=False, compare=False
  )
  published: float | None

  @property
  def mean(self) -> float:
    return float(np.mean(self.values))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """All methods on one model, split and metric.

  Attributes:
    name: of the experiment.
    split: of the data.
    metric: name.
    reference: the method that differences are taken from.
    dense_macs: of the dense model.
    dense: its metric, the mean over all runs.
    cells: by ratio, the best mean first.
    remarks: sentences on how its runs were made.
  """

  name: str
  split: str
  metric: str
  reference: str
  dense_macs: float
  dense: float | None
  cells: tuple[Cell, ...]
  remarks: tuple[str, ...] = ()

  @property
  def lower_is_better(self) -> bool:
    return self.metric == "loss"

  @property
  def title(self) -> str:
    arrow = "lower" if self.lower_is_better else "higher"
    metric = text.metric_name(self.metric)
    # Two models may go by one name.
    macs = text.quantity(self.dense_macs, self.dense_macs)
    return (
      f"{self.name}, {macs} MACs: {metric} on {self.split} ({arrow} is better)"
    )


def compare(
  members: Sequence[runs.Run],
  *,
  split: str | None = None,
  metric: str | None = None,
  reference: str | Sequence[str] | None = None,
) -> tuple[Comparison, list[runs.LeftOut]]:
  """Methods on one model, and the runs left out.

  Those lack the metric, or their outcomes cannot be read or are not those of
  their report.

  Args:
    members: runs of one model and config.
    split: of the data; by default the one that reports quote first.
    metric: likewise.
    reference: the method that differences are taken from, or the recipe of
      only one; of several the first that ran. By default comp, or the only
      other form of CoMP where none is, as its recipe has it if it is there.

  Raises:
    UserError: no run has the metric on the split; the reference may be any of
      several methods.
  """
  first = members[0].report
  split = split or tables.main_split(first)
  metric = metric or tables.main_metric(first, split)
  found, macs = collections.defaultdict(dict), collections.defaultdict(list)
  differing = comparable.between_ratios(members)
  left_out, dense, remarks = [], [], []
  for run in members:
    rows = {
      row: values.get(split, {}).get(metric)
      for row, values in run.report["metrics"].items()
    }
    if rows.get("finetuned") is None:
      reason = f"no fine-tuned {metric} on {split}"
      left_out.append(runs.LeftOut(path=run.path, reason=reason))
      continue
    try:
      row = _row(run, split, metric, rows["finetuned"])
    except errors.UserError as error:
      # One damaged file must not hide what all others found.
      left_out.append(runs.LeftOut(path=run.path, reason=str(error)))
      continue
    if rows["dense"] is not None:
      dense.append(rows["dense"])
    remarks += _remarks(run)
    method, ratio, seed = run.key
    found[ratio, method][seed] = row
    macs[ratio, method].append(runs.tuned_macs(run.report))
  if not found:
    raise errors.UserError(
      f"{first['name']}: no run has a fine-tuned {metric or 'metric'} on "
      f"{split}; it has {_known(first)}"
    )
  methods, asked = {method for _, method in found}, reference
  if asked and not isinstance(asked, str):
    # Tasks may call what is meant by names of their own.
    there = [one for one in asked if one in methods]
    there += [one for one in asked if one in set(map(recipe, methods))]
    asked = (there or asked)[0]
  reference = _reference(methods, asked)
  cells = []
  for (ratio, method), seeds in found.items():
    ours = [seeds[seed] for seed in sorted(seeds)]
    others = {} if method == reference else found.get((ratio, reference), {})
    gaps = _gaps(seeds, others)
    cells.append(
      Cell(
        method=method,
        ratio=ratio,
        seeds=tuple(sorted(seeds)),
        values=tuple(float(row.mean()) for row in ours),
        macs=float(np.mean(macs[ratio, method])),
        interval=bootstrap.interval(_table(ours)),
        difference=None if gaps is None else float(gaps.mean()),
        difference_interval=None if gaps is None else bootstrap.interval(gaps),
        difference_student=None if gaps is None else bootstrap.student(gaps),
        paired=0 if gaps is None else len(gaps),
        gaps=gaps,
        published=paper.published(first["name"], split, metric, method, ratio),
      )
    )
  mixed = ()
  if differing:
    mixed = (f"From ratio to ratio these differ: {', '.join(differing)}.",)
  mixed += _trainings(members, cells, reference)
  sign = 1 if metric == "loss" else -1
  cells.sort(key=lambda cell: (cell.ratio, sign * cell.mean, cell.method))
  return Comparison(
    name=first["name"],
    split=split,
    metric=metric,
    reference=reference,
    dense_macs=first["macs"]["dense"],
    dense=float(np.mean(dense)) if dense else None,
    cells=tuple(cells),
    remarks=(*mixed, *sorted(set(remarks))),
  ), left_out


def _trainings(
  members: Sequence[runs.Run], cells: Sequence[Cell], reference: str
) -> tuple[str, ...]:
  """That the dense model was trained more than once, and what that touches."""
  count = comparable.trainings(members)
  if count < 2:
    return ()
  digests = {run.key: comparable.digest(run) for run in members}
  crossing = []
  for cell in cells:
    pairs = (
      (digests[cell.method, cell.ratio, seed], other)
      for seed in cell.seeds
      if (other := digests.get((reference, cell.ratio, seed)))
    )
    if any(ours and ours != theirs for ours, theirs in pairs):
      crossing.append(f"{cell.method} at {cell.ratio:g}")
  said = (
    f"The dense model is from {count} trainings that agree within "
    f"{comparable.SAME:g} in each metric"
  )
  if crossing:
    said += f"; these differences pair runs of two: {', '.join(crossing)}"
  return (f"{said}.",)


def _remarks(run: runs.Run) -> list[str]:
  """What a run says of itself that a reader of its number must know."""
  method, ratio, seed = run.key
  here = f"{method} at {ratio:g}, seed {seed}"
  said = [(here, warning) for warning in run.report.get("warnings") or ()]
  for name, subject in (("how", "Points of a sweep"), ("reason", here)):
    if run.report.get(name):
      said.append((subject, run.report[name]))
  if run.cut:
    said.append((f"{method} at {ratio:g}", f"{runs.OWN_STAGES} {run.cut}"))
  return [f"{subject}: {sentence}." for subject, sentence in said]


def recipe(method: str) -> str:
  """The recipe of a method, without what its config changed of it."""
  return method.partition(" (")[0]


def _reference(methods: Set[str], wanted: str | None) -> str:
  """The method that is meant by a recipe; `comp` where none can be."""
  if wanted in methods:
    return wanted
  meant = {wanted} if wanted else {"comp", *FORMS}
  found = sorted(method for method in methods if recipe(method) in meant)
  if not wanted and "comp" not in methods:
    # As its recipe has it, before what a config changed of it.
    found = [method for method in found if method == recipe(method)] or found
  if len(found) == 1:
    return found[0]
  if wanted and found:
    raise errors.UserError(
      f"--reference {wanted} may be any of: {'; '.join(found)}; name one"
    )
  if wanted and wanted not in library.RECIPES:
    raise errors.UserError(
      f"--reference {wanted}: no such recipe; there are {'; '.join(methods)}"
    )
  return wanted or "comp"


def _row(
  run: runs.Run, split: str, metric: str, value: float
) -> Float[np.ndarray, " n"]:
  """What each example gives to a run's metric; where unknown, its value."""
  row = outcomes.values(metric, run.outcomes(split))
  if row is None:
    return np.array([value], float)
  if abs(row.mean() - value) > _ROUNDING:
    raise errors.UserError(
      f"its outcomes make a {metric} of {row.mean():.6g} on "
      f"{split}, its report has {value:.6g}; they are of different runs"
    )
  return row


def _table(rows: Sequence[Float[np.ndarray, " _"]]) -> Float[np.ndarray, "s n"]:
  """The rows of runs where all are of one length, else their means."""
  if len({len(row) for row in rows}) > 1:
    rows = [np.mean(row, keepdims=True) for row in rows]
  return np.stack(rows)


def _gaps(
  ours: Mapping[int, Float[np.ndarray, " _"]],
  theirs: Mapping[int, Float[np.ndarray, " _"]],
) -> Float[np.ndarray, "s n"] | None:
  """By how much runs differ from those of the same seed; None without any."""
  common = sorted(ours.keys() & theirs.keys())
  if not common:
    return None
  both = _table([each[seed] for each in (ours, theirs) for seed in common])
  return both[: len(common)] - both[len(common) :]


def _known(report: Mapping) -> str:
  return "; ".join(
    f"{split}: {', '.join(values)}"
    for split, values in report["metrics"]["dense"].items()
  )

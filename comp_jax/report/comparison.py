"""Recipes side by side: means, their intervals, and paired differences."""

import collections
import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence, Set

import numpy as np
from jaxtyping import Float

from comp_jax import errors
from comp_jax.report import bootstrap, paper, runs, tables, text
from comp_jax.tasks import outcomes

# Whole CoMP by other estimates: what differences are from where comp lacks.
_FORMS = ("comp_wanda", "comp_lookahead")
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
    paired: how many seeds they have in common.
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
  paired: int
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
  reference: str | None = None,
) -> tuple[Comparison, list[runs.LeftOut]]:
  """Methods on one model, and the runs left out.

  Those lack the metric, or their outcomes cannot be read or are not those of
  their report.

  Args:
    members: runs of one model and config.
    split: of the data; by default the one that reports quote first.
    metric: likewise.
    reference: the method that differences are taken from; by default comp, or
      the only other form of CoMP where none is.

  Raises:
    UserError: no run has the metric on the split.
  """
  first = members[0].report
  split = split or tables.main_split(first)
  metric = metric or tables.main_metric(first, split)
  found, macs = collections.defaultdict(dict), collections.defaultdict(list)
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
    macs[ratio, method].append(run.report["macs"]["final"])
  if not found:
    raise errors.UserError(
      f"{first['name']}: no run has a fine-tuned {metric} on {split}; it has "
      + _known(first)
    )
  reference = reference or _reference({method for _, method in found})
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
        paired=0 if gaps is None else len(gaps),
        published=paper.published(first["name"], split, metric, method, ratio),
      )
    )
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
    remarks=tuple(sorted(set(remarks))),
  ), left_out


def _remarks(run: runs.Run) -> list[str]:
  """What a point of a sweep says of itself; a run's report says it there."""
  method, ratio, seed = run.key
  subjects = {
    "how": "Points of a sweep",
    "reason": f"{method} at {ratio:g}, seed {seed}",
  }
  return [
    f"{subject}: {run.report[name]}."
    for name, subject in subjects.items()
    if run.report.get(name)
  ]


def _reference(methods: Set[str]) -> str:
  """`comp`, or the only other form of it among these."""
  forms = [form for form in _FORMS if form in methods]
  return "comp" if "comp" in methods or len(forms) != 1 else forms[0]


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


def grids(comparison: Comparison) -> list[tables.Grid]:
  """One table per ratio; the paper's column only where it has a number."""
  by_ratio = collections.defaultdict(list)
  for cell in comparison.cells:
    by_ratio[cell.ratio].append(cell)
  some = any(cell.published is not None for cell in comparison.cells)
  columns = (
    "Recipe",
    "Seeds",
    "MACs",
    "removed",
    "mean",
    "95\u00a0% interval",
    f"− {comparison.reference}",
    "95\u00a0% interval",
    *(("paper",) if some else ()),
  )
  return [
    tables.Grid(
      title=f"Ratio {ratio:g}",
      columns=columns,
      rows=tuple(
        (
          cell.method,
          ", ".join(map(str, cell.seeds)),
          text.quantity(cell.macs, comparison.dense_macs),
          text.removed(cell.macs, comparison.dense_macs),
          text.number(cell.mean),
          _span(cell.interval),
          _difference(cell),
          _span(cell.difference_interval, text.signed),
          *((text.number(cell.published),) if some else ()),
        )
        for cell in cells
      ),
      left=1,
    )
    for ratio, cells in by_ratio.items()
  ]


def notes(comparison: Comparison) -> list[str]:
  """Sentences that the tables need to be read rightly."""
  lines = [
    f"Dense: {text.number(comparison.dense)} at "
    f"{text.quantity(comparison.dense_macs, comparison.dense_macs)}.",
    "Means of the fine-tuned models. Intervals are percentiles of "
    f"{bootstrap.RESAMPLES:,} bootstrap resamples; differences are paired with "
    f"{comparison.reference}, by seed and by example. A handful of seeds makes "
    "an interval too narrow, a single one leaves out how seeds differ.",
  ]
  columns = {
    "mean": [cell.interval for cell in comparison.cells],
    "difference": [cell.difference_interval for cell in comparison.cells],
  }
  for name, intervals in columns.items():
    if any(intervals):
      lines.append(
        f"Interval of the {name}: {_drawn(comparison.cells, intervals)}."
      )
  if any(
    interval and interval.over == bootstrap.SEEDS
    for intervals in columns.values()
    for interval in intervals
  ):
    lines.append(
      "Over seeds alone: a metric that is no mean over examples, or runs "
      "without outcomes of the same ones; it leaves out how examples differ."
    )
  methods = {cell.method for cell in comparison.cells}
  if comparison.reference not in methods:
    lines.append(f"No run of {comparison.reference}: nothing to differ from.")
  elif comparison.reference in _FORMS and "comp" not in methods:
    lines.append(
      f"No run of comp: differences are from {comparison.reference}."
    )
  if any(cell.published is not None for cell in comparison.cells):
    lines.append(
      "“paper”: the same model and split with the authors' budget, not a run "
      "of this code; its ratios are of its own count of MACs."
    )
  return [*lines, *comparison.remarks]


def to_csv(comparisons: Sequence[Comparison]) -> str:
  """One line per cell, full precision."""
  stream = io.StringIO()
  writer = csv.writer(stream, lineterminator="\n")
  writer.writerow(
    [
      "name",
      "split",
      "metric",
      "ratio",
      "recipe",
      "seeds",
      "macs",
      "dense_macs",
      "mean",
      "low",
      "high",
      "over",
      "reference",
      "paired_seeds",
      "difference",
      "difference_low",
      "difference_high",
      "difference_over",
      "paper",
    ]
  )
  for comparison in comparisons:
    for cell in comparison.cells:
      writer.writerow(
        [
          comparison.name,
          comparison.split,
          comparison.metric,
          cell.ratio,
          cell.method,
          " ".join(map(str, cell.seeds)),
          cell.macs,
          comparison.dense_macs,
          cell.mean,
          *_ends(cell.interval),
          comparison.reference,
          cell.paired,
          cell.difference,
          *_ends(cell.difference_interval),
          cell.published,
        ]
      )
  return stream.getvalue()


def to_markdown(
  comparisons: Sequence[Comparison], left_out: Sequence[runs.LeftOut]
) -> str:
  """All tables, and the runs that take no part."""
  parts = ["# Comparison\n"]
  for comparison in comparisons:
    parts.append(f"## {comparison.title}\n")
    for grid in grids(comparison):
      parts.append(f"### {grid.title}\n\n{tables.markdown(grid)}")
    parts.append("".join(f"- {line}\n" for line in notes(comparison)))
  if left_out:
    lines = "".join(f"- {line}\n" for line in omissions(left_out))
    parts.append(f"## Left out\n\n{lines}")
  return "\n".join(parts)


def omissions(left_out: Sequence[runs.LeftOut]) -> list[str]:
  """Each run that takes no part, with the reason."""
  return [f"{run.path}: {run.reason}" for run in left_out]


def _difference(cell: Cell) -> str:
  if cell.difference is None:
    return text.NOTHING
  words = text.signed(cell.difference)
  if cell.paired < len(cell.seeds):
    words += f" ({cell.paired} of {len(cell.seeds)})"
  return words


def _span(interval: bootstrap.Interval | None, show=text.number) -> str:
  if interval is None:
    return text.NOTHING
  return f"{show(interval.low)} to {show(interval.high)}"


def _ends(interval: bootstrap.Interval | None) -> tuple:
  if interval is None:
    return None, None, None
  return interval.low, interval.high, interval.over


def _drawn(
  cells: Sequence[Cell], intervals: Sequence[bootstrap.Interval | None]
) -> str:
  """What a column's intervals are over; all kinds but the first name cells."""
  kinds = collections.defaultdict(list)
  for cell, interval in zip(cells, intervals, strict=True):
    if interval is not None:
      kinds[interval.over].append(f"{cell.method} at {cell.ratio:g}")
  first, *others = sorted(kinds, key=lambda kind: -len(kinds[kind]))
  return "; ".join(
    [f"over {first}", *(f"over {k}: {', '.join(kinds[k])}" for k in others)]
  )


def _known(report: Mapping) -> str:
  return "; ".join(
    f"{split}: {', '.join(values)}"
    for split, values in report["metrics"]["dense"].items()
  )

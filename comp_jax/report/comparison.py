"""Recipes side by side: means, intervals over seeds, and paired differences."""

import collections
import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence

import numpy as np

from comp_jax import errors
from comp_jax.report import paper, runs, tables, text

# Of the bootstrap; drawn from a fixed seed, so that a table is reproducible.
RESAMPLES = 10_000
LEVEL = 0.95

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
  """What the runs of one method at one ratio reached.

  Attributes:
    method: the recipe, with changes to it.
    ratio: fraction of the MACs to remove.
    seeds: of its runs.
    values: the fine-tuned metric of each seed.
    macs: mean of the final models.
    interval: of the mean, over seeds; None for one seed.
    difference: mean over common seeds of this method minus the reference.
    difference_interval: of it; None for fewer than two common seeds.
    paired: how many seeds they have in common.
    published: the paper's number, or None.
  """

  method: str
  ratio: float
  seeds: tuple[int, ...]
  values: tuple[float, ...]
  macs: float
  interval: Interval | None
  difference: float | None
  difference_interval: Interval | None
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
  """

  name: str
  split: str
  metric: str
  reference: str
  dense_macs: float
  dense: float | None
  cells: tuple[Cell, ...]

  @property
  def lower_is_better(self) -> bool:
    return self.metric == "loss"

  @property
  def title(self) -> str:
    arrow = "lower" if self.lower_is_better else "higher"
    metric = text.metric_name(self.metric)
    return f"{self.name}: {metric} on {self.split} ({arrow} is better)"


def bootstrap(values: Sequence[float]) -> Interval | None:
  """The 95 % percentile interval of the mean; None for fewer than two."""
  if len(values) < 2:
    return None
  rng = np.random.default_rng(0)
  drawn = rng.integers(0, len(values), (RESAMPLES, len(values)))
  means = np.asarray(values, float)[drawn].mean(axis=1)
  low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
  return float(low), float(high)


def compare(
  members: Sequence[runs.Run],
  *,
  split: str | None = None,
  metric: str | None = None,
  reference: str = "comp",
) -> tuple[Comparison, list[runs.LeftOut]]:
  """Methods on one model, and the runs that lack the metric.

  Args:
    members: runs of one model and config.
    split: of the data; by default the one that reports quote first.
    metric: likewise.
    reference: the method that differences are taken from.

  Raises:
    UserError: no run has the metric on the split.
  """
  first = members[0].report
  split = split or tables.main_split(first)
  metric = metric or tables.main_metric(first, split)
  found = collections.defaultdict(dict)
  left_out, dense = [], []
  for run in members:
    rows = {
      row: values.get(split, {}).get(metric)
      for row, values in run.report["metrics"].items()
    }
    if rows.get("finetuned") is None:
      reason = f"no fine-tuned {metric} on {split}"
      left_out.append(runs.LeftOut(path=run.path, reason=reason))
      continue
    if rows["dense"] is not None:
      dense.append(rows["dense"])
    method, ratio, seed = run.key
    found[ratio, method][seed] = (
      rows["finetuned"],
      run.report["macs"]["final"],
    )
  if not found:
    raise errors.UserError(
      f"{first['name']}: no run has a fine-tuned {metric} on {split}; it has "
      + _known(first)
    )
  data = first["config"].get("data", {}).get("name", "")
  cells = []
  for (ratio, method), seeds in found.items():
    theirs = found.get((ratio, reference), {})
    common = sorted(seeds.keys() & theirs.keys())
    gaps = [seeds[s][0] - theirs[s][0] for s in common]
    itself = method == reference
    values = tuple(seeds[s][0] for s in sorted(seeds))
    cells.append(
      Cell(
        method=method,
        ratio=ratio,
        seeds=tuple(sorted(seeds)),
        values=values,
        macs=float(np.mean([macs for _, macs in seeds.values()])),
        interval=bootstrap(values),
        difference=None if itself or not gaps else float(np.mean(gaps)),
        difference_interval=None if itself else bootstrap(gaps),
        paired=0 if itself else len(common),
        published=paper.published(data, split, metric, method, ratio),
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
  ), left_out


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
    f"{RESAMPLES:,} bootstrap resamples over seeds; differences are paired by "
    f"seed with {comparison.reference}. One seed has no interval, and a "
    "handful makes it too narrow.",
  ]
  if comparison.reference not in {cell.method for cell in comparison.cells}:
    lines.append(f"No run of {comparison.reference}: nothing to differ from.")
  if any(cell.published is not None for cell in comparison.cells):
    lines.append(
      "“paper”: BLIP on NLVR2 with the authors' budget, not a run of this code."
    )
  return lines


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
      "reference",
      "paired_seeds",
      "difference",
      "difference_low",
      "difference_high",
      "paper",
    ]
  )
  nothing = (None, None)
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
          *(cell.interval or nothing),
          comparison.reference,
          cell.paired,
          cell.difference,
          *(cell.difference_interval or nothing),
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


def _span(interval: Interval | None, show=text.number) -> str:
  return text.NOTHING if interval is None else " to ".join(map(show, interval))


def _known(report: Mapping) -> str:
  return "; ".join(
    f"{split}: {', '.join(values)}"
    for split, values in report["metrics"]["dense"].items()
  )

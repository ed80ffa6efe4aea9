"""A comparison as tables, sentences, Markdown and CSV."""

import collections
import csv
import io
from collections.abc import Mapping, Sequence

from comp_jax.report import (
  bootstrap,
  over_tasks,
  paper,
  runs,
  section,
  tables,
  text,
)
from comp_jax.report import comparison as comparison_lib


def grids(comparison: comparison_lib.Comparison) -> list[tables.Grid]:
  """One table per ratio, and which of their cells were run.

  The paper's column only where it has a number.
  """
  by_ratio = collections.defaultdict(list)
  for cell in comparison.cells:
    by_ratio[cell.ratio].append(cell)
  some = any(cell.published is not None for cell in comparison.cells)
  several = any(
    cell.difference_student is not None for cell in comparison.cells
  )
  columns = (
    "Recipe",
    "Seeds",
    "MACs",
    "removed",
    "mean",
    "95\u00a0% interval",
    f"− {comparison.reference}",
    "95\u00a0% interval",
    *(("seeds alone",) if several else ()),
    *(("paper",) if some else ()),
  )
  found = [
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
          *((_student(cell),) if several else ()),
          *((text.number(cell.published),) if some else ()),
        )
        for cell in cells
      ),
      left=1,
    )
    for ratio, cells in by_ratio.items()
  ]
  return [*found, _coverage(by_ratio)] if len(by_ratio) > 1 else found


def _coverage(
  by_ratio: Mapping[float, Sequence[comparison_lib.Cell]],
) -> tables.Grid:
  """How many seeds each method has at each ratio: what nobody ran is no 0."""
  methods = sorted(
    {cell.method for cells in by_ratio.values() for cell in cells}
  )
  seeds = {
    (cell.method, ratio): str(len(cell.seeds))
    for ratio, cells in by_ratio.items()
    for cell in cells
  }
  return tables.Grid(
    title="Seeds that were run",
    columns=("Recipe", *(f"{ratio:g}" for ratio in by_ratio)),
    rows=tuple(
      (method, *(seeds.get((method, ratio), "not run") for ratio in by_ratio))
      for method in methods
    ),
    left=1,
  )


def notes(comparison: comparison_lib.Comparison) -> list[str]:
  """Sentences that the tables need to be read rightly."""
  dense = paper.published_dense(
    comparison.name, comparison.split, comparison.metric
  )
  theirs = "" if dense is None else f" (the paper's: {text.number(dense)})"
  lines = [
    f"Dense: {text.number(comparison.dense)} at "
    f"{text.quantity(comparison.dense_macs, comparison.dense_macs)}{theirs}.",
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
  if any(cell.difference_student is not None for cell in comparison.cells):
    lines.append(
      "Seeds alone: half of Student's 95 % interval of the difference over the "
      "seeds in common, which leaves out how examples differ."
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
  elif (
    comparison_lib.recipe(comparison.reference) in comparison_lib.FORMS
    and "comp" not in methods
  ):
    lines.append(
      f"No run of comp: differences are from {comparison.reference}."
    )
  if any(cell.published is not None for cell in comparison.cells):
    lines.append(
      "“paper”: the same model and split with the authors' budget, not a run "
      "of this code; its ratios are of its own count of MACs."
    )
  if any(
    cell.published is not None and comparison_lib.recipe(cell.method) == "madtp"
    for cell in comparison.cells
  ):
    lines.append("The paper's MADTP has its alignment loss, ours does not.")
  return [*lines, *comparison.remarks]


def across(
  comparisons: Sequence[comparison_lib.Comparison],
) -> section.Section | None:
  """The mean over tasks, where methods were run on several; else None."""
  means = over_tasks.means(comparisons)
  if not means:
    return None
  tasks = list(dict.fromkeys(task for mean in means for task in mean.tasks))
  grid = tables.Grid(
    title="Differences from the reference",
    columns=("Ratio", "Recipe", *tasks, "mean"),
    rows=tuple(
      (
        f"{mean.ratio:g}",
        mean.method,
        *(_on_task(mean.cells.get(task)) for task in tasks),
        _with_interval(mean.difference, mean.interval),
      )
      for mean in means
    ),
    left=2,
  )
  kinds = dict.fromkeys(m.interval.over for m in means if m.interval)
  said = (
    "Each task's difference from its own reference, by the metric of its table "
    "above, has equal weight. Tasks are resampled apart from each other, and "
    "the tasks themselves are taken as given: the interval says nothing of "
    "others."
  )
  drawn = (f"Resampled over {' or '.join(kinds)}.",) if kinds else ()
  return section.Section(
    title="Mean over tasks", grids=(grid,), notes=(said, *drawn)
  )


def to_csv(comparisons: Sequence[comparison_lib.Comparison]) -> str:
  """One line per cell and per mean over tasks, full precision."""
  stream = io.StringIO()
  writer = csv.writer(stream, lineterminator="\n")
  columns = (
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
    "difference_student",
    "paper",
  )
  writer.writerow(columns)
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
          cell.difference_student,
          cell.published,
        ]
      )
  for mean in over_tasks.means(comparisons):
    row = dict.fromkeys(columns, None) | {
      "name": "; ".join(mean.tasks),
      "metric": "mean over tasks",
      "ratio": mean.ratio,
      "recipe": mean.method,
      "difference": mean.difference,
    }
    ends = ("difference_low", "difference_high", "difference_over")
    row |= dict(zip(ends, _ends(mean.interval), strict=True))
    writer.writerow(row.values())
  return stream.getvalue()


def to_markdown(
  comparisons: Sequence[comparison_lib.Comparison],
  left_out: Sequence[runs.LeftOut],
) -> str:
  """All tables, and the runs that take no part."""
  parts = ["# Comparison\n"]
  for comparison in comparisons:
    parts.append(f"## {comparison.title}\n")
    for grid in grids(comparison):
      parts.append(f"### {grid.title}\n\n{tables.markdown(grid)}")
    parts.append("".join(f"- {line}\n" for line in notes(comparison)))
  if common := across(comparisons):
    parts.append(f"## {common.title}\n")
    parts += [f"{tables.markdown(grid)}" for grid in common.grids]
    parts.append("".join(f"- {line}\n" for line in common.notes))
  if left_out:
    lines = "".join(f"- {line}\n" for line in omissions(left_out))
    parts.append(f"## Left out\n\n{lines}")
  return "\n".join(parts)


def omissions(left_out: Sequence[runs.LeftOut]) -> list[str]:
  """The runs that take no part, by the reason, which is said once."""
  paths = collections.defaultdict(list)
  for run in left_out:
    paths[run.reason].append(str(run.path))
  return [f"{', '.join(each)}: {reason}" for reason, each in paths.items()]


def _difference(cell: comparison_lib.Cell) -> str:
  if cell.difference is None:
    return text.NOTHING
  words = text.signed(cell.difference)
  if cell.paired < len(cell.seeds):
    words += f" ({cell.paired} of {len(cell.seeds)})"
  return words


def _on_task(cell: comparison_lib.Cell | None) -> str:
  """A method's difference on one task, and from how many seeds."""
  if cell is None:
    return text.NOTHING
  seeds = "1 seed" if cell.paired == 1 else f"{cell.paired} seeds"
  said = _with_interval(cell.difference, cell.difference_interval)
  return f"{said}, {seeds}"


def _with_interval(
  difference: float, interval: bootstrap.Interval | None
) -> str:
  span = f" ({_span(interval, text.signed)})" if interval else ""
  return f"{text.signed(difference)}{span}"


def _student(cell: comparison_lib.Cell) -> str:
  if cell.difference_student is None:
    return text.NOTHING
  return f"± {text.number(cell.difference_student)}"


def _span(interval: bootstrap.Interval | None, show=text.number) -> str:
  if interval is None:
    return text.NOTHING
  return f"{show(interval.low)} to {show(interval.high)}"


def _ends(interval: bootstrap.Interval | None) -> tuple:
  if interval is None:
    return None, None, None
  return interval.low, interval.high, interval.over


def _drawn(
  cells: Sequence[comparison_lib.Cell],
  intervals: Sequence[bootstrap.Interval | None],
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

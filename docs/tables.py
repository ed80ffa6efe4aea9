"""Writes the tables of README and docs that are made from docs/records.

  python docs/tables.py

Each stands between `<!-- NAME -->` and `<!-- end of NAME -->` in its page; the
tests hold the pages against what this makes of the records.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

from comp_jax.report import (
  bootstrap,
  comparable,
  compared,
  comparison,
  over_tasks,
  runs,
  tables,
  text,
)

# What `compare` says of runs that did not, behind their recipe.
_MISSED = "did not reach the ratio"
ROOT = pathlib.Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "records"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Tables of one comparison on a page.

  Attributes:
    name: of its place.
    page: below the root.
    records: globs of runs and sweeps below docs/records.
    split: of the data.
    metrics: one comparison each.
    reference: the method that differences are from, the first that ran; None
      for CoMP.
  """

  name: str
  page: str
  records: Sequence[str]
  split: str
  metrics: Sequence[str]
  reference: str | Sequence[str] | None = None

  @property
  def paths(self) -> list[pathlib.Path]:
    """The folders of its runs."""
    return [p for glob in self.records for p in sorted(RECORDS.glob(glob))]

  def comparisons(self) -> list[comparison.Comparison]:
    """What `compare` makes of them; all take part that reached their ratio."""
    models, left_out = comparable.gather(self.paths)
    (members,) = models.values()
    left_out = [run for run in left_out if _MISSED not in run.reason]
    found = []
    for metric in self.metrics:
      result, lacking = comparison.compare(
        members, split=self.split, metric=metric, reference=self.reference
      )
      if left_out or lacking:
        said = compared.omissions([*left_out, *lacking])
        raise ValueError(f"{self.name}: {'; '.join(said)}")
      found.append(result)
    return found

  def misses(self, recipe: str, ratio: float) -> bool:
    """Whether a recipe was run at a ratio that it did not reach."""
    _, left_out = comparable.gather(self.paths)
    said = f"{recipe} {_MISSED} {ratio:g}:"
    return any(run.reason.startswith(said) for run in left_out)

  def __str__(self) -> str:
    parts, results = [], self.comparisons()
    for number, result in enumerate(results):
      metric = text.metric_name(result.metric)
      dense = f" (dense {result.dense:.3f})" if result.dense else ""
      for grid in compared.grids(result):
        if grid.title.startswith("Ratio"):
          title = f"{metric}, {grid.title.lower()}{dense}"
        elif number:
          continue  # The same seeds whatever the metric.
        else:
          title = grid.title
        parts.append(f"**{title}**\n\n{tables.markdown(grid)}")
    cuts = [line for line in results[0].remarks if runs.OWN_STAGES in line]
    return "\n".join([*parts, *(f"- {line}\n" for line in cuts)])


_RETRIEVAL = {
  "page": "docs/results/flickr8k_retrieval.md",
  "split": "dev",
  "metrics": ("t2i_r10", "i2t_r10"),
}
_PAIRS = {
  "page": "docs/results/flickr8k_pairs.md",
  "split": "val",
  "metrics": ("accuracy", "auc"),
}
_STATEMENTS = {
  "page": "docs/results/nlvr_grid.md",
  "split": "dev",
  "metrics": ("accuracy",),
}
# Of each task, by what README calls it: its runs of this version.
TASKS: Mapping[str, Table] = {
  "retrieval, T2I R@10": Table(
    name="tables", records=("flickr8k",), **_RETRIEVAL
  ),
  "pairs, accuracy": Table(name="tables", records=("flickr8k_itm",), **_PAIRS),
  "statements, accuracy": Table(
    name="tables", records=("nlvr_emoji_grid",), **_STATEMENTS
  ),
}


def _variants(task: str, ratio: str, most: int) -> Table:
  """CoMP and its variants at one ratio; differences are from `most` stages."""
  main = TASKS[task]
  (folder,) = main.records
  apart = {"nlvr_emoji_grid": "nlvr_emoji"}.get(folder, folder)
  return dataclasses.replace(
    main,
    name=f"variants at {ratio}",
    records=(
      # A run for each seed, or a sweep of them.
      f"{folder}/comp_{ratio}_*",
      f"{folder}/comp_{ratio}",
      f"{apart}_ablations/*_{ratio}_*",
      f"{apart}_ablations/*_{ratio}",
    ),
    reference=(f"comp_wanda (max_stages={most})", "comp_wanda"),
  )


_STAGES = dict(zip(TASKS, (11, 14, 12), strict=True))
TABLES: Sequence[Table] = (
  *TASKS.values(),
  *(
    _variants(task, ratio, most)
    for task, most in _STAGES.items()
    for ratio in ("0.7", "0.85")
  ),
  _variants("retrieval, T2I R@10", "0.5", 11),
  _variants("statements, accuracy", "0.8", 16),
  Table(name="short", records=("nlvr_emoji_short",), **_STATEMENTS),
)
# What README sets beside CoMP.
_OTHERS = ("uniform", "sjp_together", "madtp", "upop", "round_robin")


def differences() -> str:
  """CoMP minus the others on each task, and the mean of the tasks."""
  results = {task: table.comparisons()[0] for task, table in TASKS.items()}
  means = {
    (mean.method, mean.ratio): mean
    for mean in over_tasks.means([*results.values()])
  }
  lines = [
    f"| CoMP minus | ratio | {' | '.join(results)} | mean |",
    "|---|---|" + "---|" * (len(results) + 1),
  ]
  for other in _OTHERS:
    for ratio in sorted({c.ratio for r in results.values() for c in r.cells}):
      cells = [_cell(result, other, ratio) for result in results.values()]
      if not any(cells):
        continue
      mean = means.get((other, ratio))
      shown = [
        f"{_flipped(c.difference, c.difference_interval)}, {_seeds(c.paired)}"
        if c
        else _without(table, other, ratio)
        for c, table in zip(cells, TASKS.values(), strict=True)
      ]
      shown.append(_mean(mean, len(results)))
      lines.append(f"| `{other}` | {ratio:g} | {' | '.join(shown)} |")
  return "\n".join(lines) + "\n"


def _cell(
  result: comparison.Comparison, other: str, ratio: float
) -> comparison.Cell | None:
  """The cell of a recipe, in the one form in which it ran there."""
  found = [
    cell
    for cell in result.cells
    if (comparison.recipe(cell.method), cell.ratio) == (other, ratio)
    and cell.paired
    and "modes=" not in cell.method
  ]
  return found[0] if found else None


def _mean(mean: over_tasks.Mean | None, tasks: int) -> str:
  """The reference minus the other on the mean of the tasks that ran both."""
  if mean is None:
    return ""
  said = _flipped(mean.difference, mean.interval)
  few = f", {len(mean.tasks)} tasks" if len(mean.tasks) < tasks else ""
  return f"{said}{few}"


def _without(table: Table, recipe: str, ratio: float) -> str:
  """Why a task has no difference from a recipe."""
  return "does not get there" if table.misses(recipe, ratio) else "not run"


def _seeds(count: int) -> str:
  return "1 seed" if count == 1 else f"{count} seeds"


def _flipped(difference: float, interval: bootstrap.Interval | None) -> str:
  """The reference minus the other; bold where 0 lies outside."""
  if interval is None:
    return f"{-difference:+.3f}"
  low, high = -interval.high, -interval.low
  said = f"{-difference:+.3f} ({low:+.3f} to {high:+.3f})"
  return f"**{said}**" if low > 0 or high < 0 else said


_NAMES = {
  "comp": "**CoMP**",
  "uniform": "`uniform`",
  "sjp": "`sjp_together`",
  "madtp": "`madtp`",
  "upop": "`upop`",
  "magnitude": "`magnitude`",
  "random": "`random`",
}
_RECALLS = [f"{way}_r{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)]


def recalls() -> str:
  """Means over seeds of the runs of retrieval, as their reports have them."""
  runs = {}
  for path in sorted((RECORDS / "flickr8k").iterdir()):
    recipe, ratio, _ = path.name.split("_")
    report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    runs.setdefault((float(ratio), recipe), []).append(report)
  shown = ("T2I R@1", "R@5", "R@10", "I2T R@1", "R@5", "R@10")
  columns = ("recipe", "ratio", "seeds", "MACs", "parameters", *shown)
  lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
  (first, *_) = runs[0.7, "comp"]
  lines.append(_row("dense", "", "", [first], "dense"))
  for ratio in sorted({ratio for ratio, _ in runs}):
    for recipe, name in _NAMES.items():
      if reports := runs.get((ratio, recipe)):
        seeds = ", ".join(str(report["seed"]) for report in reports)
        lines.append(_row(name, f"{ratio:g}", seeds, reports, "finetuned"))
  return "\n".join(lines) + "\n"


def _row(
  name: str, ratio: str, seeds: str, reports: Sequence[Mapping], row: str
) -> str:
  mean = lambda values: sum(values) / len(reports)  # noqa: E731
  which = "dense" if row == "dense" else "final"
  macs = mean(report["macs"][which] for report in reports)
  params = mean(report["params"][which] for report in reports)
  cells = [name, ratio, seeds, f"{macs / 1e9:.2f} G", f"{params / 1e6:.1f} M"]
  cells += [
    f"{mean(report['metrics'][row]['dev'][key] for report in reports):.3f}"
    for key in _RECALLS
  ]
  return f"| {' | '.join(cells)} |"


# Page and place of every table -> what stands there.
EVERY: Mapping[tuple[str, str], Callable[[], str]] = {
  **{(table.page, table.name): table.__str__ for table in TABLES},
  ("README.md", "differences"): differences,
  ("docs/results.md", "differences"): differences,
  ("docs/results/flickr8k_retrieval.md", "recalls"): recalls,
}


def place(page: str, name: str) -> re.Match:
  """Where a table stands in a page's text.

  Raises:
    ValueError: nowhere.
  """
  pattern = rf"<!-- {name} -->\n\n(.*?)\n<!-- end of {name} -->"
  found = re.search(pattern, page, flags=re.DOTALL)
  if found is None:
    raise ValueError(f"no place for {name}: <!-- {name} --> and its end")
  return found


def main() -> None:
  """Writes all tables into their pages."""
  for (page, name), table in EVERY.items():
    path = ROOT / page
    old = path.read_text(encoding="utf-8")
    start, end = place(old, name).span(1)
    path.write_text(old[:start] + table() + old[end:], encoding="utf-8")


if __name__ == "__main__":
  main()

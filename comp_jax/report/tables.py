"""Tables of a report: text cells once, then Markdown, HTML or terminal."""

import dataclasses
from collections.abc import Sequence

import rich.box
import rich.console
import rich.table
import rich.text

from comp_jax.report import schema, style, text

ROW_NAMES = {
  "dense": "dense",
  "masked": "masked",
  "compacted": "compacted",
  "finetuned": "fine-tuned",
  "finetuned_threshold": "fine-tuned, thresholds",
}
_MACS_OF_ROW = {
  "dense": "dense",
  "masked": "masked",
  "compacted": "compacted",
  # At static counts, whatever was saved.
  "finetuned": "compacted",
  "finetuned_threshold": "finetuned_threshold",
}


# Characters of the first column: at least, and where it is folded.
_LEAST, _FOLDED = 11, 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
  """A titled table of text; the first column is read left to right."""

  title: str
  columns: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  left: int = 1  # Columns from the left that hold words, not numbers.
  modes: tuple[str, ...] = ()  # The mode of each row, for its colour.


def main_split(report: schema.Report) -> str | None:
  """The split to quote first: one that nothing was chosen on, if any."""
  splits = list(report["metrics"]["dense"])
  for split in ("test", "dev", "val"):
    if split in splits:
      return split
  unseen = [split for split in splits if split not in ("select", "train")]
  return (unseen or splits or [None])[0]


def main_metric(report: schema.Report, split: str | None) -> str | None:
  """The metric to quote first: text-to-image R@10, else the first one."""
  names = list(report["metrics"]["dense"].get(split, {}))
  return "t2i_r10" if "t2i_r10" in names else (names or [None])[0]


def summary(report: schema.Report) -> list[Grid]:
  """One table per split, the quoted split first: rows from dense to tuned."""
  metrics, macs = report["metrics"], report["macs"]
  first = main_split(report)
  splits = sorted(metrics["dense"], key=lambda split: split != first)
  grids = []
  for split in splits or [None]:
    names = list(
      dict.fromkeys(
        name
        for row in schema.ROWS
        for name in metrics.get(row, {}).get(split, {})
      )
    )
    rows = []
    for row in schema.ROWS:
      if row not in metrics:
        continue
      values = metrics[row].get(split, {})
      if row != "dense" and not values:
        continue
      cost = macs.get(_MACS_OF_ROW[row])
      # A masked model still stores every array of the dense one.
      params = report["params"][
        "dense" if row in ("dense", "masked") else "final"
      ]
      rows.append(
        (
          ROW_NAMES[row],
          text.quantity(cost, macs["dense"]),
          text.removed(cost, macs["dense"]),
          text.quantity(params, report["params"]["dense"]),
          *(text.number(values.get(name)) for name in names),
        )
      )
    grids.append(
      Grid(
        title=f"Split {split}" if split else "No metrics",
        columns=(
          "Model",
          "MACs",
          "removed",
          "params",
          *(text.metric_name(name) for name in names),
        ),
        rows=tuple(rows),
      )
    )
  return grids


def stages(report: schema.Report) -> Grid:
  """The table of stages; its numbers are those after each stage."""
  dense = report["macs"]["dense"]
  rows = []
  for stage in report["stages"]:
    thresholds = stage["thresholds"]
    rows.append(
      (
        str(stage["index"]),
        style.label(stage["mode"]),
        "yes" if stage["explored"] else "",
        text.quantity(stage["macs"], dense),
        text.removed(stage["macs"], dense),
        text.number(stage["metric_before"]),
        text.number(stage["metric_immediate"]),
        text.number(stage["metric"]),
        text.significant(stage["cost"]),
        text.significant(stage["immediate_cost"]),
        text.significant(thresholds.get("vision")),
        text.significant(thresholds.get("text")),
        text.number(stage["loss"]),
        text.number(stage["seconds"], 1),
      )
    )
  return Grid(
    title="Stages",
    columns=(
      "Stage",
      "Mode",
      "Explored",
      "MACs",
      "removed",
      "Metric before",
      "pruned",
      "trained",
      "Cost (Eq.\u00a08)",
      "Immediate cost",
      "θ vision",
      "θ text",
      "Loss",
      "Seconds",
    ),
    rows=tuple(rows),
    left=3,
    modes=tuple(stage["mode"] for stage in report["stages"]),
  )


def notes(report: schema.Report) -> list[str]:
  """Sentences that the summary needs to be read rightly."""
  macs, metrics = report["macs"], report["metrics"]
  dense, warnings = macs["dense"], report.get("warnings", [])
  lines = [
    f"MACs are per example, convention “{macs['convention']}”; "
    f"the target was {text.quantity(macs['target'], dense)} "
    f"({text.removed(macs['target'], dense)} removed)."
  ]
  lines += [f"{warning[0].upper()}{warning[1:]}." for warning in warnings]
  warmup = [row for row in report["stages"] if row["mode"] == "warmup"]
  if warmup:
    lines.append(
      "Training alone, in the warm-up, took the selection metric from "
      f"{text.number(warmup[0]['metric_before'])} to "
      f"{text.number(warmup[-1]['metric'])}."
    )
  masked, target = macs.get("masked"), macs.get("target")
  if masked is not None and target is not None and masked > 1.005 * target:
    lines.append(
      f"The search did not reach the target: {text.quantity(masked, dense)} "
      "were left when its stages ended. Static token counts below those of the "
      "thresholds, and the lowest neurons, make up the rest."
    )
  final = macs["final"]
  # float32 rounds the MACs of swept models; two decimals do not show it.
  excess = final / target - 1 if final is not None and target else 0.0
  if excess >= 5e-5:
    lines.append(
      f"The saved model costs {text.quantity(final, dense)}, "
      f"{excess:.2%} above the target: no thresholds of the "
      "fine-tuned weights meet it."
    )
  elif excess <= -5e-3:
    lines.append(
      f"The saved model costs {text.quantity(final, dense)}, "
      f"{-excess:.2%} below the target: no thresholds of its token rule come "
      "nearer."
    )
  if macs.get("padded_final") is not None:
    lines.append(
      "At padded lengths, as a device executes it, the final model costs "
      f"{text.quantity(macs['padded_final'], dense)}."
    )
  split = main_split(report)
  name = main_metric(report, split)
  static = metrics.get("finetuned", {}).get(split, {}).get(name)
  dynamic = metrics.get("finetuned_threshold", {}).get(split, {}).get(name)
  if static is not None and dynamic is not None:
    lines.append(
      f"Static token counts against thresholds, fine-tuned, {split}: "
      f"{text.metric_name(name)} {text.number(static)} against "
      f"{text.number(dynamic)} ({text.signed(static - dynamic)})."
    )
  seconds = report["seconds"]
  times = [
    f"{phase} {text.number(seconds[phase], 1)} s"
    for phase in ("prune", "finetune", "evaluate", "total")
    if seconds.get(phase) is not None
  ]
  if times:
    where = f" on {report['devices']}" if report.get("devices") else ""
    lines.append(f"Time{where}: " + ", ".join(times) + ".")
  counts = report["compilations"]
  lines.append(
    "Compilations: "
    + ", ".join(f"{name} {count}" for name, count in counts.items())
    + "."
  )
  return lines


def markdown(grid: Grid) -> str:
  """The table in Markdown, without its title."""
  rule = ["---" if i < grid.left else "---:" for i in range(len(grid.columns))]
  lines = [grid.columns, rule, *grid.rows]
  return "".join(
    "| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines
  )


def print_summary(
  report: schema.Report, console: rich.console.Console | None = None
) -> None:
  """Nothing; prints the main table of each split and the notes."""
  heading = (
    f"{report['name']}: {report['recipe']}, ratio {report['ratio']:g}, "
    f"seed {report['seed']}"
  )
  print_part(
    console or rich.console.Console(),
    heading,
    summary(report),
    notes(report),
  )


def print_part(
  console: rich.console.Console,
  heading: str,
  grids: Sequence[Grid],
  notes: Sequence[str],
) -> None:
  """Nothing; prints tables under a heading, and sentences below them."""
  console.print(rich.text.Text(heading, style="bold"))
  for grid in grids:
    for part in fitting(grid, console.width):
      console.print(terminal(part))
  for line in notes:
    console.print(rich.text.Text(line, style="dim"))


def fitting(grid: Grid, width: int) -> list[Grid]:
  """The table in parts that fit so many characters.

  The first column stands in each of them. Its long words may be folded;
  numbers, and words of other columns, are never cut.
  """
  needs = []
  for i, (header, *cells) in enumerate(
    zip(grid.columns, *grid.rows, strict=True)
  ):
    wraps = i < grid.left
    words = header.split() + (" ".join(cells).split() if wraps else cells)
    # A space on its right, and one between columns.
    needs.append(2 + max(map(len, words), default=0))
  first, *others = needs
  first = max(_LEAST, min(first, _FOLDED))
  parts, taken = [[]], first
  for i, need in enumerate(others, 1):
    if parts[-1] and taken + need > width:
      parts.append([])
      taken = first
    parts[-1].append(i)
    taken += need
  if len(parts) == 1:
    return [grid]
  titles = [grid.title] + (len(parts) - 1) * [f"{grid.title}, continued"]
  return [
    dataclasses.replace(
      grid,
      title=title,
      columns=tuple(grid.columns[i] for i in (0, *part)),
      rows=tuple(tuple(row[i] for i in (0, *part)) for row in grid.rows),
    )
    for title, part in zip(titles, parts, strict=True)
  ]


def terminal(grid: Grid) -> rich.table.Table:
  """The table for a terminal."""
  table = rich.table.Table(
    title=rich.text.Text(grid.title),
    title_justify="left",
    box=rich.box.SIMPLE_HEAD,
    padding=(0, 1, 0, 0),
    pad_edge=False,
  )
  for i, column in enumerate(grid.columns):
    side = "left" if i < grid.left else "right"
    # "T2I R@10" on two lines lets the table fit 80 columns.
    header = rich.text.Text(column.replace(" ", "\n"))
    table.add_column(
      header,
      justify=side,
      no_wrap=i >= grid.left,
      overflow="fold" if i < grid.left else "ellipsis",
      min_width=_LEAST if i == 0 and grid.left == 1 else None,
    )
  for row in grid.rows:
    table.add_row(*(rich.text.Text(cell) for cell in row))
  return table


def _cell(words: str) -> str:
  return words.replace("|", "\\|").replace("\n", " ")

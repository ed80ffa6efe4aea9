"""Searches side by side: the mode of each stage, what each mode removed.

Figure 6 and Figure C of the paper, from finished runs' reports.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.ticker

from comp_jax import errors
from comp_jax.report import (
  canvas,
  comparable,
  runs,
  section,
  style,
  tables,
  text,
)

# What no stage removed: the last adjustment, static counts, rounding.
REST = "rest"


def removed(
  stages: Sequence[Mapping[str, Any]], dense: float, final: float
) -> dict[str, float]:
  """MACs that the stages of each mode removed, as fractions of dense.

  A stage that pruned several modes at once counts under their joined name:
  a report does not tell how they shared it. What a stage's training changed of
  the token counts counts for its mode. All values sum to what the run removed.

  Args:
    stages: the report's.
    dense: MACs before.
    final: MACs of the final model.
  """
  gone = collections.defaultdict(float)
  for stage in stages:
    if stage["mode"] not in ("warmup", "none"):
      gone[stage["mode"]] += (stage["macs_before"] - stage["macs"]) / dense
  ordered = {mode: gone[mode] for mode in style.order(set(gone))}
  total = (dense - final) / dense
  return {**ordered, REST: total - sum(ordered.values())}


def read(paths: Sequence[str]) -> tuple[list[runs.Run], list[runs.LeftOut]]:
  """Runs whose search can be shown, named apart, and the others.

  Raises:
    UserError: no run has stages.
  """
  found, left_out = runs.read(paths)
  kept = []
  for run in found:
    report = run.report
    pruned = any(
      stage["mode"] not in ("warmup", "none") for stage in report["stages"]
    )
    if pruned and report["macs"]["final"] is not None:
      kept.append(run)
    else:
      left_out.append(runs.LeftOut(path=run.path, reason="it pruned nothing"))
  if not kept:
    reasons = "; ".join(f"{run.path}: {run.reason}" for run in left_out)
    raise errors.UserError(f"no run has stages to show: {reasons}")
  return comparable.named(kept), left_out


def labels(members: Sequence[runs.Run]) -> list[str]:
  """A name for each run: its method, and what else tells them apart."""
  parts = [
    (
      run.method,
      run.report["name"],
      f"ratio {run.report['ratio']:g}",
      f"seed {run.report['seed']}",
    )
    for run in members
  ]
  varied = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
  varied[0] = True
  names = [
    ", ".join(word for word, on in zip(words, varied, strict=True) if on)
    for words in parts
  ]
  if len(set(names)) == len(names):
    return names
  # Two runs of one kind: only their folders differ.
  return [
    f"{name} ({run.path})" for name, run in zip(names, members, strict=True)
  ]


def data(members: Sequence[runs.Run]) -> list[dict[str, Any]]:
  """What the figures show, as JSON holds it."""
  rows = []
  for run, name in zip(members, labels(members), strict=True):
    report = run.report
    dense, final = report["macs"]["dense"], report["macs"]["final"]
    rows.append(
      {
        "name": name,
        "path": str(run.path),
        "removed": removed(report["stages"], dense, final),
        "stages": [
          {
            "index": stage["index"],
            "mode": stage["mode"],
            "explored": stage["explored"],
            "macs_fraction": stage["macs"] / dense,
            "metric": stage["metric"],
          }
          for stage in report["stages"]
        ],
      }
    )
  return rows


def show(rows: Sequence[Mapping[str, Any]]) -> section.Section:
  """Figures and tables of `data`."""
  return section.Section(
    title="Stages",
    figures=(
      section.Figure(
        name="stages",
        caption="The mode of each stage, a row per run; a star marks an "
        "explored one.",
        alt="Modes over stages",
        draw=lambda dark: strips(rows, dark=dark),
      ),
      section.Figure(
        name="removed",
        caption="MACs that each mode removed; several colours are a stage of "
        "several modes, grey is what no stage removed.",
        alt="MACs removed by each mode",
        draw=lambda dark: bars(rows, dark=dark),
      ),
    ),
    grids=(_stages(rows), _removed(rows)),
    notes=(
      "A stage of several modes is one row: reports do not tell how they "
      "shared its MACs.",
      "rest: the last adjustment of thresholds, the static token counts and "
      "the neurons that make them meet the target; negative where static "
      "counts gave back.",
    ),
  )


def strips(
  rows: Sequence[Mapping[str, Any]], *, dark: bool = False, format: str = "svg"
) -> bytes:
  """The mode of every stage of each run (Figure 6).

  Args:
    rows: of `data`.
    dark: whether the page is dark.
    format: "svg" or "png".
  """
  theme = style.theme(dark)
  figure, places = _rows(rows, theme)
  last = max(stage["index"] for row in rows for stage in row["stages"])
  for row, axes in zip(rows, places, strict=True):
    canvas.dress(axes, theme)
    canvas.mode_strip(axes, row["stages"], "", theme)
    _name(axes, row, theme)
    axes.set_xlim(-0.5, last + 0.5)
    axes.tick_params(labelbottom=axes is places[-1])
  places[-1].set_xlabel("Stage (0 is the warm-up)")
  places[-1].xaxis.set_major_locator(
    matplotlib.ticker.MaxNLocator(integer=True, nbins=20)
  )
  stages = [stage for row in rows for stage in row["stages"]]
  handles = canvas.mode_handles(_single(s["mode"] for s in stages), theme)
  if any(stage["explored"] for stage in stages):
    handles.append(canvas.explored_handle(theme))
  canvas.legend(figure, handles, theme)
  return canvas.encode(figure, format)


def bars(
  rows: Sequence[Mapping[str, Any]], *, dark: bool = False, format: str = "svg"
) -> bytes:
  """The MACs that each mode removed, one bar per run (Figure C).

  Args:
    rows: of `data`.
    dark: whether the page is dark.
    format: "svg" or "png".
  """
  theme = style.theme(dark)
  figure, places = _rows(rows, theme)
  widest = 0.0
  for row, axes in zip(rows, places, strict=True):
    canvas.dress(axes, theme)
    axes.grid(False)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    start = 0.0
    for mode, share in row["removed"].items():
      # What came back has no place in a bar; the table has it.
      if share > 0:
        mode = "none" if mode == REST else mode
        canvas.mode_patch(axes, (start, 0), share, 1, mode, theme)
        start += share
    widest = max(widest, start)
    _name(axes, row, theme)
    axes.tick_params(labelbottom=axes is places[-1])
  for axes in places:
    axes.set_xlim(0, 1.02 * widest)
  places[-1].set_xlabel("Fraction of the dense MACs removed")
  modes = _single(m for row in rows for m in row["removed"] if m != REST)
  canvas.legend(figure, canvas.mode_handles(modes, theme), theme)
  return canvas.encode(figure, format)


def _rows(rows, theme):
  """A figure and its axes, one strip below the other."""
  figure = canvas.figure(theme, 1.15 + 0.62 * len(rows))
  height = figure.get_figheight()
  grid = figure.add_gridspec(
    len(rows),
    1,
    hspace=1.0,
    left=0.02,
    right=0.985,
    top=1 - 0.62 / height,
    bottom=0.5 / height,
  )
  first = figure.add_subplot(grid[0])
  others = [
    figure.add_subplot(grid[i], sharex=first) for i in range(1, len(rows))
  ]
  return figure, [first, *others]


def _name(axes, row, theme) -> None:
  left = row["stages"][-1]["macs_fraction"]
  axes.set_title(
    f"{row['name']}: {text.number(100 * left, 1)} % left after its stages",
    loc="left",
    color=theme.ink,
    fontsize=canvas.FONT,
    pad=3,
  )


def _single(modes) -> set[str]:
  return {part for mode in modes for part in style.parts(mode)}


def _stages(rows: Sequence[Mapping[str, Any]]) -> tables.Grid:
  """Stages by runs: the MACs left, the mode, a star where it explored."""

  def cell(row, index):
    for stage in row["stages"]:
      if stage["index"] == index:
        star = " *" if stage["explored"] else ""
        left = text.number(100 * stage["macs_fraction"], 1)
        return f"{left}\u00a0% {style.label(stage['mode'])}{star}"
    return ""

  last = max(stage["index"] for row in rows for stage in row["stages"])
  return tables.Grid(
    title="MACs left after each stage and its mode (* explored)",
    columns=("Stage", *(row["name"] for row in rows)),
    rows=tuple(
      (str(index), *(cell(row, index) for row in rows))
      for index in range(last + 1)
    ),
    left=1 + len(rows),
  )


def _removed(rows: Sequence[Mapping[str, Any]]) -> tables.Grid:
  """Modes by runs: the share of all MACs removed."""
  modes = style.order({m for row in rows for m in row["removed"]} - {REST})

  def share(row, mode):
    if mode not in row["removed"]:
      return ""
    whole = sum(row["removed"].values())
    return f"{text.number(100 * row['removed'][mode] / whole, 1)} %"

  return tables.Grid(
    title="Share of the MACs removed",
    columns=("Mode", *(row["name"] for row in rows)),
    rows=tuple(
      (style.label(mode), *(share(row, mode) for row in rows))
      for mode in (*modes, REST)
    ),
  )

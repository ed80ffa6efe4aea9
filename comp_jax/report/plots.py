"""The figures of a run as SVG or PNG bytes, one function per figure.

Each takes plain lists and arrays, draws on a Figure of its own (no pyplot, no
global state) and returns the file's bytes. `dark` draws the same figure for a
dark page. Kept structure is in `structure.py`, patches over sample images in
`patches.py`, what they share in `canvas.py`.
"""

import collections.abc
import math
from typing import Any

import matplotlib.axes
import matplotlib.ticker
import numpy as np

from comp_jax.report import canvas, style, text

Stages = collections.abc.Sequence[collections.abc.Mapping[str, Any]]


def stages(
  stages: Stages,
  macs: collections.abc.Mapping[str, Any],
  *,
  metric_label: str = "Selection metric",
  dark: bool = False,
  format: str = "svg",
) -> bytes:
  """MACs and metric over stages, the mode of each as colour (Figure 6).

  Args:
    stages: the report's list of stages, at least one.
    macs: the report's MACs; dense and target are drawn as references.
    metric_label: axis label of the metric.
    dark: whether the page is dark.
    format: "svg" or "png".
  """
  theme = style.theme(dark)
  figure = canvas.figure(theme, 5.9)
  grid = figure.add_gridspec(
    3,
    1,
    height_ratios=(0.13, 1, 1.25),
    hspace=0.10,
    left=0.105,
    right=0.985,
    top=0.89,
    bottom=0.085,
  )
  strip = figure.add_subplot(grid[0])
  cost = figure.add_subplot(grid[1], sharex=strip)
  metric = figure.add_subplot(grid[2], sharex=strip)
  x = np.array([stage["index"] for stage in stages], float)
  canvas.mode_strip(strip, stages, "Mode", theme)
  for axes in (cost, metric):
    canvas.dress(axes, theme)
    for stage, at in zip(stages, x, strict=True):
      axes.axvspan(
        at - 0.5,
        at + 0.5,
        color=style.colour(stage["mode"]),
        alpha=theme.tint,
        linewidth=0,
        zorder=0,
      )

  scale, letter = text.macs_unit(macs["dense"])
  done = canvas.floats(stage["macs"] for stage in stages) / scale
  cost.plot(x, done, color=theme.ink, linewidth=1.3, zorder=2)
  _mode_markers(cost, stages, x, done, theme)
  cost.set_ylim(0, 1.1 * max(macs["dense"] / scale, done.max()))
  cost.set_ylabel(f"MACs per example ({letter})")
  if macs.get("target") is not None:
    target = macs["target"] / scale
    cost.axhline(target, color=theme.muted, linewidth=1, linestyle=(0, (4, 3)))
    cost.annotate(
      "target",
      (x[0] - 0.42, target),
      (0, 3),
      textcoords="offset points",
      color=theme.muted,
      fontsize=canvas.FONT,
    )
  # The line only falls, so this corner is free.
  last = text.quantity(stages[-1]["macs"], macs["dense"])
  gone = text.removed(stages[-1]["macs"], macs["dense"])
  cost.text(
    0.99,
    0.94,
    f"{last} after stage {stages[-1]['index']}, {gone} removed",
    transform=cost.transAxes,
    ha="right",
    va="top",
    color=theme.ink,
    fontsize=canvas.FONT,
  )

  trained = canvas.floats(stage["metric"] for stage in stages)
  pruned = canvas.floats(stage["metric_immediate"] for stage in stages)
  metric.vlines(x, pruned, trained, color=theme.muted, linewidth=1, zorder=2)
  metric.plot(x, trained, color=theme.ink, linewidth=1.3, zorder=2)
  metric.plot(
    x,
    pruned,
    linestyle="none",
    marker="_",
    markersize=9,
    markeredgewidth=1.6,
    color=theme.muted,
    zorder=3,
  )
  _mode_markers(metric, stages, x, trained, theme)
  metric.margins(y=0.12)
  metric.set_ylabel(metric_label)
  metric.set_xlabel("Stage (0 is the warm-up)")
  metric.xaxis.set_major_locator(
    matplotlib.ticker.MaxNLocator(integer=True, nbins=20)
  )
  metric.set_xlim(x[0] - 0.5, x[-1] + 0.5)
  for axes in (strip, cost):
    axes.tick_params(labelbottom=False, bottom=False)

  modes = {stage["mode"] for stage in stages}
  modes = modes.union(*map(style.parts, modes))
  handles = canvas.mode_handles(modes, theme)
  if any(stage["explored"] for stage in stages):
    handles.append(canvas.explored_handle(theme))
  handles.append(
    canvas.handle("right after pruning", theme, marker="_", color=theme.muted)
  )
  canvas.legend(figure, handles, theme)
  return canvas.encode(figure, format)


def costs(
  stages: Stages,
  probe: collections.abc.Mapping[str, text.Number | None],
  *,
  dark: bool = False,
  format: str = "svg",
) -> bytes:
  """Cost R of each mode over stages; a marker where the mode was executed.

  Args:
    stages: the report's list of stages, at least one.
    probe: cold-start cost of each mode, drawn hollow at stage 0.
    dark: whether the page is dark.
    format: "svg" or "png".
  """
  theme = style.theme(dark)
  figure = canvas.figure(theme, 3.7)
  axes = figure.add_axes((0.105, 0.125, 0.88, 0.77))
  canvas.dress(axes, theme)
  modes = set(probe).union(*(stage["costs"] for stage in stages))
  modes.discard("warmup")
  x = np.array([stage["index"] for stage in stages], float)
  seen, ended = [], False
  for mode in style.order(modes):
    values = canvas.floats(stage["costs"].get(mode) for stage in stages)
    first = probe.get(mode)
    probed = first is not None and x[0] == 0
    if probed and not np.isfinite(values[0]):
      values[0] = first
    out = [bool(stage["exhausted"].get(mode)) for stage in stages]
    # The cost of a mode that can do nothing any more is history: the line ends.
    end = out.index(True) + 1 if True in out else len(x)
    color, mark = style.colour(mode), style.marker(mode)
    axes.plot(
      x[:end],
      values[:end],
      drawstyle="steps-post",
      color=color,
      linewidth=1.8,
      zorder=2,
    )
    run = np.array([style.pruned(stage["mode"], mode) for stage in stages])
    axes.plot(
      x[run],
      values[run],
      linestyle="none",
      marker=mark,
      color=color,
      markeredgecolor=theme.surface,
      markersize=8,
      zorder=4,
    )
    if probed:
      axes.plot(
        x[:1],
        values[:1],
        marker=mark,
        color=theme.surface,
        markeredgecolor=color,
        markeredgewidth=1.5,
        markersize=7,
        zorder=3,
      )
    if True in out:
      ended = True
      axes.plot(
        x[end - 1 : end],
        values[end - 1 : end],
        marker="x",
        color=theme.ink,
        markersize=9,
        markeredgewidth=1.8,
        zorder=5,
      )
    seen += [value for value in values if np.isfinite(value)]
  axes.axhline(0, color=theme.muted, linewidth=0.8, zorder=1)
  size = np.abs(np.array([value for value in seen if value]))
  label = "Cost R: metric lost per\nfraction of dense MACs removed"
  if size.size and size.max() > 15 * np.median(size):
    # One mode's cost can be far above the rest, and either sign occurs.
    axes.set_yscale("symlog", linthresh=_round_up(float(np.median(size))))
    label = label + "\n(symmetric log scale)"
  axes.margins(y=0.12)
  axes.set_ylabel(label)
  axes.set_xlabel("Stage (0 is the warm-up)")
  axes.xaxis.set_major_locator(
    matplotlib.ticker.MaxNLocator(integer=True, nbins=20)
  )
  axes.set_xlim(x[0] - 0.5, x[-1] + 0.5)
  handles = canvas.mode_handles(modes, theme)
  if any(value is not None for value in probe.values()):
    handles.append(
      canvas.handle(
        "cold-start probe",
        theme,
        marker="o",
        color=theme.surface,
        markeredgecolor=theme.muted,
      )
    )
  if ended:
    handles.append(
      canvas.handle(
        "exhausted", theme, marker="x", color=theme.ink, markeredgewidth=1.8
      )
    )
  canvas.legend(figure, handles, theme)
  return canvas.encode(figure, format)


def _mode_markers(
  axes: matplotlib.axes.Axes,
  stages: Stages,
  x: np.ndarray,
  y: np.ndarray,
  theme: style.Theme,
) -> None:
  for stage, at, value in zip(stages, x, y, strict=True):
    axes.plot(
      [at],
      [value],
      marker=style.marker(stage["mode"]),
      color=style.colour(stage["mode"]),
      markeredgecolor=theme.surface,
      markersize=8,
      zorder=4,
    )


def _round_up(value: float) -> float:
  power = 10.0 ** math.floor(math.log10(value))
  return math.ceil(value / power) * power

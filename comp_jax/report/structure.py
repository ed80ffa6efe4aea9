"""Kept heads, neurons and tokens per layer, as one figure."""

import collections.abc
import math
from typing import Any

import matplotlib.axes
import matplotlib.patches
import numpy as np

from comp_jax.report import canvas, style, text

# As many digits fit beside each other above the bars of one panel.
_DIGITS = 29


def kept(
  kept: collections.abc.Mapping[str, collections.abc.Mapping[str, Any]],
  *,
  dark: bool = False,
  format: str = "svg",
) -> bytes:
  """Kept heads, neurons and tokens per layer, one row of panels per tower.

  A tower with cross-attention has a panel for its heads at the end.

  Args:
    kept: the report's `kept`, at least one tower.
    dark: whether the page is dark.
    format: "svg" or "png".
  """
  theme = style.theme(dark)
  words = {"vision": "vision", "text": "language", "answer": "language"}
  towers = [name for name in words if name in kept]
  crossed = any("cross_heads" in kept[name] for name in towers)
  columns = 4 if crossed else 3
  figure = canvas.figure(theme, 0.75 + 2.25 * len(towers))
  grid = figure.add_gridspec(
    len(towers),
    columns,
    hspace=0.38,
    wspace=0.22,
    left=0.075,
    right=0.985,
    top=1 - 0.62 / figure.get_figheight(),
    bottom=0.5 / figure.get_figheight(),
  )
  for row, name in enumerate(towers):
    tower = kept[name]
    params = style.colour(f"{words[name]}_params")
    tokens = style.colour(f"{words[name]}_tokens")
    crosses = "cross_heads" in tower
    axes = [
      figure.add_subplot(grid[row, column]) for column in range(3 + crosses)
    ]
    panels = [
      (axes[0], "heads", "attention heads", params),
      (axes[1], "neurons", "MLP neurons", params),
    ]
    if crosses:
      color = style.colour("cross_params")
      panels.append((axes[3], "cross_heads", "cross-attention heads", color))
    for panel, key, title, color in panels:
      _bars(panel, tower[key], tower[f"dense_{key}"], color, theme)
      panel.set_title(
        _title(name, title), loc="left", color=theme.ink, fontsize=canvas.FONT
      )
    _token_panel(axes[2], tower, tokens, theme)
    axes[2].set_title(
      _title(name, "tokens"), loc="left", color=theme.ink, fontsize=canvas.FONT
    )
    if row == len(towers) - 1:
      for panel in axes:
        panel.set_xlabel("Layer")
    axes[0].set_ylabel("Kept per layer")
  handles = [
    matplotlib.patches.Patch(color=theme.ghost, label="dense"),
    matplotlib.patches.Patch(
      color=theme.muted, label="kept (tokens: mean under the thresholds)"
    ),
  ]
  if any(kept[name]["tokens_static"] for name in towers):
    handles.append(
      canvas.handle(
        "static token count, a cap per example",
        theme,
        marker="_",
        color=theme.ink,
        markersize=11,
        markeredgewidth=1.8,
      )
    )
  canvas.legend(figure, handles, theme)
  return canvas.encode(figure, format)


def _bars(
  axes: matplotlib.axes.Axes,
  values: collections.abc.Sequence[text.Number],
  dense: text.Number,
  color: str,
  theme: style.Theme,
) -> None:
  canvas.dress(axes, theme)
  at = np.arange(len(values))
  axes.bar(at, dense, width=0.78, color=theme.ghost, zorder=1)
  axes.bar(at, values, width=0.78, color=color, zorder=2)
  if len(values) <= 12:
    _labels(axes, values, theme)
  axes.set_ylim(0, 1.12 * max([dense, *values]))
  _layer_ticks(axes, len(values), start=0)


def _token_panel(
  axes: matplotlib.axes.Axes,
  tower: collections.abc.Mapping[str, Any],
  color: str,
  theme: style.Theme,
) -> None:
  # Means against a mean; the caps are no means (a short text has fewer tokens
  # than its cap), so they are ticks and not bars.
  canvas.dress(axes, theme)
  mean = canvas.floats(tower["tokens_mean"])
  dense, static = tower["tokens_dense"], tower["tokens_static"] or []
  at = np.arange(-1, len(mean) - 1)
  axes.bar(at, dense, width=0.78, color=theme.ghost, zorder=1)
  axes.bar(at, mean, width=0.78, color=color, zorder=2)
  layers = np.arange(len(static))
  axes.hlines(
    static,
    layers - 0.39,
    layers + 0.39,
    color=theme.ink,
    linewidth=1.6,
    zorder=3,
  )
  if len(mean) <= 13:
    _labels(axes, static, theme)
  top = max([dense, *static, *mean[np.isfinite(mean)]])
  axes.set_ylim(0, 1.12 * top)
  _layer_ticks(axes, len(mean) - 1, start=-1)


def _labels(
  axes: matplotlib.axes.Axes,
  values: collections.abc.Sequence[text.Number],
  theme: style.Theme,
) -> None:
  labels = [f"{value:g}" for value in values]
  # Neighbours must not run into each other.
  digits = len(labels) * max(map(len, labels), default=0)
  size = (canvas.FONT - 2) * min(1.0, _DIGITS / max(digits, 1))
  for x, (value, label) in enumerate(zip(values, labels, strict=True)):
    axes.annotate(
      label,
      (x, value),
      (0, 2),
      textcoords="offset points",
      ha="center",
      fontsize=size,
      color=theme.ink,
      zorder=4,
    )


def _layer_ticks(axes: matplotlib.axes.Axes, count: int, start: int) -> None:
  step = max(1, math.ceil(count / 12))
  at = list(range(0, count, step))
  names = [str(layer) for layer in at]
  if start < 0:
    at, names = [-1, *at], ["in", *names]
  axes.set_xticks(at, names)
  axes.set_xlim(start - 0.6, count - 0.4)
  axes.grid(False, axis="x")


def _title(tower: str, what: str) -> str:
  return f"{tower.capitalize()}: {what}"

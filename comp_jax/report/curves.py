"""Cost against accuracy: one line per method, with its intervals."""

import matplotlib.axes
import matplotlib.ticker
import numpy as np

from comp_jax.report import canvas, comparison, style, text

_HEIGHT = 4.6  # Inches.
_LINES = ("-", (0, (4, 2)), (0, (1, 1.5)))


def cost(
  result: comparison.Comparison, *, dark: bool = False, format: str = "svg"
) -> bytes:
  """The figure as a file: the metric over the MACs of the final models.

  Args:
    result: at least one cell.
    dark: the dark theme.
    format: svg or png.
  """
  theme = style.theme(dark)
  methods = list(dict.fromkeys(cell.method for cell in result.cells))
  # The reference first, in the deepest colour.
  methods.sort(key=lambda method: (method != result.reference, method))
  figure = canvas.figure(theme, _HEIGHT)
  rows = -(-len(methods) // 4)
  axes = figure.add_axes((0.08, 0.12, 0.90, 0.82 - 0.05 * rows))
  canvas.dress(axes, theme)
  scale, letter = text.macs_unit(result.dense_macs)
  if result.dense is not None:
    axes.axhline(
      result.dense, color=theme.muted, linewidth=1, linestyle=(0, (4, 3))
    )
    axes.annotate(
      "dense",
      (0.005, result.dense),
      (0, 3),
      xycoords=("axes fraction", "data"),
      textcoords="offset points",
      color=theme.muted,
      fontsize=canvas.FONT,
    )
  handles = []
  for index, method in enumerate(methods):
    handles.append(_line(axes, result, method, index, scale, theme))
  axes.margins(x=0.06, y=0.12)
  axes.set_xlabel(f"MACs per example ({letter})")
  axes.set_ylabel(f"{text.metric_name(result.metric)} on {result.split}")
  axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=8))
  canvas.legend(figure, handles, theme)
  return canvas.encode(figure, format)


def _line(axes: matplotlib.axes.Axes, result, method, index, scale, theme):
  """The legend entry of a method whose line it draws."""
  cells = sorted(
    (cell for cell in result.cells if cell.method == method),
    key=lambda cell: cell.macs,
  )
  # The same colours and markers again with another line.
  colour, marker = style.SERIES[index % len(style.SERIES)]
  line = _LINES[index // len(style.SERIES) % len(_LINES)]
  x = np.array([cell.macs for cell in cells]) / scale
  spans = [
    (each.low, each.high) if each else (np.nan, np.nan)
    for each in (cell.interval for cell in cells)
  ]
  axes.vlines(x, *np.transpose(spans), color=colour, linewidth=1.2, zorder=2)
  axes.plot(
    x,
    [cell.mean for cell in cells],
    color=colour,
    linestyle=line,
    linewidth=1.5,
    marker=marker,
    markersize=7,
    markeredgecolor=theme.surface,
    zorder=3,
  )
  return canvas.handle(
    method,
    theme,
    color=colour,
    linestyle=line,
    marker=marker,
    markeredgecolor=theme.surface,
  )

"""Panels of lines side by side, for measures that have a value per layer."""

import dataclasses
from collections.abc import Sequence

import matplotlib.ticker

from comp_jax.report import canvas, style

_HEIGHT = 3.6  # Inches.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """One measure.

  Attributes:
    label: as the legend has it; lines of one label look alike.
    x: positions.
    y: values.
  """

  label: str
  x: Sequence[float]
  y: Sequence[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
  """Lines over one axis.

  Attributes:
    title: what it is about.
    lines: the measures.
    level: what they are to be held against, a dashed line.
  """

  title: str
  lines: tuple[Line, ...]
  level: float | None = None


def draw(
  panels: Sequence[Panel],
  *,
  x_label: str,
  y_label: str,
  level_label: str = "",
  dark: bool = False,
  format: str = "svg",
) -> bytes:
  """The figure as a file.

  Args:
    panels: at least one.
    x_label: of all panels.
    y_label: of the first one; all share the axis.
    level_label: what the dashed lines are.
    dark: whether the page is dark.
    format: "svg" or "png".
  """
  theme = style.theme(dark)
  figure = canvas.figure(theme, _HEIGHT)
  grid = figure.add_gridspec(
    1,
    len(panels),
    wspace=0.08,
    left=0.085,
    right=0.985,
    top=0.81,
    bottom=0.14,
  )
  lines = [line for panel in panels for line in panel.lines]
  names = list(dict.fromkeys(line.label for line in lines))
  looks = {
    name: {
      "color": style.SERIES[index % len(style.SERIES)][0],
      "marker": style.SERIES[index % len(style.SERIES)][1],
      "markeredgecolor": theme.surface,
      "linestyle": "-",
      "linewidth": 1.5,
      "markersize": 7,
    }
    for index, name in enumerate(names)
  }
  dashed = {"color": theme.muted, "linewidth": 1, "linestyle": (0, (4, 3))}
  first = None
  for index, panel in enumerate(panels):
    axes = figure.add_subplot(grid[index], sharey=first)
    first = first or axes
    canvas.dress(axes, theme)
    for line in panel.lines:
      axes.plot(line.x, line.y, zorder=3, **looks[line.label])
    if panel.level is not None:
      axes.axhline(panel.level, **dashed)
    axes.set_title(
      panel.title, loc="left", color=theme.ink, fontsize=canvas.FONT
    )
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(
      matplotlib.ticker.MaxNLocator(
        nbins=8, integer=x_label == "Layer", steps=(1, 2, 2.5, 5, 10)
      )
    )
    axes.tick_params(labelleft=axes is first)
  first.set_ylabel(y_label)
  first.set_ylim(bottom=min(0.0, first.get_ylim()[0]))
  handles = [canvas.handle(name, theme, **looks[name]) for name in names]
  if any(panel.level is not None for panel in panels):
    handles.append(canvas.handle(level_label, theme, **dashed))
  canvas.legend(figure, handles, theme)
  return canvas.encode(figure, format)

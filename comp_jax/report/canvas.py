"""What the figures share: size, axes, legend, and the file's bytes."""

import collections.abc
import io
from typing import Any

import matplotlib
import matplotlib.axes
import matplotlib.figure
import matplotlib.lines
import matplotlib.patches
import numpy as np

from comp_jax.report import style, text

WIDTH = 9.2  # Inches.
FONT = 9.0  # Points.


def figure(theme: style.Theme, height: float) -> matplotlib.figure.Figure:
  """An empty figure of the page's width."""
  return matplotlib.figure.Figure(
    figsize=(WIDTH, height), facecolor=theme.surface
  )


def dress(axes: matplotlib.axes.Axes, theme: style.Theme) -> None:
  """Nothing; gives the axes the theme's grid, ticks and labels."""
  axes.set_facecolor("none")
  for name, side in axes.spines.items():
    side.set_visible(name == "bottom")
    side.set_color(theme.muted)
    side.set_linewidth(0.8)
  axes.grid(True, axis="y", color=theme.grid, linewidth=0.8, zorder=0)
  axes.set_axisbelow(True)
  axes.tick_params(
    colors=theme.muted, labelsize=FONT - 0.5, length=0, pad=4, which="both"
  )
  for label in (axes.xaxis.label, axes.yaxis.label):
    label.set(color=theme.muted, fontsize=FONT)


def handle(
  label: str, theme: style.Theme, **options: Any
) -> matplotlib.lines.Line2D:
  """A legend entry."""
  options = {"linestyle": "none", "markersize": 8, **options}
  return matplotlib.lines.Line2D([], [], label=label, **options)


def mode_handles(
  modes: set[str], theme: style.Theme
) -> list[matplotlib.lines.Line2D]:
  """Legend entries of the modes, in their fixed order."""
  return [
    handle(
      style.label(mode),
      theme,
      marker=style.marker(mode),
      color=style.colour(mode),
      markeredgecolor=theme.surface,
    )
    for mode in style.order(modes)
  ]


def mode_patch(
  axes: matplotlib.axes.Axes,
  corner: tuple[float, float],
  width: float,
  height: float,
  mode: str,
  theme: style.Theme,
) -> None:
  """Nothing; fills a rectangle, a band for each of several modes.

  Args:
    axes: to draw on.
    corner: lower left.
    width: of the rectangle.
    height: of the rectangle.
    mode: of one stage, maybe several at once ("a+b").
    theme: of the page.
  """
  x, y = corner
  modes = style.parts(mode)
  band = height / len(modes)
  for index, each in enumerate(reversed(modes)):
    axes.add_patch(
      matplotlib.patches.Rectangle(
        (x, y + index * band),
        width,
        band,
        facecolor=style.colour(each),
        edgecolor=theme.surface,
        linewidth=1.2,
      )
    )


def mode_strip(
  axes: matplotlib.axes.Axes,
  stages: collections.abc.Sequence[collections.abc.Mapping[str, Any]],
  label: str,
  theme: style.Theme,
) -> None:
  """Nothing; draws the mode of every stage, a star on explored ones."""
  for side in axes.spines.values():
    side.set_visible(False)
  axes.set_facecolor("none")
  axes.set_ylim(0, 1)
  axes.set_yticks([])
  for stage in stages:
    corner = (stage["index"] - 0.5, 0)
    mode_patch(axes, corner, 1, 1, stage["mode"], theme)
  explored = [stage["index"] for stage in stages if stage["explored"]]
  axes.plot(
    explored,
    [0.5] * len(explored),
    linestyle="none",
    marker="*",
    markersize=9,
    color="#FFFFFF",
    markeredgecolor="#1B1F24",
    markeredgewidth=0.6,
  )
  axes.set_ylabel(label, rotation=0, ha="right", va="center")
  axes.yaxis.label.set(color=theme.muted, fontsize=FONT)


def explored_handle(theme: style.Theme) -> matplotlib.lines.Line2D:
  """The legend entry of the stars."""
  return handle("explored", theme, marker="*", color=theme.ink, markersize=9)


def legend(
  figure: matplotlib.figure.Figure, handles: list[Any], theme: style.Theme
) -> None:
  """Nothing; draws one legend along the top of the figure."""
  figure.legend(
    handles=handles,
    loc="upper left",
    bbox_to_anchor=(0.01, 1.0),
    ncols=len(handles) if len(handles) <= 6 else 4,
    frameon=False,
    fontsize=FONT,
    labelcolor=theme.ink,
    handletextpad=0.4,
    columnspacing=1.4,
    handlelength=1.4,
  )


def encode(figure: matplotlib.figure.Figure, format: str) -> bytes:
  """The figure as a file of this format; the figure is cleared."""
  stream = io.BytesIO()
  # A fixed salt and no date: the same report gives the same bytes.
  with matplotlib.rc_context({"svg.hashsalt": "comp_jax"}):
    metadata = {"Date": None} if format == "svg" else None
    figure.savefig(stream, format=format, dpi=150, metadata=metadata)
  figure.clear()
  return stream.getvalue()


def floats(values: collections.abc.Iterable[text.Number | None]) -> np.ndarray:
  """The values as an array, NaN where nothing was measured."""
  return np.array([np.nan if v is None else v for v in values], float)

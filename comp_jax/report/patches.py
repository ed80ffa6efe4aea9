"""The surviving patches of sample images, layer by layer, over the picture."""

import collections.abc
import math
import re

import matplotlib.axes
import matplotlib.collections
import matplotlib.figure
import matplotlib.font_manager
import matplotlib.ft2font
import matplotlib.patches
import matplotlib.path
import numpy as np
from jaxtyping import Bool, UInt8

from comp_jax import errors
from comp_jax.report import canvas, style

_CELL = 1.28  # Inches of one picture.
# Grey reads as "gone" over a white emoji and over a dark photo alike.
_VEIL = "#5F6772"
_VEIL_OPACITY = 0.80


def patches(
  image: UInt8[np.ndarray, "s H W 3"],
  valid: Bool[np.ndarray, "s l1 n"],
  caption: collections.abc.Sequence[str],
  *,
  columns: int = 6,
  rows: int = 8,
  dark: bool = False,
  format: str = "svg",
) -> bytes:
  """One row per sample: the picture, then its live patches after some layers.

  Args:
    image: the pictures as the model saw them.
    valid: live tokens at the input and after each layer; token 0 is CLS, the
      rest are a square grid of patches, row by row.
    caption: one text per picture.
    columns: how many layers to show, spread evenly and ending with the last.
    rows: how many samples to show at most.
    dark: whether the page is dark.
    format: "svg" or "png".
  """
  grid = side(valid.shape[-1] - 1)
  theme = style.theme(dark)
  layers = shown_layers(valid.shape[1] - 1, columns)
  count = min(rows, len(image))
  gap, head, foot = 0.07, 0.30, 0.06
  cell_height = _CELL + head
  width = (_CELL + gap) * (len(layers) + 1) + gap
  height = cell_height * count + head + foot
  figure = matplotlib.figure.Figure(
    figsize=(width, height), facecolor=theme.surface
  )
  for row in range(count):
    bottom = height - head - (row + 1) * cell_height
    for column, layer in enumerate([None, *layers]):
      left = gap + column * (_CELL + gap)
      axes = figure.add_axes(
        (left / width, bottom / height, _CELL / width, _CELL / height)
      )
      # Whole pixels: the SVG holds each picture at its own resolution.
      axes.imshow(image[row], interpolation="none", extent=(0, 1, 1, 0))
      axes.set_axis_off()
      if row == 0:
        figure.text(
          (left + _CELL / 2) / width,
          1 - 0.5 * head / height,
          "input" if layer is None else f"layer {layer}",
          ha="center",
          va="center",
          fontsize=9,
          color=theme.muted,
        )
      # A frame, so that a white picture does not melt into the page.
      axes.add_patch(
        matplotlib.patches.Rectangle(
          (0, 0), 1, 1, fill=False, edgecolor=theme.grid, clip_on=False
        )
      )
      if layer is not None:
        live = valid[row, layer + 1, 1:].reshape(grid, grid)
        _veil(axes, live)
        _count(axes, int(live.sum()), live.size)
    figure.text(
      gap / width,
      (bottom + _CELL + 0.08) / height,
      drawable(shorten(str(caption[row]), int(width * 13))),
      fontsize=9,
      color=theme.ink,
      parse_math=False,
    )
  file = canvas.encode(figure, format)
  return _share_pictures(file) if format == "svg" else file


def side(patches: int) -> int:
  """The side of the square grid that this many patches form."""
  root = math.isqrt(patches)
  if root * root != patches:
    raise errors.UserError(
      f"samples have {patches} patches, which form no square grid; "
      "valid must be [samples, layers + 1, 1 + patches]"
    )
  return root


def shown_layers(layers: int, columns: int) -> list[int]:
  """At most so many layers, evenly spread, ending with the last."""
  if layers <= columns:
    return list(range(layers))
  at = np.linspace(0, layers - 1, columns)
  return [int(layer) for layer in np.round(at)]


def shorten(caption: str, limit: int) -> str:
  """The caption on one line of at most so many characters."""
  caption = " ".join(caption.split())
  if len(caption) <= limit:
    return caption
  return caption[: limit - 1].rstrip() + "…"


def drawable(caption: str) -> str:
  """The caption with signs that the plot's font lacks replaced by a box."""
  path = matplotlib.font_manager.findfont("DejaVu Sans")
  glyphs = matplotlib.ft2font.FT2Font(path).get_charmap()
  return "".join(c if ord(c) in glyphs else "□" for c in caption)


def _share_pictures(svg: bytes) -> bytes:
  """The same drawing that holds each picture once, not once per column."""
  names: dict[bytes, bytes] = {}
  pictures = []

  def use(found: re.Match[bytes]) -> bytes:
    href, size, transform, look = found.groups()
    if href not in names:
      names[href] = b"picture%d" % len(names)
      pictures.append(
        b'<image id="%s" %s %s %s/>' % (names[href], href, size, look)
      )
    return b'<use xlink:href="#%s" %s/>' % (names[href], transform)

  svg = re.sub(
    rb'<image (xlink:href="[^"]+") id="[^"]*" (width="[^"]*" height="[^"]*") '
    rb'(transform="[^"]*") (style="[^"]*")/>',
    use,
    svg,
  )
  head, figure, tail = svg.partition(b'<g id="figure_1">')
  defs = b"<defs>\n" + b"\n".join(pictures) + b"\n</defs>\n "
  return head + defs + figure + tail


def _veil(axes: matplotlib.axes.Axes, live: Bool[np.ndarray, "g g"]) -> None:
  """Nothing; greys the dropped patches and outlines the live region."""
  size = 1 / len(live)
  squares = [
    matplotlib.path.Path.unit_rectangle().vertices * size + (x * size, y * size)
    for y, x in zip(*np.nonzero(~live), strict=True)
  ]
  if not squares:
    return
  path = matplotlib.path.Path.make_compound_path(
    *(matplotlib.path.Path(square, closed=True) for square in squares)
  )
  axes.add_patch(
    matplotlib.patches.PathPatch(
      path, facecolor=_VEIL, alpha=_VEIL_OPACITY, linewidth=0
    )
  )
  lines = []
  for y, x in zip(*np.nonzero(live), strict=True):
    left, top = x * size, y * size
    right, bottom = left + size, top + size
    for dy, dx, line in (
      (-1, 0, ((left, top), (right, top))),
      (1, 0, ((left, bottom), (right, bottom))),
      (0, -1, ((left, top), (left, bottom))),
      (0, 1, ((right, top), (right, bottom))),
    ):
      v, u = y + dy, x + dx
      inside = 0 <= v < len(live) and 0 <= u < len(live)
      if inside and not live[v, u]:
        lines.append(line)
  axes.add_collection(
    matplotlib.collections.LineCollection(
      lines,
      colors=style.colour("vision_tokens"),
      linewidths=0.9,
      capstyle="projecting",
    )
  )


def _count(axes: matplotlib.axes.Axes, live: int, total: int) -> None:
  axes.text(
    0.965,
    0.955,
    f"{live} / {total}",
    ha="right",
    va="bottom",
    fontsize=7,
    color="#FFFFFF",
    bbox={
      "boxstyle": "round,pad=0.22",
      "facecolor": "#000000",
      "alpha": 0.62,
      "linewidth": 0,
    },
  )

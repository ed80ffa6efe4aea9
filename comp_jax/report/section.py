"""Parts of a page: figures, tables and the sentences that they need."""

import collections.abc
import dataclasses

from comp_jax.report import tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
  """A drawing and its words.

  Attributes:
    name: of its file.
    caption: what it shows.
    alt: the same for who cannot see it, shorter.
    draw: whether the page is dark -> the bytes of an SVG.
  """

  name: str
  caption: str
  alt: str
  draw: collections.abc.Callable[[bool], bytes]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
  """Figures, then tables, then sentences under one heading."""

  title: str
  figures: tuple[Figure, ...] = ()
  grids: tuple[tables.Grid, ...] = ()
  notes: tuple[str, ...] = ()

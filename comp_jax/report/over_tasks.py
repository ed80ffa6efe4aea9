"""What a method is worth beyond one task: its mean difference over several."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from comp_jax.report import bootstrap, comparison


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean:
  """A method minus the reference at one ratio, over tasks that ran both.

  Attributes:
    method: the recipe; with its changes where a task ran several forms of it.
    ratio: fraction of the MACs to remove.
    cells: name of each experiment -> the method there.
    difference: mean of the differences on the tasks, each with equal weight.
    interval: of it; None where a task has one number alone.
  """

  method: str
  ratio: float
  cells: Mapping[str, comparison.Cell]
  difference: float
  interval: bootstrap.Interval | None

  @property
  def tasks(self) -> tuple[str, ...]:
    """Names of the experiments."""
    return tuple(self.cells)


def means(comparisons: Sequence[comparison.Comparison]) -> list[Mean]:
  """All methods that differ from the reference on at least two tasks.

  Each task keeps its own reference. A method is known by its recipe where no
  task ran two forms of it: constants that suit one task are no other method on
  the next. Losses have no place among shares of right answers and are left out.
  """
  shares = [result for result in comparisons if not result.lower_is_better]
  several = set().union(*map(_several, shares))
  found = collections.defaultdict(list)
  for result in shares:
    for cell in result.cells:
      recipe = comparison.recipe(cell.method)
      method = cell.method if recipe in several else recipe
      if cell.gaps is not None:
        found[cell.ratio, method].append((result.name, cell))
  listed = [
    Mean(
      method=method,
      ratio=ratio,
      cells=dict(cells),
      difference=float(np.mean([cell.difference for _, cell in cells])),
      interval=bootstrap.interval(*(cell.gaps for _, cell in cells)),
    )
    for (ratio, method), cells in found.items()
    if len(cells) > 1
  ]
  return sorted(listed, key=lambda m: (m.ratio, -m.difference, m.method))


def _several(result: comparison.Comparison) -> set[str]:
  """Recipes that a task ran in more than one form."""
  methods = {cell.method for cell in result.cells} | {result.reference}
  forms = collections.Counter(map(comparison.recipe, methods))
  return {recipe for recipe, count in forms.items() if count > 1}

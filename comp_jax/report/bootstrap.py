"""Intervals of a mean over seeds and examples: the paired bootstrap.

Beside it Student's t: a handful of seeds makes a bootstrap too narrow.
"""

import dataclasses

import numpy as np
import scipy.special
from jaxtyping import Float

# Drawn from a fixed seed, so that a table is reproducible.
RESAMPLES = 10_000
LEVEL = 0.95
# What an interval can be over.
BOTH, EXAMPLES, SEEDS = "seeds and examples", "examples, one seed", "seeds"
# Counts of examples that are held at a time; 32 MB.
_ROOM = 2**22


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
  """Where a mean lies in 95 % of the resamples.

  Attributes:
    low: the lower end.
    high: the upper end.
    over: what is drawn again: `BOTH`, `EXAMPLES` or `SEEDS`.
  """

  low: float
  high: float
  over: str


def interval(*tables: Float[np.ndarray, "_ _"]) -> Interval | None:
  """The 95 % percentile interval of the mean; None for a single number.

  Rows (seeds) and columns (examples) are drawn with replacement, apart from
  each other: all seeds of a resample have the same examples. A table of paired
  differences is drawn alike, so both methods have the same seeds and examples.
  With one seed the examples alone are drawn, with one column the seeds alone.

  Args:
    *tables: of each seed on each example, or the one number of each seed.
      Several, of tasks that share neither seeds nor examples, are drawn apart;
      the mean is that of their means, and nothing is drawn of which tasks.
  """
  if any(table.size == 1 for table in tables):
    return None
  rng = np.random.default_rng(0)
  means = np.mean([_resampled(table, rng) for table in tables], axis=0)
  ends = (1 - LEVEL) / 2, (1 + LEVEL) / 2
  low, high = np.quantile(means, ends)
  kinds = dict.fromkeys(map(_drawn, tables))
  return Interval(low=float(low), high=float(high), over="; ".join(kinds))


def _resampled(
  values: Float[np.ndarray, "s n"], rng: np.random.Generator
) -> Float[np.ndarray, " r"]:
  """The mean of a table in each of its resamples."""
  seeds, examples = values.shape
  rows = rng.integers(0, seeds, (RESAMPLES, seeds))
  # Examples that are alike in all seeds differ in nothing: how many of a kind
  # are drawn is multinomial. Thousands of examples are a few dozen kinds.
  kinds, counts = np.unique(values, axis=1, return_counts=True)
  share = counts / examples
  means = []
  for drawn in np.array_split(rows, -(-RESAMPLES * len(share) // _ROOM)):
    of_kind = rng.multinomial(examples, share, len(drawn)) / examples
    by_seed = of_kind @ kinds.T
    means.append(np.take_along_axis(by_seed, drawn, axis=1).mean(axis=1))
  return np.concatenate(means)


def _drawn(values: Float[np.ndarray, "s n"]) -> str:
  seeds, examples = values.shape
  return SEEDS if examples == 1 else EXAMPLES if seeds == 1 else BOTH


def student(values: Float[np.ndarray, "s n"]) -> float | None:
  """Half of Student's 95 % interval of the mean over seeds; None for one seed.

  Examples are taken as they are: it tells how seeds differ and nothing else.

  Args:
    values: of each seed on each example, or the one number of each seed.
  """
  seeds = len(values)
  if seeds == 1:
    return None
  spread = values.mean(axis=1).std(ddof=1) / np.sqrt(seeds)
  return float(scipy.special.stdtrit(seeds - 1, (1 + LEVEL) / 2) * spread)

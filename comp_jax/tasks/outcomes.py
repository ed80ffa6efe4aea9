"""What a model does on each example of a split, and the metrics they make.

An outcome is an array [n, ...] whose rows follow the examples of a split, such
as `accuracy` [n], or `t2i_rank` [n, c]: how far behind the first each of an
image's texts finds it. A metric that is a mean over examples is computed from
their outcomes and nowhere else, so that a bootstrap over the examples gives its
interval.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
  """What an evaluation finds on a split.

  Attributes:
    metrics: named numbers, the one to quote at the head.
    examples: name of an outcome -> [n, ...]; empty where the metrics are not
      made of examples.
  """

  metrics: dict[str, float]
  examples: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def values(
  metric: str, examples: Mapping[str, np.ndarray]
) -> Float[np.ndarray, " n"] | None:
  """What each example gives to the metric, their mean; None for no such mean.

  A metric `x_r5` is how often the outcome `x_rank` is below 5; any other has
  the name of its outcome. Where an example has several (the texts of an image)
  they count as one, by their mean.
  """
  name, _, rank = metric.rpartition("_r")
  if rank.isdigit() and f"{name}_rank" in examples:
    found = examples[f"{name}_rank"] < int(rank)
  elif metric in examples:
    found = examples[metric]
  else:
    return None
  return found.reshape(len(found), -1).mean(axis=1, dtype=np.float64)


def means(
  metrics: Iterable[str], examples: Mapping[str, np.ndarray]
) -> dict[str, float]:
  """Metrics that are means over these examples."""
  return {name: float(np.mean(values(name, examples))) for name in metrics}

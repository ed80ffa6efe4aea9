"""NLVR2: is a sentence true of a pair of images?

The same binary decision as matching, reported as accuracy (spec `upop.md`
part 5). Nothing is drawn at random in evaluation: the authors' code swaps the
images of dev and test pairs at random.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from jaxtyping import Array

from comp_jax.tasks import matching


def evaluate(
  predict: Callable[[Mapping], Array],
  batches: Iterable[Mapping[str, np.ndarray]],
) -> dict[str, float]:
  """`accuracy` over a split that is streamed batch by batch."""
  return {"accuracy": matching.evaluate(predict, batches)["accuracy"]}


TASK = dataclasses.replace(
  matching.TASK,
  name="nlvr",
  evaluate=evaluate,
  needs=frozenset({"label", "image2"}),
)

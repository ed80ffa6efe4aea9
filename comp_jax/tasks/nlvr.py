"""NLVR2: is a sentence true of a pair of images?

The same binary decision as matching, reported as accuracy (spec `upop.md`
part 5). Nothing is drawn at random in evaluation: the authors' code swaps the
images of dev and test pairs at random.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from jaxtyping import Array

from comp_jax.tasks import matching, outcomes


def evaluate(
  predict: Callable[[Mapping], Array],
  batches: Iterable[Mapping[str, np.ndarray]],
) -> outcomes.Outcomes:
  """`accuracy` over a split that is streamed batch by batch."""
  found = matching.evaluate(predict, batches)
  return dataclasses.replace(
    found, metrics={"accuracy": found.metrics["accuracy"]}
  )


TASK = dataclasses.replace(
  matching.TASK,
  name="nlvr",
  evaluate=evaluate,
  needs=frozenset({"label", "image2"}),
)

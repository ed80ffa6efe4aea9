"""What a task gives the loops: loss, metrics, evaluation."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Array

from comp_jax.models import specs

# (params, masks, policies, batch) -> arrays of an evaluation batch.
Predict = Callable[[Mapping, Mapping | None, Mapping | None, Mapping], Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
  """A task, for every model of a family.

  Attributes:
    name: as configs name it.
    loss: (output, batch) -> scalar, a mean over the batch.
    metrics: name -> (output, batch) -> validation metric of MPS, higher is
      better; traceable. All tasks have `loss`.
    predict: spec -> what evaluation computes of a padded batch; jitted by the
      caller.
    evaluate: (batch -> predictions, batches) -> named numbers; streams, and
      leaves rows out whose `_mask` is False.
    labelled: whether its examples need a `label`.
    images: pictures of an example.
  """

  name: str
  loss: Callable[[Mapping, Mapping], Array]
  metrics: Mapping[str, Callable[[Mapping, Mapping], Array]]
  predict: Callable[[specs.ModelSpec], Predict]
  evaluate: Callable[
    [Callable[[Mapping], Any], Iterable[Mapping[str, np.ndarray]]],
    dict[str, float],
  ]
  labelled: bool = False
  images: int = 1

"""What a task gives the loops: loss, metrics, evaluation."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Key

from comp_jax import errors
from comp_jax.data import pipelines, texts
from comp_jax.models import specs
from comp_jax.tasks import outcomes

# (params, execution, batch, *shared) -> arrays of an evaluation batch;
# `shared` is what `Task.evaluate` gives beside a batch.
Predict = Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """Numbers of the tasks' protocols, a config's `task` section.

  Attributes:
    queue: features of each modality that momentum contrast remembers; 0
      contrasts the pairs of a batch with each other (two towers only).
    momentum: decay of the momentum twins' weights, per step.
    distill: weight of the twins' similarities in the targets.
    ramp: steps over which that weight rises from 0.
    rerank: candidates of a query that the matching head judges; 0 for none.
    answers: different answers to a question that it is trained on.
    answer_length: tokens of an answer.
    rank: answers, the most frequent ones of train, of which the likeliest is
      taken; 0 writes freely.

  Raises:
    UserError: a number is out of its range.
  """

  queue: int = 0
  momentum: float = 0.995
  distill: float = 0.4
  ramp: int = 0
  rerank: int = 128
  answers: int = 10
  answer_length: int = 10
  rank: int = 0

  def __post_init__(self):
    # The shortest text is [CLS], a word, [SEP].
    lowest = {"answers": 1, "answer_length": 3}
    for field in dataclasses.fields(self):
      value, low = getattr(self, field.name), lowest.get(field.name, 0)
      if value < low:
        raise errors.UserError(
          f"config.task.{field.name} must be {low} or more, not {value}"
        )
    for name in ("momentum", "distill"):
      if getattr(self, name) > 1:
        raise errors.UserError(
          f"config.task.{name} must be at most 1, not {getattr(self, name)}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
  """What a task carries from step to step; this one carries nothing.

  The loops hold its pytree beside weights and optimiser: it is placed,
  donated, saved and restored like them.
  """

  def initial(self, params: Mapping, key: Key[Array, ""]) -> Any:
    """What is known before the first step."""
    del params, key
    return {}

  def renewed(self, memory: Any, params: Mapping) -> Any:
    """What a new phase of training begins with, on these weights."""
    del params
    return memory

  def recall(
    self, params: Mapping, memory: Any, batch: Mapping
  ) -> tuple[Any, Mapping, tuple]:
    """The memory after a step, and what the step itself may look at.

    Args:
      params: weights before the step.
      memory: before the step.
      batch: its examples.

    Returns:
      The memory, the batch with more arrays [b, ...], and what else the loss
      is called with, whole for every part of the batch.
    """
    del params
    return memory, batch, ()

  def check(self, batch_size: int) -> None:
    """Raises a UserError where batches of this size cannot be remembered."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Task:
  """A task, for every model of a family.

  Attributes:
    name: as configs name it.
    loss: (output, batch, *recalled) -> scalar, a mean over the batch.
    metrics: name -> (output, batch) -> validation metric of MPS, higher is
      better; traceable. All tasks have `loss`.
    predict: spec -> what evaluation computes of a padded batch; jitted by the
      caller.
    evaluate: ((batch, *shared) -> predictions, batches) -> what was found;
      streams, and leaves rows out whose `_mask` is False.
    needs: what an example has beside an image and captions.
    layout: what is read of its texts.
    memory: spec -> what training carries from step to step.
  """

  name: str
  loss: Callable[..., Array]
  metrics: Mapping[str, Callable[[Mapping, Mapping], Array]]
  predict: Callable[[specs.ModelSpec], Predict]
  evaluate: Callable[
    [Callable[..., Any], pipelines.EvalBatches], outcomes.Outcomes
  ]
  needs: frozenset[str] = frozenset()
  layout: texts.Layout = texts.Layout()
  memory: Callable[[specs.ModelSpec], Memory] = lambda spec: Memory()

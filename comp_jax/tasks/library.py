"""The tasks by the model that does them."""

from collections.abc import Callable, Mapping

from comp_jax.models import specs
from comp_jax.tasks import (
  blip_retrieval,
  caption,
  matching,
  nlvr,
  retrieval,
  task,
  vqa,
)

_OF_FAMILY: Mapping[str, Callable[[task.Options], task.Task]] = {
  "two_tower": retrieval.build,
  "matching": lambda options: matching.TASK,
  "nlvr": lambda options: nlvr.TASK,
  "retrieval": blip_retrieval.build,
  "caption": caption.build,
  "vqa": vqa.build,
}


def of(spec: specs.ModelSpec, options: task.Options | None = None) -> task.Task:
  """The task that a model is made for.

  Args:
    spec: the model.
    options: of its protocol; None for the defaults.
  """
  return _OF_FAMILY[spec.family](options or task.Options())

"""The tasks by the model that does them."""

from comp_jax.models import specs
from comp_jax.tasks import matching, nlvr, retrieval, task

_OF_FAMILY = {
  "two_tower": retrieval.TASK,
  "matching": matching.TASK,
  "nlvr": nlvr.TASK,
}


def of(spec: specs.ModelSpec) -> task.Task:
  """The task that a model is made for."""
  return _OF_FAMILY[spec.family]

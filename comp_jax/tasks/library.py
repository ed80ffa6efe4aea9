"""The tasks by the model that does them."""

from collections.abc import Callable, Mapping

from comp_jax import errors
from comp_jax.models import specs
from comp_jax.tasks import blip_retrieval, matching, nlvr, retrieval, task

_OF_FAMILY: Mapping[str, Callable[[task.Options], task.Task]] = {
  "two_tower": retrieval.build,
  "matching": lambda options: matching.TASK,
  "nlvr": lambda options: nlvr.TASK,
  "retrieval": blip_retrieval.build,
}


def of(spec: specs.ModelSpec, options: task.Options | None = None) -> task.Task:
  """The task that a model is made for.

  Args:
    spec: the model.
    options: of its protocol; None for the defaults.

  Raises:
    UserError: a model that the loops have no task for.
  """
  if spec.family not in _OF_FAMILY:
    raise errors.UserError(
      f"no loop trains or prunes a {spec.family} model yet; they take "
      f"{', '.join(_OF_FAMILY)}: give another preset or checkpoint"
    )
  return _OF_FAMILY[spec.family](options or task.Options())

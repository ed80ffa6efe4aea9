"""Pure training steps: gradients, CIM statistics, one update.

Nothing here knows of devices; the callers jit.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from comp_jax.core import execution as execution_lib
from comp_jax.core import importance
from comp_jax.core import masks as masks_lib
from comp_jax.core import prunable as prunable_lib
from comp_jax.core import tokens as tokens_lib
from comp_jax.tasks import task as task_lib

Loss = Callable[..., Array]
# What training without a search gathers.
_NOTHING = importance.Estimator(kind="none")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
  """A model and the loss it is trained on.

  Attributes:
    prunable: the model.
    loss: (output, batch, *recalled) -> scalar, a mean over the batch.
    policy: the token rule; thresholds are filled in.
    microbatches: gradient accumulation: parts a batch is split into. A
      contrastive loss then sees the negatives of its part alone, but all
      that its task remembers.
    memory: what the task carries from step to step.
  """

  prunable: prunable_lib.Prunable
  loss: Loss
  policy: tokens_lib.TokenPolicy = tokens_lib.TokenPolicy()
  microbatches: int = 1
  memory: task_lib.Memory = task_lib.Memory()

  def policies(self, thetas: Mapping) -> dict[str, tokens_lib.TokenPolicy]:
    """The `mask` execution of each tower at these thresholds."""
    return {
      tower: dataclasses.replace(self.policy, theta=theta)
      for tower, theta in thetas.items()
    }

  def execution(
    self,
    masks: Mapping | None,
    thetas: Mapping,
    estimator: importance.Estimator | None = None,
  ) -> execution_lib.Execution:
    """Units by their masks, tokens by the rule at these thresholds."""
    policies = self.policies(thetas)
    return execution_lib.Execution(
      masks=masks, policies=policies, estimator=estimator
    )

  def gradients(
    self,
    params: Mapping,
    memory: Any,
    batch: Mapping,
    execution: execution_lib.Execution,
  ) -> tuple[Any, Float[Array, ""], Mapping, Mapping]:
    """Memory, loss, gradients and parameter-score statistics of one batch.

    Args:
      params: weights.
      memory: of the task, before the step.
      batch: arrays [b, ...].
      execution: soft masks, token policies, and what to gather: nothing but
        zeros without an estimator.

    Returns:
      The memory after the step; the loss, gradients like `params`, statistics
      like `importance.empty(...).total`, all means over microbatches.
    """
    memory, batch, recalled = self.memory.recall(params, memory, batch)
    part = lambda b: self._gradients(params, b, recalled, execution)  # noqa: E731
    if self.microbatches == 1:
      return memory, *part(batch)
    parts = jax.tree.map(
      lambda x: x.reshape(self.microbatches, -1, *x.shape[1:]), batch
    )
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, first)
    )
    add = lambda total, b: (jax.tree.map(jnp.add, total, part(b)), None)  # noqa: E731
    total, _ = jax.lax.scan(add, zeros, parts)
    return memory, *jax.tree.map(lambda x: x / self.microbatches, total)

  def advance(
    self,
    optimizer: optax.GradientTransformation,
    carry: tuple,
    batch: Mapping,
    execution: execution_lib.Execution,
  ) -> tuple[tuple, Float[Array, ""]]:
    """Weights, optimiser and memory after one step, and its loss."""
    params, state, memory = carry
    memory, loss, grads, _ = self.gradients(params, memory, batch, execution)
    return (*update(optimizer, params, state, grads), memory), loss

  def _gradients(self, params, batch, recalled, execution):
    groups, estimator = self.prunable.groups, execution.estimator or _NOTHING
    tapped = estimator.kind == "taylor" and execution.masks is not None
    probes = masks_lib.ones(groups) if tapped else None

    def objective(params, probes):
      output, aux = self.prunable.forward(
        params, batch, dataclasses.replace(execution, probes=probes)
      )
      return self.loss(output, batch, *recalled), aux

    if tapped:
      (loss, _), (grads, statistics) = jax.value_and_grad(
        objective, argnums=(0, 1), has_aux=True
      )(params, probes)
      return loss, grads, statistics
    (loss, aux), grads = jax.value_and_grad(objective, has_aux=True)(
      params, None
    )
    statistics = importance.empty(groups, estimator).total
    if estimator.kind == "wanda":
      statistics = {tower: aux[tower]["moments"] for tower in statistics}
    return loss, grads, statistics


def update(
  optimizer: optax.GradientTransformation,
  params: Mapping,
  state: Any,
  grads: Mapping,
) -> tuple[Mapping, Any]:
  """One optimiser step."""
  updates, state = optimizer.update(grads, state, params)
  return optax.apply_updates(params, updates), state

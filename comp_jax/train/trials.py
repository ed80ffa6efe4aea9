"""What a stage would do to a dense model before any training repairs it.

What scores and standardisations are worth, and how many validation examples a
choice needs.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from comp_jax import errors
from comp_jax.core import importance
from comp_jax.core import masks as masks_lib
from comp_jax.recipes import recipe as recipe_lib
from comp_jax.train import stage as stage_lib
from comp_jax.train import state as state_lib

# What `damage` compares: fields of a recipe.
SCORES = {
  "Taylor, CIP": {"score": "taylor"},
  "Taylor": {"score": "taylor", "cip": False},
  "|Taylor|, CIP": {"score": "taylor", "reduce": "abs"},
  "|Taylor|": {"score": "taylor", "cip": False, "reduce": "abs"},
  "Wanda, CIP": {"score": "wanda"},
  "Wanda": {"score": "wanda", "cip": False},
  "magnitude": {"score": "magnitude"},
  "random": {"score": "random"},
}
STANDARDISATIONS = (
  "layer_mean",
  "z_layer",
  "layer_rank",
  "z_pooled",
  "isomorphic",
)


def damage(
  stage: stage_lib.Stage,
  params: Mapping,
  batches: Mapping,
  select: Mapping,
  mode: str,
  shares: Sequence[float],
) -> dict[str, Any]:
  """The validation metric when a mode has lost its lowest units.

  By every score and every way of comparing layers. Nothing is trained and no
  token falls: what a score is worth before training repairs its mistakes.

  Args:
    stage: model and objective; the recipe's own score does not matter.
    params: weights of the dense model.
    batches: training batches [t, b, ...] over which scores are gathered.
    select: validation examples [chunks, c, ...].
    mode: a mode of parameters.
    shares: of the dense MACs to remove.

  Returns:
    `dense`, the metric of the whole model, and `metric`: score ->
    standardisation -> [shares].
  """
  modes, key = stage.prunable.modes, jax.random.key(0)
  selected = jnp.array([each == mode for each in modes])
  validate = jax.jit(stage.validate)
  validated = validate(params, stage.ones, stage.off, select)
  dense, _ = validated
  found = {}
  for name, fields in SCORES.items():
    whole = recipe_lib.Recipe(name=name, **fields)
    scoring = dataclasses.replace(stage, recipe=whole)
    state = _dense(scoring, params, batches, validated)
    found[name] = {}
    for how in STANDARDISATIONS:
      recipe = dataclasses.replace(whole, standardise=how)
      mark = jax.jit(dataclasses.replace(stage, recipe=recipe).mark)
      metrics = []
      for share in shares:
        marked = mark(state, selected, jnp.asarray(share), key)
        masks = masks_lib.soft(stage.ones, marked, 1.0)
        metric, _ = validate(params, masks, stage.off, select)
        metrics.append(float(metric))
      found[name][how] = metrics
  return {"dense": float(dense), "metric": found}


def choices(
  stage: stage_lib.Stage,
  params: Mapping,
  batches: Mapping,
  select: Mapping,
  sizes: Sequence[int],
) -> dict[str, Any]:
  """The costs (Eq. 8) of every mode's first stage, measured on less and less.

  What `lookahead` would choose by before the first stage: each mode that is
  not exhausted takes its step, which is validated before any training.

  Args:
    stage: model, objective and recipe.
    params: weights of the dense model.
    batches: training batches [t, b, ...] over which scores are gathered.
    select: validation examples [chunks, c, ...].
    sizes: chunks of a subset; as many disjoint subsets as there are.

  Returns:
    `modes`, those that were tried; `whole`, their costs [m] on all examples;
    and `subsets`: size in chunks -> costs [n, m] on each subset.

  Raises:
    UserError: no mode has anything to remove.
  """
  chunks = jax.tree.leaves(select)[0].shape[0]
  validate = jax.jit(stage.validate)
  dense = validate(params, stage.ones, stage.off, select)
  state = _dense(stage, params, batches, dense)
  live = np.asarray(~stage.exhausted(state, stage.removable(state)))
  if not live.any():
    raise errors.UserError(
      "no mode can remove what a stage should: raise config.ratio, or allow "
      "more in config.prune.modes"
    )

  @jax.jit
  def costs(state, select):
    metric, counts = stage.validate(state.params, stage.ones, stage.off, select)
    # Its texts may be longer than the average of all.
    macs = stage.macs(stage.ones, counts)
    state = dataclasses.replace(state, metric=metric, counts=counts, macs=macs)
    tried = jnp.asarray(live)
    return stage.trial_costs(state, tried, None, batches, select, state.key)

  def of(first, size):
    part = jax.tree.map(lambda x: x[first : first + size], select)
    return np.asarray(costs(state, part))[live].tolist()

  return {
    "modes": list(itertools.compress(stage.prunable.modes, live)),
    "whole": of(0, chunks),
    "subsets": {
      size: [of(i, size) for i in range(0, chunks - size + 1, size)]
      for size in sizes
    },
  }


def _dense(stage, params, batches, validated) -> state_lib.SearchState:
  """The state of the dense model with scores over batches [t, b, ...]."""
  estimator = stage.recipe.estimator
  metric, counts = validated
  state = state_lib.initial(
    stage.prunable,
    params,
    optax.identity(),
    None,
    estimator,
    counts,
    metric,
    seed=0,
  )
  gathered = _gathered(stage, params, batches, estimator)
  return dataclasses.replace(state, statistics=gathered)


def _gathered(stage, params, batches, estimator):
  """Statistics of the dense model over batches [t, b, ...]."""
  objective = stage.objective
  memory = objective.memory.initial(params, jax.random.key(0))
  execution = objective.execution(stage.ones, stage.off, estimator)

  def add(carry, batch):
    memory, total = carry
    memory, _, _, statistics = objective.gradients(
      params, memory, batch, execution
    )
    return (memory, total.add(statistics)), None

  empty = importance.empty(stage.prunable.groups, estimator)
  run = jax.jit(lambda batches: jax.lax.scan(add, (memory, empty), batches))
  (_, total), _ = run(batches)
  return total

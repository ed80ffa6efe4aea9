"""The state of a pruning search: one pytree, saved and restored whole."""

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from comp_jax.core import importance, mps
from comp_jax.core import masks as masks_lib
from comp_jax.core import prunable as prunable_lib


@typing.no_type_check  # Leaves are shardings, shapes or None at times.
@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    "params",
    "optimizer",
    "memory",
    "masks",
    "thetas",
    "statistics",
    "strategy",
    "counts",
    "macs",
    "metric",
    "key",
  ],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchState:
  """Everything that a stage reads and writes.

  Attributes:
    params: weights.
    optimizer: optax state.
    memory: what the task carries from step to step.
    masks: hard masks, 1 live and 0 removed.
    thetas: token threshold of each tower, in multiples of the mean score.
    statistics: what the last stage gathered for the parameter scores.
    strategy: MPS.
    counts: tokens of the validation examples: {tower: [v, l+1]}.
    macs: mean MACs on those examples, as a fraction of dense.
    metric: validation metric, higher is better.
    key: randomness of the choices.
  """

  params: Mapping
  optimizer: Any
  memory: Any
  masks: Mapping
  thetas: Mapping[str, Float[Array, ""]]
  statistics: importance.Accumulator
  strategy: mps.State
  counts: Mapping[str, Int[Array, "v l1"]]
  macs: Float[Array, ""]
  metric: Float[Array, ""]
  key: Key[Array, ""]


@typing.no_type_check  # Leaves are shardings, shapes or None at times.
@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    "mode",
    "explored",
    "selected",
    "active",
    "goal",
    "metric_before",
    "metric_immediate",
    "metric_uncut",
    "metric",
    "macs_before",
    "macs",
    "cost",
    "immediate_cost",
    "costs",
    "exhausted",
    "removable",
    "thetas",
    "losses",
    "sound",
  ],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class StageRecord:
  """What a stage did; MACs are fractions of dense.

  Attributes:
    mode: index of the mode; -1 for all at once or none.
    explored: whether exploration chose it.
    selected: modes that were raised.
    active: whether the stage pruned at all.
    goal: MACs it aimed at.
    metric_before: validation metric before, after marking but before any
      training (`immediate`), after the same steps without the cut (`uncut`,
      NaN where costs are not paired), and after the stage.
    macs_before: MACs before and after.
    cost: Eq. 8 after training; the immediate one before it.
    costs: R of every mode after the update.
    exhausted: modes that had nothing left to remove.
    removable: what each mode could still remove.
    thetas: token thresholds after the stage.
    losses: training loss of each step.
    sound: whether the state after the stage is finite: weights, optimiser,
      memory, scores, costs and metric.
  """

  mode: Int[Array, ""]
  explored: Bool[Array, ""]
  selected: Bool[Array, " m"]
  active: Bool[Array, ""]
  goal: Float[Array, ""]
  metric_before: Float[Array, ""]
  metric_immediate: Float[Array, ""]
  metric_uncut: Float[Array, ""]
  metric: Float[Array, ""]
  macs_before: Float[Array, ""]
  macs: Float[Array, ""]
  cost: Float[Array, ""]
  immediate_cost: Float[Array, ""]
  costs: Float[Array, " m"]
  exhausted: Bool[Array, " m"]
  removable: Float[Array, " m"]
  thetas: Mapping[str, Float[Array, ""]]
  losses: Float[Array, " t"]
  sound: Bool[Array, ""]


@typing.no_type_check  # Leaves are shardings, shapes or None at times.
@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    "state",
    "masks",
    "marked",
    "thetas",
    "running",
    "mode",
    "explored",
    "selected",
    "active",
    "goal",
    "exhausted",
    "removable",
    "uncut",
    "immediate",
    "immediate_macs",
    "step",
  ],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
  """A stage that has chosen what goes, and trains while it fades.

  Attributes:
    state: before the stage, but for the key and, under `lookahead`, the costs;
      its weights, optimiser, memory and statistics advance with the training.
    masks: what the marked units fade from.
    marked: 1 for the units that go.
    thetas: token thresholds after the stage.
    running: whether the stage trains at all: a search that has arrived stands
      still.
    mode: see `StageRecord`; so are `explored`, `selected`, `active`, `goal`,
      `exhausted` and `removable`.
    uncut: metric and MACs after the same training without the cut, or None.
    immediate: metric of the cut before any training.
    immediate_macs: its MACs.
    step: how many steps have trained.
  """

  state: SearchState
  masks: Mapping
  marked: Mapping
  thetas: Mapping[str, Float[Array, ""]]
  running: Bool[Array, ""]
  mode: Int[Array, ""]
  explored: Bool[Array, ""]
  selected: Bool[Array, " m"]
  active: Bool[Array, ""]
  goal: Float[Array, ""]
  exhausted: Bool[Array, " m"]
  removable: Float[Array, " m"]
  uncut: tuple[Float[Array, ""], Float[Array, ""]] | None
  immediate: Float[Array, ""]
  immediate_macs: Float[Array, ""]
  step: Int[Array, ""]

  @property
  def start(self) -> SearchState:
    """The state that the stage trains, from masks that have not faded."""
    return dataclasses.replace(self.state, masks=self.masks)


def initial(
  prunable: prunable_lib.Prunable,
  params: Mapping,
  optimizer: optax.GradientTransformation,
  memory: Any,
  estimator: importance.Estimator,
  counts: Mapping,
  metric: Float[Array, ""],
  seed: int,
) -> SearchState:
  """The state of a dense model, before any stage."""
  return SearchState(
    params=params,
    optimizer=optimizer.init(params),
    memory=memory,
    masks=masks_lib.ones(prunable.groups),
    thetas={t: jnp.zeros((), jnp.float32) for t in prunable.towers},
    statistics=importance.empty(prunable.groups, estimator),
    strategy=mps.initial(len(prunable.modes)),
    counts=counts,
    macs=jnp.ones((), jnp.float32),
    metric=metric,
    key=jax.random.key(seed),
  )

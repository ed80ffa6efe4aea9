"""One stage of the pruning loop as a pure function (DESIGN: the outer loop).

choose a mode -> raise its threshold to the stage's goal -> train while the
marked units fade -> validate -> learn the mode's cost. Masks, thresholds,
mode and rates are arrays: the function is traced once for a whole search, and
it can be vmapped over searches.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from comp_jax.core import importance
from comp_jax.core import masks as masks_lib
from comp_jax.core import mps
from comp_jax.core import prunable as prunable_lib
from comp_jax.recipes import recipe as recipe_lib
from comp_jax.train import state as state_lib
from comp_jax.train import step as step_lib

# A mode that can remove less than this fraction of dense is exhausted.
EXHAUSTED = 1e-3
# A stage takes at most this share of what its mode can still remove.
STAGE_SHARE = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Numbers of a search.

  Attributes:
    dense_macs: MACs of the dense model on the validation examples.
    target: MACs to reach, as a fraction of dense.
    stage_macs: MACs a stage removes, as a fraction of dense.
    calibration: validation examples on which theta is bisected.
    bisections: halvings of theta's range.
    cost: `eq8` (after training) or `immediate`.
  """

  dense_macs: float
  target: float
  stage_macs: float
  calibration: int
  bisections: int = 12
  cost: str = "eq8"

  def __post_init__(self):
    if self.cost not in ("eq8", "immediate"):
      raise ValueError(f"cost must be eq8 or immediate, not {self.cost!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """The functions of a search, over one model, task and recipe.

  Attributes:
    objective: model and training loss.
    metric: (output, batch) -> validation metric, higher is better.
    recipe: what to prune, when, by which score.
    optimizer: weight updates.
    settings: numbers.
    allowed: modes that may prune; None for all.
  """

  objective: step_lib.Objective
  metric: Callable[[Mapping, Mapping], Array]
  recipe: recipe_lib.Recipe
  optimizer: optax.GradientTransformation
  settings: Settings
  allowed: tuple[str, ...] | None = None

  @property
  def prunable(self) -> prunable_lib.Prunable:
    return self.objective.prunable

  def macs(self, masks: Mapping, counts: Mapping) -> Float[Array, ""]:
    """MACs as a fraction of dense."""
    return self.prunable.macs(masks, counts) / self.settings.dense_macs

  def removable(self, state: state_lib.SearchState) -> Float[Array, " m"]:
    """What each mode can still remove, as a fraction of dense."""
    modes = self.prunable.modes
    allowed = [self.allowed is None or m in self.allowed for m in modes]
    macs = self.prunable.removable(state.masks, state.counts)
    return jnp.where(jnp.array(allowed), macs, 0.0) / self.settings.dense_macs

  def validate(
    self, params: Mapping, masks: Mapping, thetas: Mapping, select: Mapping
  ) -> tuple[Float[Array, ""], Mapping]:
    """The metric and the token counts on the `select` examples.

    Args:
      params: weights.
      masks: hard masks.
      thetas: token thresholds.
      select: arrays [chunks, c, ...]: forwards run chunk by chunk, the metric
        over all of them.
    """
    policies = self.objective.policies(thetas)

    def forward(batch):
      output, aux = self.prunable.forward(
        params, batch, masks, None, policies, None
      )
      return output, {t: aux[t]["counts"] for t in self.prunable.towers}

    output, counts = jax.lax.map(forward, select)
    join = lambda x: x.reshape(-1, *x.shape[2:]) if x.ndim > 1 else x[0]  # noqa: E731
    output, counts, flat = jax.tree.map(join, (output, counts, select))
    return self.metric(output, flat), counts

  # --- Raising thresholds -------------------------------------------------

  def scores(self, state: state_lib.SearchState, key: Array) -> Mapping:
    """Comparable scores of every unit (CIM, standardised)."""
    return importance.comparable_scores(
      self.recipe.score,
      state.params,
      self.prunable.groups,
      state.statistics.mean,
      state.masks,
      self.recipe.standardise,
      key,
    )

  def mark(
    self,
    state: state_lib.SearchState,
    selected: Bool[Array, " m"],
    need: Float[Array, ""],
    key: Array,
    whole_heads: bool = True,
  ) -> Mapping:
    """1 for the units of the selected modes that go: the lowest-scored ones.

    Args:
      state: current masks, weights, statistics and counts.
      selected: modes that may lose units.
      need: MACs to remove, as a fraction of dense.
      key: for random scores.
      whole_heads: False takes neurons only.
    """
    prunable = self.prunable
    groups = prunable.groups
    scores = self.scores(state, key)
    unit_macs = prunable.unit_macs(state.masks, state.counts)

    def eligible(group):
      leaf = lambda tree: _leaf(tree, group)  # noqa: E731
      free = masks_lib.removable(leaf(scores), leaf(state.masks), group.floor)
      return free & (whole_heads or not group.indivisible)

    flat = lambda tree: masks_lib.flatten(groups, tree)  # noqa: E731
    modes = prunable_lib.group_modes(groups, prunable.modes)
    heads = masks_lib.build(
      groups, lambda g: jnp.full((g.layers, g.units), g.indivisible)
    )
    marked = masks_lib.mark_lowest(
      flat(scores),
      flat(masks_lib.build(groups, eligible)) & selected[modes],
      flat(unit_macs) / self.settings.dense_macs,
      flat(heads),
      need,
    )
    return masks_lib.unflatten(groups, marked.astype(jnp.float32))

  def raise_thetas(
    self,
    state: state_lib.SearchState,
    masks: Mapping,
    selected: Bool[Array, " m"],
    goal: Float[Array, ""],
    select: Mapping,
  ) -> Mapping:
    """Thresholds of the selected towers that bring the MACs to `goal`.

    Bisection on the calibration examples, on a cubic scale from 0 to the
    number of tokens: useful thresholds are small. MACs need not be monotone
    in theta, so the end that meets the goal is returned.
    """
    prunable, settings = self.prunable, self.settings
    chosen = {
      tower: selected[prunable.modes.index(mode)]
      for mode, tower in prunable.token_modes.items()
    }
    calibration = jax.tree.map(
      lambda x: x.reshape(-1, *x.shape[2:])[: settings.calibration], select
    )
    known = {
      tower: counts[: settings.calibration]
      for tower, counts in state.counts.items()
    }
    # The goal as it reads on the calibration examples.
    shift = self.macs(state.masks, known) - state.macs
    # Above it no score can pass: scores sum to 1 over fewer tokens.
    highest = jnp.max(
      jnp.stack([jnp.max(counts[:, 0]) for counts in known.values()])
    ).astype(jnp.float32)

    def thetas_at(u):
      theta = highest * u**3
      return {
        tower: jnp.where(chosen[tower], jnp.maximum(old, theta), old).astype(
          jnp.float32
        )
        for tower, old in state.thetas.items()
      }

    def excess(u):
      policies = self.objective.policies(thetas_at(u))
      counts = {
        tower: jax.lax.cond(
          chosen[tower],
          lambda t=tower: prunable.tower_counts[t](
            state.params, calibration, masks, policies
          ),
          lambda t=tower: known[t],
        )
        for tower in prunable.towers
      }
      return self.macs(masks, counts) - shift - goal

    def halve(bracket, _):
      low, high = bracket
      middle = (low + high) / 2
      meets = excess(middle) <= 0
      return (
        jnp.where(meets, low, middle),
        jnp.where(meets, middle, high),
      ), None

    def search():
      start = (jnp.zeros(()), jnp.ones(()))
      (_, high), _ = jax.lax.scan(
        halve, start, None, length=settings.bisections
      )
      return thetas_at(high)

    some = jnp.any(jnp.stack(list(chosen.values())))
    return jax.lax.cond(some, search, lambda: dict(state.thetas))

  def propose(
    self,
    state: state_lib.SearchState,
    selected: Bool[Array, " m"],
    goal: Float[Array, ""],
    select: Mapping,
    key: Array,
  ) -> tuple[Mapping, Mapping]:
    """Units to mark and thresholds that bring the MACs down to `goal`.

    Where parameters and tokens are selected together, each removes half,
    parameters more where the tokens cannot.
    """
    prunable = self.prunable
    is_token = jnp.array([m in prunable.token_modes for m in prunable.modes])
    removable = self.removable(state)
    total = jnp.maximum(state.macs - goal, 0.0)
    tokens = jnp.any(selected & is_token)
    units = jnp.any(selected & ~is_token)
    by_tokens = jnp.sum(jnp.where(selected & is_token, removable, 0.0))
    half = jnp.maximum(total / 2, total - STAGE_SHARE * by_tokens)
    need = jnp.where(units, jnp.where(tokens, half, total), 0.0)
    marked = self.mark(state, selected, need, key)
    masks = masks_lib.soft(state.masks, marked, 1.0)
    thetas = self.raise_thetas(state, masks, selected, goal, select)
    return marked, thetas

  def goal(
    self,
    state: state_lib.SearchState,
    selected: Bool[Array, " m"],
    removable: Float[Array, " m"],
  ) -> Float[Array, ""]:
    """The MACs that a stage of the selected modes aims at."""
    share = STAGE_SHARE * jnp.sum(jnp.where(selected, removable, 0.0))
    step = jnp.minimum(self.settings.stage_macs, share)
    return jnp.maximum(self.settings.target, state.macs - step)

  # --- The stage ----------------------------------------------------------

  def train(
    self,
    state: state_lib.SearchState,
    marked: Mapping,
    thetas: Mapping,
    batches: Mapping,
  ) -> tuple[Mapping, object, importance.Accumulator, Float[Array, " t"]]:
    """Weights after the stage's steps, while units fade and theta rises."""
    length = jax.tree.leaves(batches)[0].shape[0]
    estimator = self.recipe.estimator

    def body(carry, inputs):
      params, optimizer, statistics = carry
      index, batch = inputs
      progress = (index + 1.0) / length
      masks = masks_lib.soft(state.masks, marked, progress)
      ramp = jnp.sin(jnp.pi / 2 * progress)
      now = {
        tower: old + ramp * (thetas[tower] - old)
        for tower, old in state.thetas.items()
      }
      loss, grads, gathered = self.objective.gradients(
        params, batch, masks, self.objective.policies(now), estimator
      )
      params, optimizer = step_lib.update(
        self.optimizer, params, optimizer, grads
      )
      return (params, optimizer, statistics.add(gathered)), loss

    fresh = importance.empty(self.prunable.groups, estimator)
    steps = jnp.arange(length, dtype=jnp.float32)
    (params, optimizer, statistics), losses = jax.lax.scan(
      body, (state.params, state.optimizer, fresh), (steps, batches)
    )
    return params, optimizer, statistics, losses

  def choose(
    self, state: state_lib.SearchState, exhausted: Bool[Array, " m"], key
  ) -> tuple[Array, Bool[Array, ""], Bool[Array, " m"]]:
    """The mode, whether it explores, and the modes to raise."""
    if self.recipe.schedule == "together":
      none = jnp.asarray(-1, jnp.int32)
      return none, jnp.asarray(False), ~exhausted
    mode, explored = mps.choose(
      state.strategy, exhausted, key, self.recipe.strategy
    )
    selected = (jnp.arange(exhausted.shape[0]) == mode) & ~exhausted
    return mode, explored, selected

  def __call__(
    self,
    state: state_lib.SearchState,
    batches: Mapping,
    select: Mapping,
    prune: Bool[Array, ""],
  ) -> tuple[state_lib.SearchState, state_lib.StageRecord]:
    """The state after one stage, and what happened.

    Args:
      state: before the stage.
      batches: training batches [steps, b, ...].
      select: validation examples [chunks, c, ...].
      prune: False trains only: warm-up of the optimiser, and the calibration
        pass of the scores.
    """
    settings = self.settings
    next_key, choice_key, score_key = jax.random.split(state.key, 3)
    removable = self.removable(state)
    exhausted = removable < EXHAUSTED
    active = prune & (state.macs > settings.target) & ~jnp.all(exhausted)
    mode, explored, selected = self.choose(state, exhausted, choice_key)
    selected = selected & active
    goal = self.goal(state, selected, removable)
    marked, thetas = self.propose(state, selected, goal, select, score_key)
    masks = masks_lib.soft(state.masks, marked, 1.0)

    immediate, counts = self.validate(state.params, masks, thetas, select)
    immediate_cost = mps.stage_cost(
      state.metric, immediate, state.macs, self.macs(masks, counts)
    )
    params, optimizer, statistics, losses = self.train(
      state, marked, thetas, batches
    )
    metric, counts = self.validate(params, masks, thetas, select)
    macs = self.macs(masks, counts)
    cost = mps.stage_cost(state.metric, metric, state.macs, macs)
    learned = mps.update(
      state.strategy,
      mode,
      cost if settings.cost == "eq8" else immediate_cost,
      state.macs - macs,
      self.recipe.strategy,
    )
    strategy = jax.tree.map(
      lambda new, old: jnp.where(active, new, old), learned, state.strategy
    )
    after = state_lib.SearchState(
      params=params,
      optimizer=optimizer,
      masks=masks,
      thetas=thetas,
      statistics=statistics,
      strategy=strategy,
      counts=counts,
      macs=macs,
      metric=metric,
      key=next_key,
    )
    # A search that has arrived stands still, whatever its neighbours do.
    running = active | ~prune
    after = jax.tree.map(
      lambda new, old: jnp.where(running, new, old), after, state
    )
    record = state_lib.StageRecord(
      mode=jnp.where(active, mode, -1),
      explored=explored & active,
      selected=selected,
      active=active,
      goal=goal,
      metric_before=state.metric,
      metric_immediate=immediate,
      metric=after.metric,
      macs_before=state.macs,
      macs=after.macs,
      cost=cost,
      immediate_cost=immediate_cost,
      costs=after.strategy.cost,
      exhausted=exhausted,
      removable=removable,
      thetas=after.thetas,
      losses=losses,
    )
    return after, record

  def probe(
    self, state: state_lib.SearchState, select: Mapping
  ) -> state_lib.SearchState:
    """The state with a first cost for every mode (cold start).

    Each mode's step is scored by a masked forward; nothing is committed.
    """
    modes = len(self.prunable.modes)
    removable = self.removable(state)
    key = jax.random.fold_in(state.key, 0)

    def trial(mode):
      selected = jnp.arange(modes) == mode
      goal = self.goal(state, selected, removable)
      marked, thetas = self.propose(state, selected, goal, select, key)
      masks = masks_lib.soft(state.masks, marked, 1.0)
      metric, counts = self.validate(state.params, masks, thetas, select)
      return mps.stage_cost(
        state.metric, metric, state.macs, self.macs(masks, counts)
      )

    costs = jax.lax.map(trial, jnp.arange(modes))
    strategy = dataclasses.replace(state.strategy, cost=costs)
    return dataclasses.replace(state, strategy=strategy)

  def settle(
    self, state: state_lib.SearchState, select: Mapping
  ) -> state_lib.SearchState:
    """The state at the target exactly: the last adjustment before the freeze.

    Token MACs drift while weights train. Thresholds that are in use rise once
    more; where they have little left to give, the lowest units go.
    """
    prunable, target = self.prunable, self.settings.target
    tokens = jnp.stack(
      [
        state.thetas[prunable.token_modes[m]] > 0
        if m in prunable.token_modes
        else jnp.asarray(False)
        for m in prunable.modes
      ]
    )
    spare = jnp.sum(jnp.where(tokens, self.removable(state), 0.0))
    enough = STAGE_SHARE * spare > state.macs - target
    is_token = jnp.array([m in prunable.token_modes for m in prunable.modes])
    able = self.removable(state) > 0
    selected = jnp.where(enough, tokens, ~is_token & able)
    selected = selected & (state.macs > target)
    goal = jnp.minimum(target, state.macs)
    marked, thetas = self.propose(state, selected, goal, select, state.key)
    masks = masks_lib.soft(state.masks, marked, 1.0)
    metric, counts = self.validate(state.params, masks, thetas, select)
    return dataclasses.replace(
      state,
      masks=masks,
      thetas=thetas,
      counts=counts,
      metric=metric,
      macs=self.macs(masks, counts),
    )


def _leaf(tree, group):
  tower, name = group.name.split("/")
  return tree[tower][name]

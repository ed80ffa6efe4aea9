"""One stage of the pruning loop as a pure function (DESIGN: the outer loop).

choose a mode -> raise its threshold to the stage's goal -> train while the
marked units fade -> validate -> learn the mode's cost. Masks, thresholds,
mode and rates are arrays: the function is traced once for a whole search, and
it can be vmapped over searches.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from comp_jax.core import importance, mps
from comp_jax.core import masks as masks_lib
from comp_jax.train import effects, finite
from comp_jax.train import settings as settings_lib
from comp_jax.train import state as state_lib

# More than this fraction of dense above the target is no drift.
FAR = 1e-2

# Folded into a state's key: large, for small numbers are the keys of a split.
_PROBE = 0x9E0BE


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Stage(effects.Effects):
  """The functions of a search, over one model, task and recipe."""

  def initial(
    self, params: Mapping, select: Mapping, seed: int
  ) -> state_lib.SearchState:
    """The state of the dense model with these weights."""
    metric, counts = self.validate(params, self.ones, self.off, select)
    return state_lib.initial(
      self.prunable,
      params,
      self.optimizer,
      self.objective.memory.initial(params, jax.random.key(seed)),
      self.recipe.estimator,
      counts,
      metric,
      seed,
    )

  def choose(
    self, state: state_lib.SearchState, exhausted: Bool[Array, " m"], key: Array
  ) -> tuple[Array, Bool[Array, ""], Bool[Array, " m"]]:
    """The mode, whether it explores, and the modes to raise."""
    schedule, live = self.recipe.schedule, ~exhausted
    mode, explored = jnp.asarray(-1, jnp.int32), jnp.asarray(False)
    if schedule == "together":
      return mode, explored, live
    if schedule in ("params_first", "tokens_first"):
      first = live & (self.is_token == (schedule == "tokens_first"))
      then = live & ~first
      # To the nearest stage.
      half = (1.0 + self.settings.target + self.settings.stage_macs) / 2
      early = jnp.any(first) & (state.macs > half)
      return mode, explored, jnp.where(early | ~jnp.any(then), first, then)
    if schedule == "round_robin":
      mode = mps.longest_idle(state.strategy, exhausted)
    else:
      mode, explored = mps.choose(
        state.strategy,
        exhausted,
        self.left(state),
        key,
        self.recipe.strategy,
      )
    return mode, explored, (jnp.arange(live.shape[0]) == mode) & live

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
    cut = self.cut(state, batches, select, prune)
    cut, losses = self.advance(cut, batches)
    return self.learn(cut, losses, select)

  def cut(
    self,
    state: state_lib.SearchState,
    batches: Mapping | None,
    select: Mapping,
    prune: Bool[Array, ""],
  ) -> state_lib.Cut:
    """What the stage has chosen and marked, before any training.

    Args:
      state: before the stage.
      batches: those of the whole stage, which paired costs train on; None
        where they come in parts.
      select: validation examples [chunks, c, ...].
      prune: see `__call__`.
    """
    next_key, choice_key, score_key = jax.random.split(state.key, 3)
    removable = self.removable(state)
    exhausted = self.exhausted(state, removable)
    active = prune & self.active(state) & ~jnp.all(exhausted)
    running = active | ~prune
    uncut = self.uncut(state, batches, select)
    if self.recipe.schedule == "lookahead":
      tried = ~exhausted & active
      costs = self.trial_costs(state, tried, uncut, batches, select, score_key)
      state = _with_costs(state, costs)
    mode, explored, selected = self.choose(state, exhausted, choice_key)
    selected = selected & active
    goal = self.goal(state, selected, removable)
    start = self.marked_from(state)
    marked, thetas = self.propose(
      start, selected, goal, select, score_key, share=self.share(state)
    )
    masks = self.faded(start, marked, 1.0)
    immediate, counts = self.validate(state.params, masks, thetas, select)
    statistics = state.statistics
    if self.recipe.accumulate == "stage":
      none = importance.empty(self.prunable.groups, self.recipe.estimator)
      statistics = _where(running, none, statistics)
    return state_lib.Cut(
      state=dataclasses.replace(
        state,
        statistics=statistics,
        key=jnp.where(running, next_key, state.key),
      ),
      masks=start.masks,
      marked=marked,
      thetas=thetas,
      running=running,
      mode=mode,
      explored=explored,
      selected=selected,
      active=active,
      goal=goal,
      exhausted=exhausted,
      removable=removable,
      uncut=uncut,
      immediate=immediate,
      immediate_macs=self.macs(masks, counts),
      step=jnp.zeros((), jnp.int32),
    )

  def advance(
    self, cut: state_lib.Cut, batches: Mapping, parts: int = 1
  ) -> tuple[state_lib.Cut, Float[Array, " t"]]:
    """The cut after a part of the stage's training, and the losses.

    Args:
      cut: see `cut`, or advanced by earlier parts.
      batches: of all steps, or of the next part of them: [t, b, ...].
      parts: in how many of them the stage's steps come.
    """
    length = jax.tree.leaves(batches)[0].shape[0]

    def train(start):
      return self.train(start, cut.marked, cut.thetas, batches, cut.step, parts)

    # A search that has arrived stands still, whatever its neighbours do.
    trained, losses = jax.lax.cond(
      cut.running,
      train,
      lambda s: (s, jnp.zeros(length, jnp.float32)),
      cut.start,
    )
    trained = dataclasses.replace(trained, masks=cut.state.masks)
    return dataclasses.replace(
      cut, state=trained, step=cut.step + length
    ), losses

  def learn(
    self, cut: state_lib.Cut, losses: Float[Array, " steps"], select: Mapping
  ) -> tuple[state_lib.SearchState, state_lib.StageRecord]:
    """The state once the marked units are gone, and what the stage cost.

    Args:
      cut: after its training.
      losses: of that.
      select: validation examples [chunks, c, ...].
    """
    state, running = cut.state, cut.running
    masks = self.faded(cut.start, cut.marked, 1.0)
    metric, counts = self.validate(state.params, masks, cut.thetas, select)
    macs = self.macs(masks, counts)
    immediate_cost = mps.stage_cost(
      state.metric, cut.immediate, state.macs, cut.immediate_macs
    )
    # What training alone moves, in metric and token counts, cancels out.
    before, macs_before = cut.uncut or (state.metric, state.macs)
    cost = mps.stage_cost(before, metric, macs_before, macs)
    removed = state.macs - cut.immediate_macs
    learns_from = self.settings.cost
    if self.recipe.schedule == "lookahead":
      # The costs that it chose by are the ones to report.
      learns_from = "paired" if self.paired else "immediate"
    after_training = effects.stayed(removed, macs_before - macs) & (
      learns_from != "immediate"
    )
    learned = mps.update(
      state.strategy,
      cut.mode,
      jnp.where(after_training, cost, immediate_cost),
      removed,
      self.recipe.strategy,
    )
    after = dataclasses.replace(
      state,
      masks=_where(running, masks, state.masks),
      thetas=_where(running, cut.thetas, state.thetas),
      strategy=_where(cut.active, learned, state.strategy),
      counts=_where(running, counts, state.counts),
      macs=jnp.where(running, macs, state.macs),
      metric=jnp.where(running, metric, state.metric),
    )
    record = state_lib.StageRecord(
      mode=jnp.where(cut.active, cut.mode, -1),
      explored=cut.explored & cut.active,
      selected=cut.selected,
      active=cut.active,
      goal=cut.goal,
      metric_before=state.metric,
      metric_immediate=cut.immediate,
      metric_uncut=before if self.paired else jnp.nan * before,
      metric=after.metric,
      macs_before=state.macs,
      macs=after.macs,
      cost=cost,
      immediate_cost=immediate_cost,
      costs=after.strategy.cost,
      exhausted=cut.exhausted,
      removable=cut.removable,
      thetas=after.thetas,
      losses=losses,
      sound=finite.everywhere(after),
    )
    return after, record

  def probe(
    self,
    state: state_lib.SearchState,
    batches: Mapping | None,
    select: Mapping,
  ) -> state_lib.SearchState:
    """The state with a first cost for every mode (cold start).

    Args:
      state: before the first pruning stage.
      batches: of that stage; see `cut`.
      select: validation examples [chunks, c, ...].
    """
    every = jnp.ones(len(self.prunable.modes), bool)
    key = jax.random.fold_in(state.key, _PROBE)
    uncut = self.uncut(state, batches, select)
    costs = self.trial_costs(state, every, uncut, batches, select, key)
    return _with_costs(state, costs)

  def settle(
    self,
    state: state_lib.SearchState,
    select: Mapping,
    *,
    give_back: bool = False,
  ) -> state_lib.SearchState:
    """The state at the target: the last adjustment before the freeze.

    Token MACs drift while weights train. Thresholds that are in use rise once
    more; where they have little left to give, the lowest units go.

    Args:
      state: at the end of a search.
      select: validation examples [chunks, c, ...].
      give_back: thresholds fall where the drift went below the target. For
        models that stay masked: compaction fits its token counts itself.
    """
    prunable, target = self.prunable, self.settings.target
    # What fades is gone.
    masks = jax.tree.map(lambda m: (m >= 1).astype(m.dtype), state.masks)
    state = dataclasses.replace(
      state, masks=masks, macs=self.macs(masks, state.counts)
    )
    tokens = jnp.stack(
      [
        state.thetas[prunable.token_modes[m]] > 0
        if m in prunable.token_modes
        else jnp.asarray(False)
        for m in prunable.modes
      ]
    )
    spare = jnp.sum(jnp.where(tokens, self.removable(state), 0.0))
    excess = state.macs - target
    enough = settings_lib.STAGE_SHARE * spare > excess
    is_token = self.is_token
    able = self.removable(state) > 0
    selected = jnp.where(enough, tokens, ~is_token)
    # A search that ran out of stages: every mode gives its part.
    far = excess > FAR
    selected = jnp.where(far, able, selected & able) & (
      excess > effects.ROUNDING
    )
    goal = jnp.minimum(target, state.macs)
    state = self._moved(state, selected, goal, select)
    if not give_back:
      return state
    # Fewer heads may let fewer tokens pass: after the units, not with them.
    back = state.macs < target - effects.ROUNDING
    goal = jnp.where(back, target, state.macs)
    return self._moved(state, jnp.zeros_like(selected), goal, select, back)

  def _moved(
    self,
    state: state_lib.SearchState,
    selected: Bool[Array, " m"],
    goal: Float[Array, ""],
    select: Mapping,
    back: Bool[Array, ""] | bool = False,
  ) -> state_lib.SearchState:
    """The state at a goal, without any training; see `propose`."""
    marked, thetas = self.propose(
      state, selected, goal, select, state.key, back
    )
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


def _where(condition: Bool[Array, ""], yes: Any, no: Any) -> Any:
  """The one tree or the other."""
  return jax.tree.map(lambda y, n: jnp.where(condition, y, n), yes, no)


def _with_costs(
  state: state_lib.SearchState, costs: Float[Array, " m"]
) -> state_lib.SearchState:
  """The state with these costs of the modes."""
  strategy = dataclasses.replace(state.strategy, cost=costs)
  return dataclasses.replace(state, strategy=strategy)

"""MPS, the multi-mode pruning strategy: Eq. 8, 9 and 10.

A bandit over the pruning modes. Its state is one pytree, its functions are
pure, traced once and vmappable; the modes are an axis.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

# In a sweep the constants are traced.
Number = float | Float[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """Constants of the strategy; the defaults are the paper's.

  Attributes:
    explore: rho, the probability of an exploring stage.
    temperature: tau of the softmax over idle intervals (Eq. 9).
    history: lam0 of Eq. 10; 0 forgets the past (HI off).
    max_interval: I_max of Eq. 10, in stages.
    explore_within: exploration leaves out modes whose price exceeds this
      multiple of the cheapest live mode's; None explores all.
    scarcity: gamma: costs are divided by the fraction of the mode that is left
      to this power (`prices`); 0 compares the costs themselves, as the paper.
    cost_aware: False replaces the argmin by a uniform choice (CAS off).
    cold_start: `probe` gives every mode a cost before the first stage by a
      trial step; `execute` runs every mode once, in seeded order.
    min_delta: stages that lower the MACs less (fraction of dense) teach
      nothing.
  """

  explore: Number = 0.2
  temperature: Number = 5.0
  history: Number = 0.4
  max_interval: Number = 5
  explore_within: Number | None = None
  scarcity: Number = 0.0
  cost_aware: bool = True
  cold_start: str = "probe"
  min_delta: float = 1e-6

  def __post_init__(self):
    if self.cold_start not in ("probe", "execute"):
      raise ValueError(
        f"cold_start must be probe or execute, not {self.cold_start!r}"
      )


# JAX rebuilds a pytree around anything (shapes, shardings, None).
@typing.no_type_check
@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["cost", "last", "visited", "learned", "stage"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
  """What the strategy remembers.

  Attributes:
    cost: R[m], metric lost per fraction of dense MACs removed.
    last: T[m], the stage of the last execution; 0 before the first.
    visited: whether the mode was ever executed.
    learned: whether an execution ever taught its cost: there is nothing to
      blend with before.
    stage: t, the stage about to run, counted from 1.
  """

  cost: Float[Array, "*s m"]
  last: Int[Array, "*s m"]
  visited: Bool[Array, "*s m"]
  learned: Bool[Array, "*s m"]
  stage: Int[Array, "*s"]


def initial(modes: int) -> State:
  """The state before the first stage."""
  return State(
    cost=jnp.zeros(modes, jnp.float32),
    last=jnp.zeros(modes, jnp.int32),
    visited=jnp.zeros(modes, bool),
    learned=jnp.zeros(modes, bool),
    stage=jnp.ones((), jnp.int32),
  )


def stage_cost(
  metric_before: Float[Array, ""],
  metric_after: Float[Array, ""],
  macs_before: Float[Array, ""],
  macs_after: Float[Array, ""],
) -> Float[Array, ""]:
  """Eq. 8: metric lost per MACs removed (fractions of dense); 0/0 is 0."""
  delta = macs_before - macs_after
  # Below it a difference of float32 fractions is their rounding.
  nothing = jnp.abs(delta) < Options.min_delta
  lost = metric_before - metric_after
  return jnp.where(nothing, 0.0, lost / jnp.where(nothing, 1.0, delta))


def prices(
  cost: Float[Array, " m"], left: Float[Array, " m"], options: Options
) -> Float[Array, " m"]:
  """What the modes' next steps are taken to cost: R_m / left_m^gamma.

  A remembered cost is that of units and tokens already gone, the least
  important ones, and it does not say which of them training brings back. With
  gamma = 1 a step is taken for twice as dear once half of the mode is gone.

  Args:
    cost: R[m]; one below 0 (a gain) shrinks towards 0.
    left: the part of what a mode could remove from the dense model that it
      can still remove, in [0, 1].
    options: constants.
  """
  share = jnp.maximum(left, 1e-6) ** options.scarcity
  return jnp.where(cost > 0, cost / share, cost * share)


def choose(
  state: State,
  exhausted: Bool[Array, " m"],
  left: Float[Array, " m"],
  key: Key[Array, ""],
  options: Options,
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
  """The mode of the next stage, and whether it explores.

  With probability 1 - rho the cheapest mode (by `prices`), otherwise a draw
  from softmax(I_m / tau) (Eq. 9). Exhausted modes take no part; where all are,
  the mode is 0 and the caller stops.
  """
  coin, draw, order = jax.random.split(key, 3)
  open_ = ~exhausted
  price = jnp.where(open_, prices(state.cost, left, options), jnp.inf)
  greedy = jnp.argmin(price)
  if not options.cost_aware:
    greedy = jax.random.categorical(order, jnp.where(open_, 0.0, -jnp.inf))
  idle = (state.stage - state.last).astype(jnp.float32)
  explorable = open_
  if options.cost_aware and options.explore_within is not None:
    cheapest = jnp.min(price)
    # A multiple of a cost that can be negative: measured from the cheapest.
    margin = (options.explore_within - 1.0) * jnp.abs(cheapest)
    explorable = open_ & (price <= cheapest + margin)
  logits = jnp.where(explorable, idle / options.temperature, -jnp.inf)
  sampled = jax.random.categorical(draw, logits)
  explored = jax.random.uniform(coin) < options.explore
  mode = jnp.where(explored, sampled, greedy)
  if options.cold_start == "execute":
    unseen = open_ & ~state.visited
    first = jax.random.categorical(order, jnp.where(unseen, 0.0, -jnp.inf))
    mode = jnp.where(jnp.any(unseen), first, mode)
    explored = explored & ~jnp.any(unseen)
  none_left = jnp.all(exhausted)
  return (
    jnp.where(none_left, 0, mode).astype(jnp.int32),
    explored & ~none_left,
  )


def longest_idle(state: State, exhausted: Bool[Array, " m"]) -> Int[Array, ""]:
  """The live mode that has waited longest: each in turn, whatever it costs."""
  never = jnp.iinfo(state.last.dtype).max
  return jnp.argmin(jnp.where(exhausted, never, state.last)).astype(jnp.int32)


def momentum(
  interval: Int[Array, "*m"] | int, options: Options
) -> Float[Array, "*m"]:
  """lam of Eq. 10: how much of the old cost stays after `interval` stages."""
  lam0, longest = options.history, options.max_interval
  return jnp.maximum(lam0 - lam0 / longest * (interval - 1), 0.0)


def update(
  state: State,
  mode: Int[Array, ""],
  cost: Float[Array, ""],
  delta_macs: Float[Array, ""],
  options: Options,
) -> State:
  """The state after a stage of `mode` that cost `cost` (Eq. 10).

  The first cost is taken as it is, later ones are blended with the past. A
  stage that hardly lowered the MACs, or let them grow (token counts drift),
  teaches no cost: metric lost for MACs gained would read as a bargain. It still
  counts as an execution.
  """
  chosen = jnp.arange(state.cost.shape[0]) == mode
  lam = momentum(state.stage - state.last, options)
  blended = lam * state.cost + (1.0 - lam) * cost
  new = jnp.where(state.learned, blended, cost)
  learns = chosen & (delta_macs >= options.min_delta)
  return State(
    cost=jnp.where(learns, new, state.cost),
    last=jnp.where(chosen, state.stage, state.last),
    visited=state.visited | chosen,
    learned=state.learned | learns,
    stage=state.stage + 1,
  )

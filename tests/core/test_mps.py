"""The strategy over modes against a NumPy reading of Eq. 8, 9 and 10."""

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from comp_jax.core import mps
from tests.core import reference

DRAWS = 4000
# What is compiled here runs once.
_jit = functools.partial(
  jax.jit,
  static_argnames="options",
  compiler_options={"xla_backend_optimization_level": 0},
)


def _state(cost, last, stage, visited=None):
  visited = [True] * len(cost) if visited is None else visited
  return mps.State(
    cost=jnp.array(cost, jnp.float32),
    last=jnp.array(last, jnp.int32),
    visited=jnp.array(visited),
    learned=jnp.array(visited),
    stage=jnp.int32(stage),
  )


@_jit
def _many(state, exhausted, left, keys, options):
  def one(key):
    return mps.choose(state, exhausted, left, key, options)

  return jax.vmap(one)(keys)


def _frequencies(state, exhausted, options, seed=0, left=None):
  """How often each mode is chosen while exploring, and otherwise."""
  keys = jax.random.split(jax.random.key(seed), DRAWS)
  modes = len(exhausted)
  left = jnp.ones(modes) if left is None else jnp.array(left)
  mode, explored = _many(state, jnp.array(exhausted), left, keys, options)
  mode, explored = np.asarray(mode), np.asarray(explored)
  return (
    np.bincount(mode[explored], minlength=modes),
    np.bincount(mode[~explored], minlength=modes),
  )


def _within(counts, probabilities):
  """Counts within five standard deviations of a binomial."""
  n = counts.sum()
  probabilities = np.asarray(probabilities)
  bound = 5 * np.sqrt(n * probabilities * (1 - probabilities))
  assert np.all(np.abs(counts - n * probabilities) <= bound + 1e-9), (
    counts,
    n * probabilities,
  )


COST, LAST, STAGE = [0.5, -0.2, 3.0, 0.1], [8, 9, 2, 5], 10


@pytest.mark.parametrize(
  "exhausted", [[False] * 4, [False, True, False, False]]
)
def test_choice_follows_equation_9(exhausted):
  options = mps.Options(explore=0.3, temperature=3.0)
  explored, greedy = _frequencies(_state(COST, LAST, STAGE), exhausted, options)
  _within(np.array([explored.sum(), greedy.sum()]), [0.3, 0.7])
  open_ = [not e for e in exhausted]
  _within(explored, reference.exploration(STAGE, LAST, open_, 3.0))
  cheapest = min((c, i) for i, c in enumerate(COST) if open_[i])[1]
  assert np.flatnonzero(greedy).tolist() == [cheapest]


def test_exhausted_modes_are_never_chosen():
  for left in range(4):
    exhausted = [i != left for i in range(4)]
    explored, greedy = _frequencies(
      _state(COST, LAST, STAGE), exhausted, mps.Options()
    )
    assert np.flatnonzero(explored + greedy).tolist() == [left]


@pytest.mark.parametrize(
  "options",
  [
    mps.Options(explore=0.5, explore_within=3.0),
    mps.Options(cost_aware=False),
    mps.Options(cold_start="execute"),
  ],
)
def test_all_exhausted_is_mode_0_without_exploration(options):
  state = _state(COST, LAST, STAGE, visited=[False] * 4)
  explored, greedy = _frequencies(state, [True] * 4, options)
  assert explored.sum() == 0 and greedy.tolist() == [DRAWS, 0, 0, 0]


def test_exploration_stays_within_a_multiple_of_the_cheapest():
  options = mps.Options(explore=0.5, explore_within=3.0)
  state = _state([0.2, 0.5, 0.7, 0.1], LAST, STAGE)
  explored, greedy = _frequencies(state, [False, False, False, True], options)
  # The exhausted 0.1 sets no bound: 3 * 0.2 lets 0.2 and 0.5 in.
  expected = reference.exploration(STAGE, LAST, [1, 1, 0, 0], 5.0)
  _within(explored, expected)
  assert explored[2] == 0 and np.flatnonzero(greedy).tolist() == [0]
  # A negative cost leaves room above itself.
  state = _state([-0.2, 0.1, 0.3, 9.0], LAST, STAGE)
  explored, _ = _frequencies(state, [False] * 4, options)
  _within(explored, reference.exploration(STAGE, LAST, [1, 1, 0, 0], 5.0))
  # Where costs are not weighed they leave no mode out.
  blind = dataclasses.replace(options, cost_aware=False)
  explored, greedy = _frequencies(state, [False] * 4, blind)
  _within(explored, reference.exploration(STAGE, LAST, [1, 1, 1, 1], 5.0))
  assert np.all(greedy > 0)


def test_scarcity_makes_what_is_left_dearer():
  cost = [0.5, 0.2, -0.1]
  state = _state(cost, [8, 9, 2], STAGE)
  # A quarter of mode 1 is left: 0.2 becomes 0.8. The gain halves.
  left = [1.0, 0.25, 0.5]
  scarce = mps.Options(explore=0.5, scarcity=1.0, explore_within=3.0)
  prices = mps.prices(jnp.array(cost), jnp.array(left), scarce)
  np.testing.assert_allclose(prices, [0.5, 0.8, -0.05], rtol=1e-6)
  # Half of the exponent, half of the distance on a logarithmic scale.
  half = mps.Options(scarcity=0.5)
  prices = mps.prices(jnp.array(cost), jnp.array(left), half)
  np.testing.assert_allclose(prices, [0.5, 0.4, -0.1 * 0.5**0.5], rtol=1e-6)
  # It decides the argmin and what exploration leaves out.
  gone = [False, False, True]
  explored, greedy = _frequencies(state, gone, scarce, left=left)
  assert np.flatnonzero(greedy).tolist() == [0]
  assert np.all(explored[:2] > 0) and explored[2] == 0
  _, greedy = _frequencies(state, gone, mps.Options(), left=left)
  assert np.flatnonzero(greedy).tolist() == [1]
  left = [1.0, 0.1, 0.5]
  explored, _ = _frequencies(state, gone, scarce, left=left)
  assert np.flatnonzero(explored).tolist() == [0]


@hypothesis.given(
  cost=strategies.lists(
    # XLA takes subnormal numbers for 0.
    strategies.floats(-10, 10, width=32, allow_subnormal=False),
    min_size=4,
    max_size=4,
  )
)
def test_without_scarcity_prices_are_the_costs(cost):
  left = jnp.array([0.0, 0.3, 1.0, 1e-8])
  prices = mps.prices(jnp.array(cost, jnp.float32), left, mps.Options())
  np.testing.assert_array_equal(prices, np.array(cost, np.float32))


def test_without_costs_the_choice_is_uniform_over_the_open_modes():
  options = mps.Options(cost_aware=False)
  explored, greedy = _frequencies(
    _state(COST, LAST, STAGE), [False, True, False, False], options
  )
  _within(greedy, [1 / 3, 0, 1 / 3, 1 / 3])
  open_ = [True, False, True, True]
  _within(explored, reference.exploration(STAGE, LAST, open_, 5.0))


def test_without_exploration_the_cheapest_is_taken():
  state = _state(COST, LAST, STAGE)
  explored, greedy = _frequencies(state, [False] * 4, mps.Options(explore=0.0))
  assert explored.sum() == 0 and greedy.tolist() == [0, DRAWS, 0, 0]


def test_round_robin_takes_the_live_modes_in_turn():
  state, order = mps.initial(4), []
  for stage in range(8):
    # Mode 1 has nothing left after its first turn.
    exhausted = jnp.arange(4) == (1 if stage > 1 else -1)
    mode = mps.longest_idle(state, exhausted)
    order.append(int(mode))
    cost, delta = jnp.float32(0.0), jnp.float32(0.1)
    state = mps.update(state, mode, cost, delta, mps.Options())
  assert order == [0, 1, 2, 3, 0, 2, 3, 0]


@_jit
def _stage(state, exhausted, key, options):
  """One stage whose cost and saving come from the key."""
  draw, key = jax.random.split(key)
  left = jnp.ones(exhausted.shape)
  mode, explored = mps.choose(state, exhausted, left, draw, options)
  cost, delta = jax.random.normal(key, (2,))
  delta = jnp.where(delta > 0.8, 1e-7, delta)
  new = mps.update(state, mode, cost, delta, options)
  return new, (mode, cost, delta, explored)


EXECUTE = mps.Options(cold_start="execute", explore=0.5)


def test_cold_start_execute_visits_every_mode_once():
  orders = set()
  for seed in range(6):
    state, order = mps.initial(4), []
    # In the last round one mode has nothing to remove.
    left_out = 1 if seed == 5 else None
    exhausted = jnp.array([m == left_out for m in range(4)])
    for t in range(3 if seed == 5 else 4):
      key = jax.random.key(100 * seed + t)
      state, (mode, _, _, explored) = _stage(state, exhausted, key, EXECUTE)
      assert not explored
      order.append(int(mode))
    assert sorted(order) == [m for m in range(4) if m != left_out]
    orders.add(tuple(order))
  assert len(orders) > 2


def test_probed_cold_start_is_greedy_from_the_first_stage():
  state = dataclasses.replace(
    mps.initial(4), cost=jnp.array([3.0, 1.0, 0.5, 2.0])
  )
  explored, greedy = _frequencies(state, [False] * 4, mps.Options())
  assert np.flatnonzero(greedy).tolist() == [2]
  # All modes have waited equally long.
  _within(explored, [0.25] * 4)


@pytest.mark.parametrize("seed", range(4))
def test_updates_are_equation_10(seed):
  options = mps.Options(explore=0.6, history=0.5, max_interval=4)
  keys = jax.random.split(jax.random.key(seed), 25)
  state, executions = mps.initial(3), []
  exhausted = jnp.zeros(3, bool)
  for key in keys:
    state, (mode, cost, delta, _) = _stage(state, exhausted, key, options)
    executions.append((int(mode), float(cost), float(delta)))
    expected, last, seen = reference.history(3, executions, 0.5, 4, 1e-6)
    np.testing.assert_allclose(state.cost, expected, atol=1e-5)
    assert np.asarray(state.last).tolist() == last
    assert np.asarray(state.visited).tolist() == seen
  assert int(state.stage) == 26 and len({m for m, _, _ in executions}) == 3


def test_first_execution_replaces_the_probed_cost():
  state = dataclasses.replace(mps.initial(2), cost=jnp.array([5.0, 7.0]))
  new = mps.update(
    state, jnp.int32(1), jnp.float32(1.0), jnp.float32(0.03), mps.Options()
  )
  assert np.asarray(new.cost).tolist() == [5.0, 1.0]
  # History off: so does every later one.
  options = mps.Options(history=0.0)
  new = mps.update(
    new, jnp.int32(1), jnp.float32(9.0), jnp.float32(0.03), options
  )
  assert np.asarray(new.cost).tolist() == [5.0, 9.0]


def test_a_stage_that_moved_nothing_teaches_nothing():
  state = _state([5.0, 7.0], [1, 2], 4)
  # Nor does one whose MACs grew: its quotient would read as a bargain.
  for delta in (0.0, 9e-7, -9e-7, -0.1):
    new = mps.update(
      state, jnp.int32(0), jnp.float32(-3.0), jnp.float32(delta), mps.Options()
    )
    assert np.asarray(new.cost).tolist() == [5.0, 7.0]
    assert np.asarray(new.last).tolist() == [4, 2]


def test_a_cost_that_was_never_learnt_is_not_blended_with():
  """An execution that taught nothing leaves the first cost to the next."""
  state = mps.initial(1)
  for delta, cost, expected in ((0.0, 9.0, 0.0), (0.1, 3.0, 3.0)):
    state = mps.update(
      state, jnp.int32(0), jnp.float32(cost), jnp.float32(delta), mps.Options()
    )
    assert bool(state.visited[0]) and float(state.cost[0]) == expected


def test_momentum_decays_with_the_interval():
  expected = [0.4, 0.32, 0.24, 0.16, 0.08, 0.0, 0.0]
  got = [float(mps.momentum(i, mps.Options())) for i in range(1, 8)]
  np.testing.assert_allclose(got, expected, atol=1e-6)
  traced = jax.vmap(lambda i: mps.momentum(i, mps.Options()))(jnp.arange(1, 8))
  np.testing.assert_allclose(traced, expected, atol=1e-6)


def test_stage_cost_is_equation_8():
  def cost(*values):
    return float(mps.stage_cost(*map(jnp.float32, values)))

  values = (-1.5, -1.75, 0.8, 0.7)
  expected = reference.stage_cost(*values)
  np.testing.assert_allclose(cost(*values), expected, rtol=1e-5)
  assert expected == pytest.approx(2.5)
  # Training may make up for more than was lost.
  assert cost(-1.5, -1.4, 0.8, 0.7) < 0
  assert cost(0.5, 0.4, 0.7, 0.7) == 0.0
  # What rounding leaves of two float32 fractions is no step.
  assert cost(0.5, 0.4, 0.7 + 6e-8, 0.7) == 0.0


def test_vmapped_is_looped():
  rng = np.random.default_rng(0)
  members = 5
  shape = (members, 4)
  states = mps.State(
    cost=jnp.asarray(rng.normal(size=shape), jnp.float32),
    last=jnp.asarray(rng.integers(0, 5, shape), jnp.int32),
    visited=jnp.asarray(rng.random(shape) < 0.8),
    learned=jnp.asarray(rng.random(shape) < 0.8),
    stage=jnp.asarray(rng.integers(6, 9, members), jnp.int32),
  )
  exhausted = jnp.asarray(rng.random(shape) < 0.3)
  keys = jax.random.split(jax.random.key(1), members)
  together = jax.vmap(lambda *args: _stage(*args, EXECUTE))(
    states, exhausted, keys
  )
  for s in range(members):
    pick = functools.partial(jax.tree.map, lambda x, s=s: np.asarray(x)[s])
    alone = _stage(pick(states), exhausted[s], keys[s], EXECUTE)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-6),
      pick(together),
      alone,
    )


def test_unknown_cold_start_is_refused():
  with pytest.raises(ValueError, match="cold_start"):
    mps.Options(cold_start="guess")

"""Which modes rest in a stage though they could lose something."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.train import settings as settings_lib
from tests.train import kit


def at(number, macs):
  """A state before this stage, at this part of the dense MACs."""
  state = kit.weightless(kit.make_stage(), {"vision": [17], "text": [9, 5]})
  strategy = dataclasses.replace(state.strategy, stage=jnp.asarray(number))
  return dataclasses.replace(state, strategy=strategy, macs=jnp.float32(macs))


@pytest.mark.parametrize(
  ("removable", "resting"),
  [
    ((0.4, 0.35, 0.3, 0.0), (False, False, True, True)),
    # Nobody can do more: what is left is taken.
    ((0.3, 0.3, 5e-4, 0.0), (False, False, True, True)),
  ],
)
def test_a_mode_whose_step_is_small_rests_while_others_can_do_more(
  removable, resting
):
  stage = kit.make_stage(ratio=0.5, stages=4)
  # A stage removes 0.125, and at most a fifth of what its mode has left.
  settings = dataclasses.replace(stage.settings, least_step=0.5)
  stage = dataclasses.replace(stage, settings=settings)
  found = stage.exhausted(at(1, 1.0), jnp.asarray(removable))
  np.testing.assert_array_equal(found, resting)


def test_no_mode_rests_where_nothing_is_weighed():
  stage = kit.make_stage("uniform", ratio=0.5, stages=4)
  settings = dataclasses.replace(stage.settings, least_step=0.5)
  stage = dataclasses.replace(stage, settings=settings)
  found = stage.exhausted(at(1, 1.0), jnp.asarray((0.4, 0.35, 0.3, 0.0)))
  np.testing.assert_array_equal(found, (False, False, False, True))


def test_a_mode_rests_that_would_make_the_search_late():
  stage = kit.make_stage(ratio=0.5, stages=5)
  settings = dataclasses.replace(stage.settings, least_step=0.0)
  stage = dataclasses.replace(stage, settings=settings)
  settings = dataclasses.replace(settings, max_stages=8)
  paced = dataclasses.replace(stage, settings=settings)
  removable = jnp.asarray([0.7, 0.4, 0.2, 0.02])
  # Two stages for 0.11: one of them removes 0.1 at most.
  now = at(7, 0.61)
  np.testing.assert_array_equal(
    paced.exhausted(now, removable), (False, False, False, True)
  )
  assert not np.any(paced.exhausted(at(6, 0.61), removable))
  assert not np.any(stage.exhausted(now, removable))


@pytest.mark.parametrize(
  "recipe", ["comp", "uniform", "madtp", "sjp_params_first", "tome"]
)
def test_steps_grow_under_every_schedule_where_the_stages_would_not_do(recipe):
  stage = kit.make_stage(recipe, ratio=0.5, stages=2)
  settings = dataclasses.replace(stage.settings, max_stages=8)
  paced = dataclasses.replace(stage, settings=settings)
  own = jnp.array([mode in stage.modes for mode in stage.prunable.modes])
  removable = jnp.where(own, 0.45, 0.0)
  # What is 0.11 above the target in the last stage goes in it ...
  for part, goals in ((paced, (0.5, 0.52)), (stage, (0.52, 0.52))):
    for number, goal in zip((8, 7), goals, strict=True):
      now = at(number, 0.61)
      _, _, selected = part.choose(now, ~own, now.key)
      room = jnp.sum(jnp.where(selected, removable, 0.0))
      # ... in the one before it no more than the usual share.
      found = part.goal(now, selected, removable * 0.45 / room)
      assert found == pytest.approx(goal, abs=2e-3), (part is paced, number)


@pytest.mark.parametrize("least", [0.0, 0.1, 0.25, 1.0])
def test_some_mode_is_open_while_one_can_remove_something(least):
  """Whatever is small, late or used up, and however far the target is."""
  stage = kit.make_stage(ratio=0.5, stages=12)

  @jax.jit
  def found(number, macs, target, removable):
    settings = dataclasses.replace(
      stage.settings, least_step=least, target=target, max_stages=22
    )
    paced = dataclasses.replace(stage, settings=settings)
    return paced.exhausted(at(number, macs), removable)

  # The first comes nearest to a target that is out of reach.
  cases = [(5, 1.0, 0.4293, [0.5587, 0.0509, 0.0031, 0.0016])]
  rng = np.random.default_rng(0)
  for _ in range(300):
    removable = rng.random(4) * 10.0 ** -rng.integers(0, 4, 4)
    removable *= rng.random() / removable.sum()
    # Next to what all modes together leave.
    target = 1 - removable.sum() * rng.uniform(0.9, 1.01)
    cases.append((rng.integers(1, 23), 1.0, target, removable))
  for number, macs, target, removable in cases:
    removable = jnp.asarray(removable, jnp.float32)
    rests = found(number, macs, target, removable)
    empty = removable < settings_lib.EXHAUSTED
    assert not jnp.all(rests) or jnp.all(empty), (number, target, removable)

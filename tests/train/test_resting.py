"""Which modes rest in a stage though they could lose something."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

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

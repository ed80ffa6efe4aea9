"""How a search arrives in its stages, against plain readings."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import pace

START = [0.5, 0.4, 0.2, 0.02]


def _after(macs, removable, mode, stage_macs, share):
  """A stage of one mode; the others lose in proportion."""
  step = min(stage_macs, share * removable[mode])
  left = [x * (1 - step / macs) for x in removable]
  left[mode] = removable[mode] - step
  return macs - step, left


def _largest(macs, removable, stages, stage_macs, share):
  """MACs after stages of the largest step each."""
  for _ in range(stages):
    mode = max(range(len(removable)), key=lambda i: removable[i])
    macs, removable = _after(macs, removable, mode, stage_macs, share)
  return macs


def _pace(target, stage_macs=0.1, share=0.2):
  return pace.Pace(target=target, stage_macs=stage_macs, share=share)


@pytest.mark.parametrize("number", [1, 4, 6, 7, 8])
@pytest.mark.parametrize("target", [0.1, 0.24, 0.4, 0.51, 0.63, 0.8])
def test_modes_are_late_after_which_the_others_cannot_arrive(number, target):
  """Of 8 stages that remove 0.1 each, or a fifth of what their mode has."""
  start = [0.7, 0.4, 0.2, 0.02]
  ends = [
    _largest(*_after(0.8, start, mode, 0.1, 0.2), 8 - number, 0.1, 0.2)
    for mode in range(4)
  ]
  expected = [x > target and x > min(ends) for x in ends]
  late = jax.jit(lambda stages: pace.late(_pace(target), *_now(start), stages))
  np.testing.assert_array_equal(late(9 - number), expected)


def _now(removable, macs=0.8):
  return jnp.float32(macs), jnp.asarray(removable, jnp.float32)


def test_modes_that_give_at_once_all_lose_in_proportion():
  macs, (units, tokens) = 0.6, (0.3, 0.2)
  joint = dataclasses.replace(_pace(0.1), joint=True)
  after = joint.after(*_now([units, tokens], macs), 0)
  # A fifth of half a dense model is as much as a stage may remove.
  assert after[0] == pytest.approx(0.5)
  np.testing.assert_allclose(
    after[1], [units * 5 / 6, tokens * 5 / 6], rtol=1e-6
  )
  # Later a fifth is less: 5/6 of the MACs stay, stage by stage.
  stages = 6
  assert joint.end(*after, stages) == pytest.approx(0.5 * (5 / 6) ** stages)


@pytest.mark.parametrize("target", [0.9, 0.5, 0.3, 0.2, 0.15])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_fewest_stages_are_those_of_the_largest_steps(target, share):
  taken = 0
  while _largest(1.0, START, taken, 0.1, share) > target and taken < 40:
    taken += 1
  asked = _pace(target, share=share)
  few = lambda most: pace.fewest_stages(asked, jnp.asarray(START), most)  # noqa: E731
  assert int(few(40)) == taken
  # No farther than one is asked to look.
  assert int(few(3)) == min(taken, 3)


@hypothesis.given(
  target=st.floats(0.05, 0.95),
  stages=st.integers(1, 24),
  removable=st.lists(st.floats(0.0, 0.9), min_size=4, max_size=4),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_steps_grow_only_where_the_search_would_be_late(
  target, stages, removable
):
  total = sum(removable) or 1.0
  removable = [0.9 * x / total for x in removable]
  share = float(_share(target, jnp.asarray(removable), stages))
  end = lambda share, stages: (  # noqa: E731
    _largest(1.0, removable, stages, 0.15, share)
  )
  # As near as `stage_macs` lets any share come.
  nearest = target + pace.NEAR
  if end(1.0, stages) > nearest:
    nearest = end(1.0, stages) + pace.NEAR
  hypothesis.assume(abs(end(0.2, stages) - nearest) > 1e-5)
  if end(0.2, stages) <= nearest:
    assert share == np.float32(0.2)
    return
  few = max(stages - stages // pace.SPARE, 1)
  # The least that arrives with stages to spare, else in all of them.
  assert 0.2 < share <= 1.0
  within = few if end(1.0, few) <= target + pace.NEAR else stages
  assert end(min(share + 2e-3, 1.0), within) <= nearest
  assert share <= 0.2 + 1e-3 or end(share - 2e-3, within) > nearest


@jax.jit
def _share(target, removable, stages):
  asked = _pace(target, stage_macs=0.15)
  return pace.hurried(asked, jnp.float32(1.0), removable, stages).share


def test_no_mode_is_emptied_for_a_stage_that_cannot_be_spared():
  """Five stages of 0.15 for 0.65: four are too few, whatever their share."""
  usual = _pace(0.35, stage_macs=0.15)
  end = lambda share, stages: dataclasses.replace(usual, share=share).end(  # noqa: E731
    *_now(START, 1.0), stages
  )
  found = pace.hurried(usual, *_now(START, 1.0), 5).share
  assert end(0.2, 5) > 0.35 + pace.NEAR and end(1.0, 4) > 0.35 + pace.NEAR
  assert 0.2 < found < 0.9 and end(found, 5) <= 0.35 + pace.NEAR


@pytest.mark.parametrize("stages", [5, 10])
def test_nothing_is_emptied_where_stages_are_as_large_as_they_may_be(stages):
  """Stages of 0.035 that no share makes enough, by a hair."""
  removable = jnp.asarray([0.42, 0.05, 0.06, 0.40, 0.06])
  usual = _pace(0.3, stage_macs=0.035)
  macs = jnp.float32(0.3 + 0.035 * stages + 0.01)
  assert usual.end(macs, removable, stages) > 0.3 + pace.NEAR
  found = pace.hurried(usual, macs, removable, stages)
  assert found.share < 0.25
  # Stages go to the mode that brings it nearest, not to small ones.
  late = pace.late(found, macs, removable, stages)
  assert late[jnp.array([1, 2, 4])].all() and not late[0]


def test_a_hurried_search_arrives_whatever_small_modes_it_tries():
  """A stage in four goes to the least mode that is not late."""
  removable, macs = jnp.asarray(START), jnp.float32(1.0)
  usual = _pace(0.25, stage_macs=0.15)
  assert pace.fewest_stages(usual, removable, 40) > 10
  stages = 9

  @jax.jit
  def step(macs, removable, left, small):
    now = pace.hurried(usual, macs, removable, left)
    late = pace.late(now, macs, removable, left)
    least = jnp.argmin(jnp.where(late, jnp.inf, removable))
    mode = jnp.where(small, least, jnp.argmax(removable))
    return now.after(macs, removable, mode)

  for number in range(stages):
    if macs <= 0.25:
      break
    small = number % 4 == 0
    macs, removable = step(macs, removable, stages - number, small)
  assert macs <= 0.25 + pace.NEAR
  # At steps of the usual share it would not.
  assert _largest(1.0, START, stages, 0.15, 0.2) > 0.27
  assert dataclasses.replace(usual, share=1.0).end(*_now(START, 1.0), 9) < 0.25

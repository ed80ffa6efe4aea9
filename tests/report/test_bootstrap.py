"""Intervals against a plain reading: draw seeds, draw examples, take means."""

import numpy as np
import pytest

from comp_jax.report import bootstrap


def _plain(values, resamples=4000):
  """The ends of the interval, one resample after the other."""
  rng = np.random.default_rng(7)
  seeds, examples = values.shape
  means = []
  for _ in range(resamples):
    rows = rng.integers(0, seeds, seeds)
    columns = rng.integers(0, examples, examples)
    means.append(values[rows][:, columns].mean())
  return np.quantile(means, [0.025, 0.975])


def _outcomes(seeds, examples, levels=2):
  """Examples are easy or hard, seeds are good or bad: both matter."""
  rng = np.random.default_rng(seeds)
  hard = rng.normal(size=examples)
  good = rng.normal(scale=0.15, size=(seeds, 1))
  skill = good - hard + rng.normal(scale=0.3, size=(seeds, examples))
  share = np.clip(np.floor(levels / 2 * (1 + np.tanh(skill))), 0, levels - 1)
  return share / (levels - 1)


@pytest.mark.parametrize(
  ("seeds", "examples", "levels", "over"),
  [
    (4, 300, 2, bootstrap.BOTH),
    (3, 60, 6, bootstrap.BOTH),
    (1, 300, 2, bootstrap.EXAMPLES),
    (6, 1, 6, bootstrap.SEEDS),
  ],
)
def test_an_interval_is_that_of_the_plain_bootstrap(
  seeds, examples, levels, over
):
  values = _outcomes(seeds, examples, levels)
  if examples == 1:
    values = np.random.default_rng(0).normal(size=(seeds, 1))
  found = bootstrap.interval(values)
  assert found.over == over
  expected = _plain(values)
  # The ends of both are drawn: within a tenth of the width.
  near = 0.1 * (expected[1] - expected[0])
  np.testing.assert_allclose((found.low, found.high), expected, atol=near)
  assert bootstrap.interval(values) == found


def test_seeds_and_examples_both_widen_it():
  """Against intervals that hold one of them fixed."""
  values = _outcomes(5, 200)
  width = lambda x: x.high - x.low  # noqa: E731
  both = width(bootstrap.interval(values))
  seeds = width(bootstrap.interval(values.mean(axis=1, keepdims=True)))
  examples = width(bootstrap.interval(values.mean(axis=0, keepdims=True)))
  assert both > 1.1 * max(seeds, examples)
  # Drawn apart from each other, their variances add up.
  assert both == pytest.approx(np.hypot(seeds, examples), rel=0.15)


def test_a_paired_difference_has_the_same_examples_on_both_sides():
  """What is hard is hard for both, and is gone from their difference."""
  worse = _outcomes(4, 400)
  better = worse.copy()
  better[:, :40] = 1.0
  gap = better - worse
  found = bootstrap.interval(gap)
  assert 0 < found.low < gap.mean() < found.high
  alone = bootstrap.interval(better)
  assert found.high - found.low < 0.4 * (alone.high - alone.low)


def test_tasks_are_drawn_apart_from_each_other():
  """The mean of two tasks against a plain reading of each."""
  first, second = _outcomes(4, 300), _outcomes(3, 80, 6)
  found = bootstrap.interval(first, second)
  rng = np.random.default_rng(11)
  means = []
  for _ in range(4000):
    drawn = []
    for table in (first, second):
      rows, columns = (rng.integers(0, n, n) for n in table.shape)
      drawn.append(table[rows][:, columns].mean())
    means.append(np.mean(drawn))
  expected = np.quantile(means, [0.025, 0.975])
  near = 0.1 * (expected[1] - expected[0])
  np.testing.assert_allclose((found.low, found.high), expected, atol=near)
  # A task twice is two tasks: what is drawn for one is not drawn for the other.
  one, two = bootstrap.interval(first), bootstrap.interval(first, first)
  narrower = (two.high - two.low) / (one.high - one.low)
  assert narrower == pytest.approx(np.sqrt(0.5), abs=0.03)
  assert bootstrap.interval(first, np.array([[0.3]])) is None
  other = bootstrap.interval(first, second[:1])
  assert other.over == f"{bootstrap.BOTH}; {bootstrap.EXAMPLES}"


def test_little_room_changes_nothing_but_the_draws(monkeypatch):
  values = _outcomes(3, 50, 6)
  whole = bootstrap.interval(values)
  monkeypatch.setattr(bootstrap, "_ROOM", 1000)
  assert bootstrap.interval(values) == whole


def test_a_single_number_has_no_interval():
  assert bootstrap.interval(np.array([[0.3]])) is None
  # All alike: an interval of no width.
  found = bootstrap.interval(np.ones((3, 5)))
  assert (found.low, found.high) == (1.0, 1.0)

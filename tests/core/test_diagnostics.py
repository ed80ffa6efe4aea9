"""The measures of Figures 2 and 5 against NumPy, and what must hold of them."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import diagnostics, importance
from tests.core import reference

FEW = hypothesis.settings(max_examples=30)
B, N, H, E = 3, 8, 2, 3


def _tokens(seed):
  """Hidden units, magnitudes and validity of a small batch."""
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(B, N, H, E)).astype(np.float32)
  hidden[..., 0, 0] = 0  # A row that is never active has no score to share.
  magnitude = rng.uniform(0.1, 1.0, (H, E)).astype(np.float32)
  valid = np.arange(N)[None] < np.array([[N], [N - 3], [4]])
  return hidden, magnitude, valid


def test_dominance_shares_out_the_scores():
  hidden, magnitude, valid = _tokens(0)
  ours = diagnostics.dominance(
    *(jnp.asarray(x) for x in (hidden, magnitude, valid))
  )
  theirs = reference.dominance(
    hidden.reshape(B, N, -1).astype(float), magnitude.reshape(-1), valid
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
  moment = importance.weighted_moment(
    jnp.asarray(hidden), jnp.asarray(valid, jnp.float32)
  )
  whole = np.sum(magnitude * np.sqrt(moment))
  assert np.sum(ours) / B == pytest.approx(whole, rel=1e-5)


@FEW
@hypothesis.given(st.integers(0, 999), st.sampled_from([0.1, 0.25, 0.5, 0.9]))
def test_overlap_is_that_of_the_best_tokens(seed, share):
  rng = np.random.default_rng(seed)
  first, second = rng.uniform(0.1, 1.0, (2, B, N)).astype(np.float32)
  pool = rng.uniform(size=(B, N)) < 0.7
  pool[:, 2] = True
  found = diagnostics.overlap(
    *(jnp.asarray(x) for x in (first, second, pool)), share
  )
  expected = [
    reference.overlap(first[b], second[b], pool[b], share) for b in range(B)
  ]
  np.testing.assert_allclose(np.transpose(found), expected, atol=1e-6)
  same, _ = diagnostics.overlap(
    *(jnp.asarray(x) for x in (first, 2 * first, pool)), share
  )
  np.testing.assert_array_equal(same, 1.0)


@FEW
@hypothesis.given(st.integers(0, 999), st.sampled_from([2, 5, 1000]))
def test_rank_distortion_is_one_minus_spearmans_correlation(seed, values):
  """Few values have many ties."""
  rng = np.random.default_rng(seed)
  before, after = rng.integers(0, values, (2, B, N)).astype(np.float32)
  pool = rng.uniform(size=(B, N)) < 0.6
  arrays = [jnp.asarray(x) for x in (before, after, pool)]
  expected = [
    reference.rank_distortion(before[b][pool[b]], after[b][pool[b]])
    for b in range(B)
  ]
  found = diagnostics.rank_distortion(*arrays)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rank_distortion_of_orders_that_are_known():
  x = jnp.asarray([[0.1, 0.4, 0.2, 0.8, 9.0]])
  pool = jnp.asarray([[True, True, True, True, False]])
  same = jnp.exp(x).at[0, 4].set(-5.0)
  assert diagnostics.rank_distortion(x, same, pool)[0] == pytest.approx(0)
  assert diagnostics.rank_distortion(x, -x, pool)[0] == pytest.approx(2)
  flat = jnp.ones_like(x)
  assert diagnostics.rank_distortion(x, flat, pool)[0] == 1
  alone = jnp.arange(5)[None] == 2
  assert diagnostics.rank_distortion(x, -x, alone)[0] == 0


def test_units_are_influential_above_their_layers_median():
  influence = jnp.asarray(
    [
      [0.1, 0.2, 0.3, 0.4, 0.5],  # What matters little moves little.
      [0.5, 0.1, 0.4, 0.2, 0.3],
      [5.0, 4.0, 3.0, 2.0, 1.0],
    ]
  )
  found = diagnostics.still_influential(influence, 0.4)
  np.testing.assert_allclose(found, [0.0, 0.5, 1.0])
  # Rounded up to whole units.
  found = diagnostics.still_influential(influence, 0.5)
  np.testing.assert_allclose(found, [0.0, 2 / 3, 2 / 3])

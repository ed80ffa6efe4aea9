"""MADTP's and EViT's token rules against NumPy readings of their specs.

One sample at a time, the dropped and padded tokens really gone (spec
`madtp.md` 1.2 to 1.4).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import token_rules, tokens

B, H, N, D, E = 3, 2, 10, 6, 3
LENGTHS = (10, 7, 9)
THETAS = {"madtp": (2.0, 8.0, 50.0), "evit": (0.7, 1.5, 4.0)}


def _inputs(seed):
  """Attention over the valid tokens, values, and the tokens themselves."""
  rng = np.random.default_rng(seed)
  valid = np.arange(N)[None] < np.array(LENGTHS)[:, None]
  logits = np.where(valid[:, None, None], rng.normal(size=(B, H, N, N)), -1e9)
  attention = np.exp(2 * logits)
  attention /= attention.sum(-1, keepdims=True)
  protected = np.zeros((B, N), bool)
  protected[:, 0] = protected[:, 4] = True
  readout = np.zeros((B, N), bool)
  # The first sample has no readout token: its CLS stands for it.
  readout[1, 0] = readout[2, 4] = True
  draw = lambda *shape: rng.normal(size=shape)  # noqa: E731
  return attention, draw(B, N, H, E), draw(B, N, D), valid, protected, readout


def _read(rule, theta, attention, value, x, readout, pool):
  """Scores of the pool and who stays, of one sample without padding."""
  cls = int(np.flatnonzero(readout)[0]) if readout.any() else 0
  heads = len(attention)
  if rule == "evit":
    score = np.array([attention[:, cls, i].mean() for i in pool])
    score = score / score.sum()
    count = int(np.ceil(len(pool) / (1 + theta)))
    kept = sorted(range(len(pool)), key=lambda i: -score[i])[:count]
    return score, [pool[i] for i in kept]
  # The three parts.
  output = [attention[h] @ value[:, h] for h in range(heads)]
  seen, received, match = (np.zeros(len(pool)) for _ in range(3))
  entries = np.asarray(
    jax.random.normal(jax.random.key(0), (token_rules.DICTIONARY, D)),
    np.float64,
  )
  inner = entries @ x[pool].T
  for i, n in enumerate(pool):
    norm = [np.linalg.norm(output[h][n]) for h in range(heads)]
    for h in range(heads):
      seen[i] += norm[h] / (sum(norm) + 1e-8) * attention[h, cls, n]
    received[i] = sum(attention[:, q, n].max() for q in pool)
    match[i] = max(inner[:, i].max(), 0)
  score = seen + received / received.sum() + match / (match.sum() + 1e-8)
  score = score / 3
  # The threshold: the entry that points at the weakest tokens.
  thetas = []
  for k in range(len(entries)):
    p = np.exp((inner[k] - inner[k].max()) / theta)
    thetas.append((p / p.sum()) @ score)
  return score, [n for i, n in enumerate(pool) if score[i] > min(thetas)]


@pytest.mark.parametrize(
  ("rule", "theta"), [(r, t) for r, row in THETAS.items() for t in row]
)
def test_a_rule_is_its_numpy_reading(rule, theta):
  attention, value, x, valid, protected, readout = _inputs(1)
  after = np.random.default_rng(2).normal(size=x.shape)
  policy = tokens.TokenPolicy(theta=theta, rule=rule, combine="merge")

  @jax.jit
  def run(attention, value, x, after, *marks):
    names = ("valid", "protected", "readout")
    state = tokens.TokenState(x=x, **dict(zip(names, marks, strict=True)))
    scores = tokens.rule_scores(
      policy, attention, {"value": value}, state, None, False
    )
    state = dataclasses.replace(state, x=after)
    return scores, tokens.drop(state, scores, policy, None, x)

  f32 = lambda a: jnp.asarray(a, jnp.float32)  # noqa: E731
  scores, out = run(
    *map(f32, (attention, value, x, after)),
    *map(jnp.asarray, (valid, protected, readout)),
  )
  dropped = 0
  for b, n in enumerate(LENGTHS):
    pool = [i for i in range(n) if not protected[b, i]]
    score, kept = _read(
      rule,
      theta,
      attention[b, :, :n, :n],
      value[b, :n],
      x[b, :n],
      readout[b, :n],
      pool,
    )
    np.testing.assert_allclose(scores[b, pool], score, rtol=1e-4)
    others = [i for i in range(N) if i not in pool]
    assert not np.asarray(scores)[b, others].any()
    # What is dropped becomes one token, weighted by score; one alone stays.
    gone = [i for i in pool if i not in kept]
    stays, expected = set(kept), after[b].copy()
    if gone:
      weight = np.array([score[pool.index(i)] for i in gone])
      slot = gone[int(np.argmax(weight))]
      expected[slot] = (weight / weight.sum()) @ after[b, gone]
      stays.add(slot)
      dropped += len(gone) - 1
    protectees = {i for i in range(n) if protected[b, i]}
    assert set(np.flatnonzero(out.valid[b])) == stays | protectees
    left = sorted(stays | protectees)
    np.testing.assert_allclose(out.x[b, left], expected[left], atol=1e-5)
  assert dropped >= 2


def test_a_warm_dictionary_points_everywhere():
  """At high temperature the threshold is the mean score."""
  _, _, x, valid, protected, _ = _inputs(3)
  pool = jnp.asarray(valid & ~protected)
  scores = jnp.where(pool, jax.random.uniform(jax.random.key(1), (B, N)), 0.0)
  x = jnp.asarray(x, jnp.float32)
  warm = token_rules.keep_above_dictionary(scores, pool, x, 1e6)
  total = jnp.sum(scores, -1, keepdims=True)
  np.testing.assert_array_equal(
    warm, token_rules.keep_above(scores / total, pool, 1.0)
  )
  off = token_rules.keep_above_dictionary(scores, pool, x, 0.0)
  np.testing.assert_array_equal(off, pool)


def test_the_range_of_temperatures_reaches_the_mean_score_at_any_scale():
  """Matches grow with the norm of the tokens, and the temperature with them."""
  _, _, x, valid, protected, _ = _inputs(3)
  pool = jnp.asarray(valid & ~protected)
  scores = jnp.where(pool, jax.random.uniform(jax.random.key(1), (B, N)), 0.0)
  total = jnp.sum(scores, -1, keepdims=True)
  mean = token_rules.keep_above(scores / total, pool, 1.0)
  x = 30.0 * jnp.asarray(x, jnp.float32)
  at = lambda theta: token_rules.keep_above_dictionary(  # noqa: E731
    scores, pool, x, theta
  )
  highest = tokens.TokenPolicy(rule="madtp").highest(jnp.float32(N))
  np.testing.assert_array_equal(at(highest), mean)
  # Their number alone would not do, as it does for a threshold on scores.
  assert int(at(float(N)).sum()) > int(mean.sum())
  assert float(tokens.TokenPolicy().highest(jnp.float32(N))) == N


@pytest.mark.parametrize("rule", tokens.RULES)
def test_a_range_of_thetas_begins_at_none_and_ends_at_the_highest(rule):
  policy, most = tokens.TokenPolicy(rule=rule), jnp.float32(577)
  places = jnp.linspace(0, 1, 2**12 + 1)
  thetas = np.asarray(jax.vmap(lambda at: policy.at(at, most))(places))
  assert thetas[0] == 0
  assert thetas[-1] == pytest.approx(float(policy.highest(most)), rel=1e-6)
  assert np.all(np.diff(thetas) > 0)
  # Bisected twelve times, temperatures are a hundredth apart at full size too.
  if rule == "madtp":
    assert np.max(thetas[2:] / thetas[1:-1]) < 1.01


def test_more_theta_keeps_fewer_down_to_one():
  _, _, _, valid, protected, _ = _inputs(4)
  pool = jnp.asarray(valid & ~protected)
  scores = jnp.where(pool, 1.0 + jnp.arange(N, dtype=jnp.float32)[None], 0.0)
  keeps = [
    np.asarray(token_rules.keep_share(scores, pool, theta))
    for theta in (0.0, 0.5, 2.0, 1e3)
  ]
  for more, fewer in zip(keeps[:-1], keeps[1:], strict=True):
    assert not (fewer & ~more).any() and fewer.sum() < more.sum()
  assert keeps[-1].sum(axis=-1).tolist() == [1, 1, 1]

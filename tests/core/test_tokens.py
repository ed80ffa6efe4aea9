"""Token scores, the rule and its executions against NumPy readings."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from comp_jax.core import token_rules, tokens
from comp_jax.core.execution import TowerExecution
from comp_jax.models import encoder as encoder_lib
from comp_jax.models import specs
from tests.core import reference

FEW = hypothesis.settings(max_examples=40)
B, H, N, D = 4, 3, 9, 5


def _attention(rng):
  logits = rng.normal(size=(B, H, N, N)) * 3
  attention = np.exp(logits)
  return attention / attention.sum(-1, keepdims=True)


def _pool(rng):
  pool = rng.random((B, N)) < 0.6
  pool[:, 0], pool[:, 1] = False, True
  return pool


def _state(rng, **changes):
  valid = np.ones((B, N), bool)
  valid[1, 6:] = False
  protected = np.zeros((B, N), bool)
  protected[:, 0] = protected[:, 4] = True
  readout = np.zeros((B, N), bool)
  readout[:, 0] = True
  fields = {
    "x": rng.normal(size=(B, N, D)).astype(np.float32),
    "valid": valid,
    "protected": protected,
    "readout": readout,
    **changes,
  }
  return tokens.TokenState(**{k: jnp.asarray(v) for k, v in fields.items()})


def _scores(rng, pool):
  scores = np.where(np.asarray(pool), rng.random((B, N)), 0.0)
  total = scores.sum(-1, keepdims=True)
  return (scores / np.where(total > 0, total, 1)).astype(np.float32)


_token_scores = jax.jit(tokens.token_scores, static_argnames="causal")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gated", [False, True])
def test_scores_are_equations_6_and_7(seed, gated):
  rng = np.random.default_rng(seed)
  attention, pool = _attention(rng), _pool(rng)
  gate = rng.random(H) * (rng.random(H) < 0.7) if gated else None
  scores = _token_scores(
    jnp.asarray(attention, jnp.float32),
    jnp.asarray(pool),
    None if gate is None else jnp.asarray(gate, jnp.float32),
  )
  expected = [
    reference.token_scores(attention[b], pool[b], gate) for b in range(B)
  ]
  np.testing.assert_allclose(scores, expected, atol=1e-6)
  assert scores.dtype == jnp.float32
  assert not np.any(np.asarray(scores)[~pool])


@pytest.mark.parametrize("seed", range(3))
def test_causal_scores_are_means_over_the_queries_that_see_a_token(seed):
  rng = np.random.default_rng(seed)
  pool = _pool(rng)
  attention = np.tril(_attention(rng))
  attention = attention / attention.sum(-1, keepdims=True)
  scores = _token_scores(
    jnp.asarray(attention, jnp.float32), jnp.asarray(pool), None, causal=True
  )
  expected = [
    reference.token_scores(attention[b], pool[b], causal=True) for b in range(B)
  ]
  np.testing.assert_allclose(scores, expected, atol=1e-6)
  # Even attention makes every token equal, however early it stands.
  even = np.tril(np.ones((1, 1, N, N))) / np.arange(1, N + 1)[:, None]
  even = even * np.arange(1, N + 1)[:, None]
  same = _token_scores(
    jnp.asarray(even, jnp.float32), jnp.ones((1, N), bool), None, causal=True
  )
  np.testing.assert_allclose(same, np.full((1, N), 1 / N), atol=1e-6)


def test_padding_and_protected_tokens_neither_vote_nor_score():
  rng = np.random.default_rng(0)
  attention, pool = _attention(rng).astype(np.float32), _pool(rng)
  noisy = attention.copy()
  for b in range(B):
    noisy[b][:, ~pool[b], :] = rng.random((H, N - pool[b].sum(), N))
    noisy[b][:, :, ~pool[b]] = rng.random((H, N, N - pool[b].sum()))
  clean, other = (
    _token_scores(jnp.asarray(a), jnp.asarray(pool), None)
    for a in (attention, noisy)
  )
  np.testing.assert_array_equal(clean, other)
  np.testing.assert_allclose(np.sum(clean, axis=-1), 1.0, rtol=1e-6)


def test_scores_of_half_precision_attention_are_summed_in_float32():
  # 1/N of a bfloat16 sum would be off by 1e-3.
  n = 300
  attention = jnp.full((1, 1, n, n), 1 / n, jnp.bfloat16)
  scores = tokens.token_scores(attention, jnp.ones((1, n), bool), None)
  np.testing.assert_allclose(scores, 1 / n, rtol=1e-5)


def test_a_head_that_fades_leaves_the_vote():
  rng = np.random.default_rng(1)
  attention = jnp.asarray(_attention(rng), jnp.float32)
  pool = jnp.asarray(_pool(rng))
  alone = _token_scores(attention[:, 1:2], pool, None)
  gated = _token_scores(attention, pool, jnp.array([0.0, 1.0, 0.0]))
  np.testing.assert_allclose(gated, alone, atol=1e-7)
  ungated = _token_scores(attention, pool, None)
  assert np.abs(np.asarray(ungated - alone)).max() > 0.01


def test_a_layer_without_live_heads_scores_nothing_and_drops_nothing():
  rng = np.random.default_rng(2)
  pool = jnp.asarray(_pool(rng))
  attention = jnp.asarray(_attention(rng), jnp.float32)
  scores = _token_scores(attention, pool, jnp.zeros(H))
  assert not np.any(scores)
  kept = token_rules.keep_above(scores, pool, 5.0)
  np.testing.assert_array_equal(kept, pool)
  # The same in a compact layer, where the heads are gone.
  scores = tokens.token_scores(attention[:, :0], pool, None)
  assert not np.any(scores)


_keep_above = jax.jit(token_rules.keep_above)


@FEW
@hypothesis.given(
  seed=st.integers(0, 10**6),
  theta=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 1.5, 3.0, float(N)]),
)
def test_rule_is_numpys(seed, theta):
  rng = np.random.default_rng(seed)
  pool = _pool(rng)
  scores = _scores(rng, pool)
  kept = np.asarray(
    _keep_above(jnp.asarray(scores), jnp.asarray(pool), jnp.float32(theta))
  )
  for b in range(B):
    expected = reference.stays(scores[b], pool[b], theta)
    np.testing.assert_array_equal(kept[b], expected)
  assert kept.any(-1).all() and not (kept & ~pool).any()


def test_rule_at_its_ends():
  rng = np.random.default_rng(3)
  pool = _pool(rng)
  scores = _scores(rng, pool)
  # A token that nobody looks at: only the bypass keeps it.
  scores[:, 1] = 0.0
  pool[3] = False
  args = jnp.asarray(scores), jnp.asarray(pool)
  np.testing.assert_array_equal(_keep_above(*args, jnp.float32(0)), pool)
  barely = np.asarray(_keep_above(*args, jnp.float32(1e-6)))
  assert not barely[:, 1].any()
  # theta = n leaves the best token and nothing else.
  most = np.asarray(_keep_above(*args, jnp.float32(N)))
  assert most.sum(-1).tolist() == [1, 1, 1, 0]
  best = np.where(pool, scores, -1).argmax(-1)[:3]
  assert most[np.arange(3), best].all()


def test_rule_is_relative_to_the_mean_of_the_tokens_that_are_left():
  pool = jnp.array([[True] * 4 + [False] * 4])
  scores = jnp.array([[0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0]])
  # The mean over the pool is 1/4 (over all tokens it would be 1/8).
  kept = token_rules.keep_above(scores, pool, 1.0)
  assert np.flatnonzero(kept).tolist() == [0, 1]


def test_drops_compound():
  rng = np.random.default_rng(4)
  state = _state(rng)
  policy = tokens.TokenPolicy(theta=0.8)
  valid = np.asarray(state.valid)
  for _ in range(3):
    scores = _scores(rng, state.pool)
    state = tokens.drop(state, jnp.asarray(scores), policy, None)
    pool = valid & ~np.asarray(state.protected)
    expected = np.stack(
      [reference.stays(scores[b], pool[b], 0.8) for b in range(B)]
    )
    valid = valid & (expected | np.asarray(state.protected))
    np.testing.assert_array_equal(state.valid, valid)
  assert valid.sum() < 20 and valid[:, [0, 4]].all()


def test_top_ties_go_to_the_lower_index_after_the_protected():
  scores = jnp.array([[0.0, 0.2, 0.2, 0.2, 0.2, 0.2]])
  protected = jnp.array([[False, False, False, False, False, True]])
  pool = ~protected
  kept = tokens.keep_top(scores, pool, protected, 3)
  assert np.flatnonzero(kept).tolist() == [1, 2, 5]
  # Padding comes last, after tokens of score 0.
  pool = jnp.array([[True, False, True, True, False, False]])
  kept = tokens.keep_top(jnp.zeros((1, 6)), pool, protected, 4)
  assert np.flatnonzero(kept).tolist() == [0, 2, 3, 5]
  kept = tokens.keep_top(jnp.zeros((1, 6)), pool, protected, 5)
  assert np.flatnonzero(kept).tolist() == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("scale", [1.0, 1e-9, 0.0])
def test_merged_token_is_a_weighted_mean_in_the_best_dropped_slot(scale):
  rng = np.random.default_rng(5)
  x = rng.normal(size=(2, 6, D)).astype(np.float32)
  pool = np.array([[False, True, True, True, True, False]] * 2)
  keep = np.array([[False, True, False, False, False, False]] * 2)
  scores = np.array([[0.0, 0.5, 0.1, 0.3, 0.1, 0.0]] * 2, np.float32)
  scores[:, 2:] *= scale
  merged, left = tokens.merge_dropped(
    *map(jnp.asarray, (x, scores, pool, keep))
  )
  share = [0.2, 0.6, 0.2] if scale else [1 / 3] * 3
  slot = 3 if scale else 2
  expected = x.copy()
  expected[:, slot] = np.einsum("n,bnd->bd", share, x[:, 2:5])
  np.testing.assert_allclose(merged, expected, atol=1e-6)
  assert np.flatnonzero(left[0]).tolist() == [1, slot]


def test_one_dropped_token_is_kept_and_none_changes_nothing():
  rng = np.random.default_rng(6)
  x = jnp.asarray(rng.normal(size=(2, 4, D)), jnp.float32)
  pool = jnp.array([[True] * 4, [True, True, True, False]])
  keep = jnp.array([[True, True, False, True], [True, True, True, False]])
  scores = jnp.full((2, 4), 0.25)
  merged, left = tokens.merge_dropped(x, scores, pool, keep)
  np.testing.assert_array_equal(merged, x)
  np.testing.assert_array_equal(left, pool)


@pytest.mark.parametrize("combine", ["drop", "merge"])
def test_static_drop_is_numpys_gather(combine):
  rng = np.random.default_rng(7)
  state = _state(rng)
  scores = _scores(rng, state.pool)
  policy = tokens.TokenPolicy(combine=combine, keep=(9, 5))
  assert tokens.drop(state, jnp.asarray(scores), policy, 0) is state
  out = tokens.drop(state, jnp.asarray(scores), policy, 1)
  merge = combine == "merge"
  for b in range(B):
    pool = np.flatnonzero(state.pool[b])
    ranked = sorted(pool, key=lambda i: (-scores[b, i], i))
    chosen, rest = ranked[: 3 - merge], ranked[3 - merge :]
    x = np.array(state.x[b])
    if merge:
      share = scores[b, rest] / scores[b, rest].sum()
      x[rest[0]] = share @ x[rest]
      chosen.append(rest[0])
    order = sorted([0, 4, *chosen])
    np.testing.assert_allclose(out.x[b], x[order], atol=1e-6)
    for name in ("valid", "protected", "readout"):
      np.testing.assert_array_equal(
        getattr(out, name)[b], np.asarray(getattr(state, name)[b])[order]
      )


def test_static_fills_short_samples_with_padding_and_protects_no_padding():
  rng = np.random.default_rng(8)
  valid = np.ones((B, N), bool)
  valid[1, 3:] = False
  protected = np.zeros((B, N), bool)
  protected[:, 0] = True
  # A [SEP] in the padding takes no slot.
  protected[1, 7:] = True
  state = _state(rng, valid=valid, protected=protected)
  policy = tokens.TokenPolicy(keep=(4,))
  scores = jnp.asarray(_scores(rng, state.pool))
  out = tokens.drop(state, scores, policy, 0)
  assert np.sum(out.valid, -1).tolist() == [4, 3, 4, 4]
  np.testing.assert_array_equal(out.x[1, :3], state.x[1, :3])


def test_unknown_combination_is_refused():
  state = _state(np.random.default_rng(0))
  policy = tokens.TokenPolicy(combine="mix")
  with pytest.raises(ValueError, match="mix"):
    tokens.drop(state, jnp.zeros((B, N)), policy, None)


@pytest.mark.parametrize("combine", ["drop", "merge"])
def test_static_equals_mask_at_equal_counts(combine):
  rng = np.random.default_rng(9)
  state = _state(rng)
  scores = jnp.asarray(_scores(rng, state.pool))
  policy = tokens.TokenPolicy(theta=0.9, combine=combine)
  masked = tokens.drop(state, scores, policy, None)
  for b in range(B):
    alone = jax.tree.map(lambda x, b=b: x[b : b + 1], state)
    left = np.flatnonzero(masked.valid[b])
    assert 3 <= len(left) < np.sum(state.valid[b])
    static = tokens.drop(
      alone,
      scores[b : b + 1],
      dataclasses.replace(policy, keep=(len(left),)),
      0,
    )
    np.testing.assert_allclose(
      static.x[0], np.asarray(masked.x)[b, left], atol=1e-6
    )
    assert np.all(static.valid)


def _encoder():
  """An unrolled encoder of three layers, its parameters' shapes and tokens."""
  spec = specs.encoder(
    width=8,
    depth=3,
    heads=2,
    mlp=12,
    norm_first=False,
    norm_eps=1e-6,
    scan=False,
  )
  module = encoder_lib.Encoder(spec)
  marks = jnp.ones((1, 10), bool)
  state = tokens.TokenState(
    x=jnp.ones((1, 10, 8)), valid=marks, protected=~marks, readout=~marks
  )
  params = jax.eval_shape(module.init, jax.random.key(0), state)
  return module, params, state


def test_static_counts_are_refused_where_they_cannot_work():
  module, params, state = _encoder()
  two = TowerExecution(policy=tokens.TokenPolicy(keep=(8, 8)))
  with pytest.raises(ValueError, match="2 static counts for 3 layers"):
    jax.eval_shape(module.apply, params, state, two)
  scanned = encoder_lib.Encoder(dataclasses.replace(module.spec, scan=True))
  three = TowerExecution(policy=tokens.TokenPolicy(keep=(8, 8, 8)))
  with pytest.raises(ValueError, match="unrolled"):
    jax.eval_shape(scanned.init, jax.random.key(0), state, three)


def test_a_head_that_is_gone_has_no_vote_under_any_policy():
  mask = jnp.array([0.0, 0.3, 1.0])
  for gate, expected in ((True, mask), (False, jnp.array([0.0, 1.0, 1.0]))):
    policy = tokens.TokenPolicy(gate=gate)
    np.testing.assert_array_equal(tokens.votes(policy, mask), expected)
    assert tokens.votes(policy, None) is None

"""ToMe's and CrossGET's merging against a NumPy reading.

One sample at a time, the merged and padded tokens really gone (ToMe, section 3;
CrossGET, spec `madtp.md` part 6).
"""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from comp_jax.core import cost, matching, prunable, tokens
from comp_jax.core.execution import TowerExecution
from comp_jax.models import encoder as encoder_lib
from comp_jax.models import specs

FEW = hypothesis.settings(max_examples=30)
RULES = ("tome", "crossget")
B, H, N, D, E = 3, 2, 12, 5, 3
LENGTHS = (12, 8, 11)
# Tokens per layer: two, then three, then more than there are pairs.
LAYERS = (2.0, 3.0, 9.0)


def _marks():
  valid = np.arange(N)[None] < np.array(LENGTHS)[:, None]
  protected = np.zeros((B, N), bool)
  protected[:, 0] = protected[:, 5] = True
  readout = np.zeros((B, N), bool)
  # The first sample has no readout token: its CLS stands for it.
  readout[1, 0] = readout[2, 5] = True
  return valid, protected, readout


def _cosine(a, b):
  return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def _pairs(rule, key, query, pool, count):
  """{token that goes: where to}, and the weight of each token in a mean.

  Args:
    rule: `tome` or `crossget`.
    key: of each token, [n, h, e].
    query: of the token that guides, [h, e].
    pool: indices of the tokens that may merge.
    count: how many merge, where there are enough.
  """
  count = min(int(count), len(pool) // 2)
  if rule == "tome":
    takers, givers = pool[::2], pool[1::2]
    mean = key.mean(axis=1)
    likeness = {
      a: max((_cosine(mean[a], mean[b]), b) for b in takers) for a in givers
    }
    chosen = sorted(givers, key=lambda a: -likeness[a][0])[:count]
    return {a: likeness[a][1] for a in chosen}, dict.fromkeys(pool, 1.0)
  flat = key.reshape(len(key), -1)
  alike = {(a, b): _cosine(flat[a], flat[b]) for a in pool for b in pool}
  nearest = {a: max(alike[a, b] for b in pool if b != a) for a in pool}
  ranked = sorted(pool, key=lambda a: -nearest[a])
  value = {}
  importance = {a: _cosine(flat[a], query.ravel()) for a in pool}
  for i, a in enumerate(ranked[:-1]):
    value[a] = importance[a] - max(alike[a, b] for b in ranked[i + 1 :])
  gone = sorted(value, key=lambda a: value[a])[:count]
  stay = [b for b in pool if b not in gone]
  into = {a: max(stay, key=lambda b: alike[a, b]) for a in gone}
  return into, {a: np.exp(importance[a]) for a in pool}


_drop = jax.jit(
  lambda state, scores, policy, key: tokens.drop(
    state, scores, policy, 0, state.x, key
  )
)


@jax.jit
def _layer(state, policy, query, key, after):
  projected = {"query": query, "key": key, "value": key}
  attention = jnp.full((B, H, N, N), 1 / N)
  scores = tokens.rule_scores(policy, attention, projected, state, None, False)
  state = dataclasses.replace(state, x=after)
  return scores, tokens.drop(state, scores, policy, None, state.x, key)


@pytest.mark.parametrize("rule", RULES)
def test_layers_are_their_numpy_reading(rule):
  rng = np.random.default_rng(7)
  valid, protected, readout = _marks()
  policy = tokens.TokenPolicy(rule=rule, combine="match")
  marks = map(jnp.asarray, (valid, protected, readout))
  names = ("valid", "protected", "readout")
  state = tokens.TokenState(
    x=jnp.zeros((B, N, D)), **dict(zip(names, marks, strict=True))
  )
  state = tokens.sized(state, policy)
  sizes = [dict.fromkeys(range(n), 1.0) for n in LENGTHS]
  merged, shared = 0, 0
  for theta in LAYERS:
    query, key = rng.normal(size=(2, B, N, H, E))
    after = rng.normal(size=(B, N, D))
    f32 = lambda a: jnp.asarray(a, jnp.float32)  # noqa: E731
    scores, state = _layer(
      state,
      dataclasses.replace(policy, theta=jnp.float32(theta)),
      *map(f32, (query, key, after)),
    )
    for b, size in enumerate(sizes):
      pool = [n for n in size if not protected[b, n]]
      guide = query[b, 5 if readout[b, 5] else 0]
      into, weight = _pairs(rule, key[b], guide, pool, theta)
      if rule == "crossget":
        total = sum(weight.values())
        expected = [weight.get(n, 0.0) / total for n in range(N)]
        np.testing.assert_allclose(scores[b], expected, rtol=1e-5)
      for taker in set(into.values()):
        group = [taker, *(a for a, t in into.items() if t == taker)]
        shares = np.array([weight[n] * size[n] for n in group])
        mean = shares @ after[b, group] / shares.sum()
        after[b, taker] = mean
        size[taker] = sum(size[n] for n in group)
        shared += len(group) > 2
      for n in into:
        del size[n]
      merged += len(into)
      left = sorted(size)
      assert np.flatnonzero(state.valid[b]).tolist() == left
      np.testing.assert_allclose(state.x[b, left], after[b, left], atol=1e-5)
      np.testing.assert_array_equal(
        state.size[b, left], [size[n] for n in left]
      )
  assert merged > 15 and shared > 1


def test_one_pair_is_crossgets_published_ensemble():
  """Of equal sizes: 2 w_s x_s + 2 w_d x_d over both (spec part 6, step 6)."""
  rng = np.random.default_rng(3)
  key, query = rng.normal(size=(2, 1, 3, H, E)).astype(np.float32)
  x = rng.normal(size=(1, 3, D)).astype(np.float32)
  first = jnp.array([[True, False, False]])
  state = tokens.TokenState(
    x=jnp.asarray(x), valid=~first | first, protected=first, readout=first
  )
  policy = tokens.TokenPolicy(theta=1.0, rule="crossget", combine="match")
  state = tokens.sized(state, policy)
  projected = {"query": jnp.asarray(query), "key": jnp.asarray(key)}
  attention = jnp.ones((1, H, 3, 3))
  scores = tokens.rule_scores(policy, attention, projected, state, None, False)
  out = _drop(state, scores, policy, projected["key"])
  importance = [_cosine(key[0, n].ravel(), query[0, 0].ravel()) for n in (1, 2)]
  w = np.exp(importance) / np.exp(importance).sum()
  taker = int(np.flatnonzero(out.valid[0])[1])
  np.testing.assert_allclose(
    out.x[0, taker], (2 * w[0] * x[0, 1] + 2 * w[1] * x[0, 2]) / 2, atol=1e-6
  )


def _random_state(rng, n):
  valid = rng.random((2, n)) < 0.8
  protected = rng.random((2, n)) < 0.2
  valid[:, 0] = protected[:, 0] = True
  readout = np.arange(n)[None] == np.zeros((2, 1))
  size = rng.integers(1, 4, (2, n))
  return tokens.TokenState(
    x=jnp.asarray(rng.normal(size=(2, n, D)), jnp.float32),
    valid=jnp.asarray(valid),
    protected=jnp.asarray(protected),
    readout=jnp.asarray(readout),
    size=jnp.asarray(size, jnp.float32),
  )


@pytest.mark.parametrize("rule", [*RULES, "mean"])
@FEW
@hypothesis.given(seed=st.integers(0, 10**6), count=st.integers(0, 12))
def test_what_holds_of_every_merge(rule, seed, count):
  rng = np.random.default_rng(seed)
  state = _random_state(rng, 10)
  pool = np.asarray(state.pool)
  key = jnp.asarray(rng.normal(size=(2, 10, H, E)), jnp.float32)
  scores = np.where(pool, rng.random(pool.shape), 0.0).astype(np.float32)
  scores = scores / np.maximum(scores.sum(-1, keepdims=True), 1e-9)
  policy = tokens.TokenPolicy(
    theta=jnp.float32(count), rule=rule, combine="match"
  )
  out = _drop(state, jnp.asarray(scores), policy, key)
  left, before = np.asarray(out.valid), np.asarray(state.valid)
  gone = (before & ~left).sum(-1)
  if rule != "mean":
    np.testing.assert_array_equal(gone, np.minimum(count, pool.sum(-1) // 2))
  # Nobody comes back, protected tokens stay as they are, nothing gets lost.
  assert not (left & ~before).any() and not (before & ~left & ~pool).any()
  mass = lambda s, x: np.sum(np.where(x, s.size, 0.0), axis=-1)  # noqa: E731
  np.testing.assert_array_equal(mass(out, left), mass(state, before))
  alone = np.asarray(out.size == state.size)
  np.testing.assert_array_equal(out.x[alone], state.x[alone])
  assert alone[~pool].all() and (alone.all() or gone.any())
  if rule != "crossget":
    total = lambda s, x: np.einsum(  # noqa: E731
      "bn,bnd->bd", np.where(x, s.size, 0.0), np.asarray(s.x, np.float64)
    )
    np.testing.assert_allclose(
      total(out, left), total(state, before), atol=1e-4
    )


@pytest.mark.parametrize("rule", [*RULES, "mean"])
def test_static_equals_mask_at_equal_counts(rule):
  rng = np.random.default_rng(4)
  state = _random_state(rng, 12)
  key = jnp.asarray(rng.normal(size=(2, 12, H, E)), jnp.float32)
  scores = jnp.asarray(rng.random((2, 12)), jnp.float32) * state.pool
  scores = scores / jnp.sum(scores, axis=-1, keepdims=True)
  theta = 0.8 if rule == "mean" else 3.0
  policy = tokens.TokenPolicy(theta=theta, rule=rule, combine="match")
  masked = _drop(state, scores, policy, key)
  for b in range(2):
    left = np.flatnonzero(masked.valid[b])
    assert len(left) <= np.sum(state.valid[b]) - 2
    row = lambda x, b=b: x[b : b + 1]  # noqa: E731
    static = _drop(
      jax.tree.map(row, state),
      row(scores),
      dataclasses.replace(policy, keep=(len(left),)),
      row(key),
    )
    assert static.valid.all()
    np.testing.assert_array_equal(static.size[0], masked.size[b, left])
    np.testing.assert_allclose(static.x[0], masked.x[b, left], atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_padding_and_its_keys_change_nothing(rule):
  rng = np.random.default_rng(5)
  state = _random_state(rng, 10)
  key = jnp.asarray(rng.normal(size=(2, 10, H, E)), jnp.float32)
  scores = jnp.where(state.pool, 0.1, 0.0)
  policy = tokens.TokenPolicy(theta=2.0, rule=rule, combine="match")
  out = _drop(state, scores, policy, key)
  other = jnp.where(state.pool[..., None, None], key, 9.0)
  np.testing.assert_array_equal(_drop(state, scores, policy, other).x, out.x)


def test_crossget_does_not_ask_where_tokens_stand():
  """ToMe's halves are every other token; the complete graph has no halves."""
  rng = np.random.default_rng(6)
  n = 9
  key = jnp.asarray(rng.normal(size=(1, n, H, E)), jnp.float32)
  x = jnp.asarray(rng.normal(size=(1, n, D)), jnp.float32)
  scores = rng.random((1, n)).astype(np.float32)
  scores[:, 0] = 0.0
  first = jnp.arange(n)[None] == 0
  policy = tokens.TokenPolicy(theta=3.0, rule="crossget", combine="match")

  def run(order):
    state = tokens.TokenState(
      x=x[:, order], valid=first | ~first, protected=first, readout=first
    )
    state = tokens.sized(state, policy)
    out = _drop(state, jnp.asarray(scores[:, order]), policy, key[:, order])
    left = np.flatnonzero(out.valid[0])
    rows = np.concatenate([out.x[0, left], out.size[0, left, None]], axis=1)
    return rows[np.lexsort(rows.T)]

  order = np.concatenate([[0], 1 + rng.permutation(n - 1)])
  np.testing.assert_allclose(run(order), run(np.arange(n)), atol=1e-6)


def test_merging_copies_changes_nothing():
  """Attention weighs a token by its size: two copies are one of size 2."""
  spec = specs.encoder(
    width=8, depth=2, heads=2, mlp=12, norm_first=True, norm_eps=1e-6
  )
  module = encoder_lib.Encoder(spec)
  rng = np.random.default_rng(8)
  x = np.repeat(rng.normal(size=(1, 5, 8)), [1, 2, 2, 2, 2], axis=1)
  first = jnp.arange(9)[None] == 0
  state = tokens.TokenState(
    x=jnp.asarray(x, jnp.float32),
    valid=first | ~first,
    protected=first,
    readout=first,
  )
  params = module.init(jax.random.key(0), state)
  policy = tokens.TokenPolicy(theta=4.0, rule="tome", combine="match")
  run = jax.jit(
    lambda policy: module.apply(params, state, TowerExecution(policy=policy))
  )
  dense, _ = run(None)
  out, aux = run(policy)
  assert aux["counts"].tolist() == [[9, 5, 3]]
  # The second layer has looked at the copies that the first one merged.
  np.testing.assert_allclose(out.x[:, 0], dense.x[:, 0], atol=1e-5)
  # Dropping them instead would not do.
  dropped, _ = run(dataclasses.replace(policy, combine="drop"))
  assert np.abs(np.asarray(dropped.x - dense.x)[:, 0]).max() > 1e-3


def test_a_fraction_of_a_token_goes_in_later_layers():
  policy = tokens.TokenPolicy(theta=jnp.float32(1.25), rule="tome")
  assert policy.by_layer(8).theta.tolist() == [1, 1, 1, 2, 1, 1, 1, 2]
  assert policy.by_layer(4).halves
  for other in (
    dataclasses.replace(policy, rule="mean"),
    dataclasses.replace(policy, keep=(3,) * 8),
  ):
    assert other.by_layer(8) is other


def test_a_layer_merges_half_of_its_pool_at_most():
  counts = jnp.full((1, 5), 14, jnp.int32)
  policy = tokens.TokenPolicy(rule="tome", combine="match")
  assert prunable.floor_counts(counts, 1, policy).tolist() == [[14, 8, 5, 3, 2]]
  assert prunable.floor_counts(counts, 1).tolist() == [[14, 2, 2, 2, 2]]


def test_merging_leaves_the_best_token_and_the_merged_one():
  counts = jnp.full((1, 5), 14, jnp.int32)
  policy = tokens.TokenPolicy(combine="merge")
  assert prunable.floor_counts(counts, 1, policy).tolist() == [[14, 3, 3, 3, 3]]


def test_counts_give_crossgets_published_cost():
  """16 tokens per layer of CLIP-B/16: 12.036 G of 20.567 (spec part 6).

  The published figure has cross tokens too, and counts the products of keys.
  """
  places, counts = jnp.arange(196)[None], [198]
  for _ in range(12):
    pool = places < counts[-1] - 2
    kept = matching.keep_last(places.astype(jnp.float32), pool, 16.0)
    counts.append(2 + int(jnp.sum(kept)))
  assert counts[-3:] == [38, 22, 12]

  def tower(width, counts):
    return cost.encoder_macs(
      width=width,
      attention_widths=[width] * 12,
      mlp_widths=[4 * width] * 12,
      counts=np.asarray([counts], np.int64),
    )[0]

  more = tower(768, counts) - tower(768, [197] * 13)
  more += tower(512, [78] * 13) - tower(512, [77] * 13)
  more += 768 * sum(n**2 for n in counts[:-1])
  assert abs((20.567e9 + more) / 12.036e9 - 1) < 5e-4

"""Parameter importance against NumPy readings of Eq. 3 and 4."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from comp_jax.core import groups as groups_lib
from comp_jax.core import importance, tokens
from comp_jax.core import masks as masks_lib
from comp_jax.core.execution import TowerExecution
from comp_jax.models import encoder as encoder_lib
from comp_jax.models import specs
from tests.core import kit, reference

FEW = hypothesis.settings(max_examples=30)


# --- Eq. 3 and 4 ----------------------------------------------------------


@FEW
@hypothesis.given(seed=st.integers(0, 10**6), cip=st.booleans())
def test_token_weights_are_shares_of_the_pool(seed, cip):
  rng = np.random.default_rng(seed)
  shape = (3, 7)
  valid = rng.random(shape) < 0.8
  valid[:, 1] = True
  protected = rng.random(shape) < 0.3
  protected[:, 1] = False
  readout = np.zeros(shape, bool)
  readout[:, 0] = seed % 2
  protected[:, 0] = True
  pool = valid & ~protected
  # Scores of tokens that are gone by now must not count.
  scores = rng.random(shape).astype(np.float32)
  scores[2] = 0.0
  weights = importance.token_weights(
    *map(jnp.asarray, (scores, valid, pool, readout & valid)), cip
  )
  expected = [
    reference.token_weights(scores[b], valid[b], pool[b], readout[b], cip)
    for b in range(3)
  ]
  np.testing.assert_allclose(weights, expected, atol=1e-6)
  assert not np.asarray(weights)[~valid].any()


def test_weighted_moment_is_a_mean_over_samples():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, 5, 2, 4))
  w = rng.random((3, 5))
  got = importance.weighted_moment(
    jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)
  )
  expected = reference.moment(list(zip(x, w, strict=True)))
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def _group(kind, granularity="head", layer_scale=True):
  table = groups_lib.encoder_groups(
    tower="vision",
    mode="m",
    layers=2,
    heads=3,
    head_width=2,
    neurons=5,
    granularity=granularity,
    layer_scale=layer_scale,
  )
  return table[("attn", "mlp").index(kind)]


@pytest.mark.parametrize("layer_scale", [True, False])
@pytest.mark.parametrize("granularity", ["head", "channel"])
def test_wanda_score_is_equation_3(layer_scale, granularity):
  rng = np.random.default_rng(1)
  heads = rng.normal(size=(2, 3, 2, 4))
  down = rng.normal(size=(2, 5, 4))
  scales = rng.normal(size=(2, 2, 4))
  layers = {
    "attention": {"out": {"kernel": heads}},
    "mlp": {"down": {"kernel": down}},
  }
  if layer_scale:
    layers |= {"layer_scale1": scales[0], "layer_scale2": scales[1]}
  params = jax.tree.map(
    lambda x: jnp.asarray(x, jnp.float32),
    {"vision": {"encoder": {"layers": layers}}},
  )
  a = {"attn": rng.random((2, 3, 2)), "mlp": rng.random((2, 5))}
  for index, (kind, kernel) in enumerate((("attn", heads), ("mlp", down))):
    group = _group(kind, granularity, layer_scale)
    got = importance.wanda_score(
      params, group, jnp.asarray(a[kind], jnp.float32)
    )
    bare = importance.magnitude_score(params, group)
    for layer in range(2):
      scale = scales[index, layer] if layer_scale else np.ones(4)
      for score, moment in ((got, a[kind]), (bare, np.ones_like(a[kind]))):
        rows = reference.wanda_rows(
          kernel[layer].reshape(-1, 4), scale, moment[layer].reshape(-1)
        )
        if kind == "attn":
          # A head's score is the mean over its rows.
          rows = rows.reshape(3, 2).mean(1 if granularity == "head" else 0)
        np.testing.assert_allclose(score[layer], rows, rtol=1e-5)


def test_estimators_refuse_unknown_options():
  with pytest.raises(ValueError, match="guess"):
    importance.Estimator(kind="guess")
  with pytest.raises(ValueError, match="max"):
    importance.Estimator(reduce="max")


def test_accumulator_averages_over_steps():
  table = (_group("attn"), _group("mlp"))
  unit = importance.empty(table, importance.Estimator())
  rows = importance.empty(table, importance.Estimator(kind="wanda"))
  shapes = [
    jax.tree.map(lambda x: x.shape, x.total)["vision"] for x in (unit, rows)
  ]
  assert shapes == [
    {"attn": (2, 3), "mlp": (2, 5)},
    {"attn": (2, 3, 2), "mlp": (2, 5)},
  ]
  assert all((x == 0).all() for x in jax.tree.leaves(unit.mean))
  total = unit
  for value in (1.0, 2.0, 6.0):
    total = total.add(
      jax.tree.map(lambda x, v=value: jnp.full_like(x, v), unit.total)
    )
  assert float(total.steps) == 3
  assert all((x == 3).all() for x in jax.tree.leaves(total.mean))


# --- standardise ----------------------------------------------------------

_standardise = jax.jit(importance.standardise, static_argnums=2)


def _numpy_standard(score, live, how):
  result = np.zeros_like(score)
  units = [tuple(u) for u in np.argwhere(live)]
  everyone = np.array([score[u] for u in units])
  for u in units:
    layer = score[u[0]][live[u[0]]]
    if how == "layer_mean":
      result[u] = score[u] / np.abs(layer).mean()
    elif how == "isomorphic":
      dead = (~live).sum()
      result[u] = (dead + (everyone <= score[u]).sum()) / live.size
    elif how == "layer_rank":
      dead = (~live[u[0]]).sum()
      result[u] = (dead + (layer <= score[u]).sum()) / live.shape[1]
    elif how == "none":
      result[u] = score[u]
    else:
      pool = everyone if how in ("z_pooled", "z_model") else layer
      result[u] = (score[u] - pool.mean()) / pool.std(ddof=1)
  return result


@pytest.mark.parametrize("how", importance.STANDARDISATIONS)
@pytest.mark.parametrize("seed", range(3))
def test_standardised_scores_are_numpys(how, seed):
  rng = np.random.default_rng(seed)
  scale = np.array([[1e-3], [1.0], [50.0]])
  score = rng.normal(size=(3, 8)) * scale + 0.3 * scale
  live = rng.random((3, 8)) < 0.7
  live[:, :2] = True
  got = _standardise(
    jnp.asarray(score, jnp.float32), jnp.asarray(live, jnp.float32), how
  )
  expected = _numpy_standard(score, live, how)
  np.testing.assert_allclose(np.asarray(got)[live], expected[live], rtol=2e-5)
  # Dead units say nothing, whatever they hold.
  noisy = np.where(live, score, 1e6 * rng.normal(size=score.shape))
  other = _standardise(
    jnp.asarray(noisy, jnp.float32), jnp.asarray(live, jnp.float32), how
  )
  np.testing.assert_array_equal(np.asarray(other)[live], np.asarray(got)[live])


def test_layer_mean_keeps_the_sign_and_survives_empty_layers():
  score = jnp.array([[-3.0, 1.0], [0.0, 0.0], [2.0, 4.0]])
  live = jnp.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
  got = np.asarray(_standardise(score, live, "layer_mean"))
  np.testing.assert_allclose(got[:2], [[-1.5, 0.5], [0.0, 0.0]])
  for how in importance.STANDARDISATIONS:
    got = np.asarray(_standardise(score, live, how))
    assert np.isfinite(got[:2]).all()


def test_isomorphic_ranks_run_to_one_over_the_group_the_dead_first():
  score = jnp.array([[5.0, -1.0, 2.0], [100.0, 3.0, 0.0]])
  live = jnp.array([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
  got = np.asarray(_standardise(score, live, "isomorphic"))
  np.testing.assert_allclose(got[0], np.array([5, 2, 4]) / 6, rtol=1e-6)
  np.testing.assert_allclose(got[1, [0, 2]], [1.0, 0.5])


@pytest.mark.parametrize("how", ["isomorphic", "layer_rank"])
def test_ranks_cut_the_same_share_of_few_units_and_of_many_by_stages(how):
  """A rank among the live would spare the few: 1/6 never falls below 1/1500."""
  rng = np.random.default_rng(0)
  score = {n: jnp.asarray(rng.random((4, n)), jnp.float32) for n in (6, 1536)}
  live = {n: jnp.ones_like(s) for n, s in score.items()}
  for goal in np.linspace(0.05, 0.7, 14):
    for n in live:
      ranked = _standardise(score[n], live[n], how)
      live[n] = jnp.where(ranked <= goal, 0.0, live[n])
  left = {n: float(jnp.mean(each)) for n, each in live.items()}
  # Whole heads go: 16 of 24, or 4 of 6 in each layer.
  assert left[6] == pytest.approx(0.3, abs=0.04)
  assert left[1536] == pytest.approx(0.3, abs=2e-3)


def test_unknown_standardisation_is_refused():
  with pytest.raises(ValueError, match="median"):
    importance.standardise(jnp.ones((1, 2)), jnp.ones((1, 2)), "median")


def test_comparable_scores_standardise_each_group_apart():
  table = (_group("attn"), _group("mlp"))
  rng = np.random.default_rng(2)
  draw = lambda g: jnp.asarray(rng.random((g.layers, g.units)), jnp.float32)  # noqa: E731
  statistics = masks_lib.build(table, draw)
  live = masks_lib.ones(table)

  def scores(name, key):
    return importance.comparable_scores(
      name, {}, table, statistics, live, "layer_mean", jax.random.key(key)
    )

  got = scores("taylor", 0)
  for name in ("attn", "mlp"):
    raw = np.asarray(statistics["vision"][name])
    np.testing.assert_allclose(
      got["vision"][name], raw / raw.mean(1, keepdims=True), rtol=1e-5
    )
  # Random scores differ between keys.
  first, again, other = (
    np.asarray(scores("random", key)["vision"]["mlp"]) for key in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 0.1


# --- a whole encoder against NumPy -----------------------------------------

ENCODERS = {
  # (pre-norm, LayerScale, CLS read out, CIT, CIP, combine)
  "vision": (True, True, True, True, True, "drop"),
  "text": (False, False, False, True, True, "merge"),
  "vision_base": (True, False, True, False, False, "drop"),
}
DEPTH, N, WIDTH = 3, 9, 8


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_scores_drops_and_moments_are_numpys(name):
  pre, layer_scale, reads_cls, gate, cip, combine = ENCODERS[name]
  rng = np.random.default_rng(3)
  spec = specs.encoder(
    width=WIDTH,
    depth=DEPTH,
    heads=2,
    mlp=6,
    norm_first=pre,
    norm_eps=1e-6,
    layer_scale=layer_scale,
  )
  module = encoder_lib.Encoder(spec)
  lengths = [9, 9, 9] if reads_cls else [9, 5, 7]
  valid = np.arange(N)[None] < np.array(lengths)[:, None]
  first = np.arange(N)[None] == np.zeros((3, 1), int)
  last = np.arange(N)[None] == np.array(lengths)[:, None] - 1
  protected = first if reads_cls else first | last
  readout = first if reads_cls else np.zeros_like(first)
  x = rng.normal(size=(3, N, WIDTH)).astype(np.float32)
  state = tokens.TokenState(
    x=jnp.asarray(x),
    valid=jnp.asarray(valid),
    protected=jnp.asarray(protected),
    readout=jnp.asarray(readout),
  )
  shapes = jax.eval_shape(module.init, jax.random.key(0), state)
  params = kit.random_params(rng, shapes, 0.5)
  masks = {
    "attn": rng.uniform(0.2, 1, (DEPTH, 2)).astype(np.float32),
    "mlp": rng.uniform(0, 1, (DEPTH, 6)).astype(np.float32),
  }
  masks["attn"][1, 0] = masks["mlp"][:, 2] = 0.0
  policy = tokens.TokenPolicy(
    theta=jnp.float32(0.7), gate=gate, combine=combine
  )
  estimator = importance.Estimator(kind="wanda", cip=cip)
  run = jax.jit(module.apply, compiler_options=kit.QUICK)
  execution = TowerExecution(
    masks=jax.tree.map(jnp.asarray, masks), policy=policy, estimator=estimator
  )
  out, aux = run(params, state, execution)

  stacked = jax.tree.map(np.float64, params["params"]["layers"])
  layers = [jax.tree.map(lambda p, i=i: p[i], stacked) for i in range(DEPTH)]
  traces = []
  for b, length in enumerate(lengths):
    end, positions, trace = reference.encode(
      layers,
      np.float64(x[b, :length]),
      protected[b, :length],
      readout[b, :length],
      masks=masks,
      theta=0.7,
      gate=gate,
      merge=combine == "merge",
      norm_first=pre,
      eps=1e-6,
      scale_width=WIDTH // 2,
    )
    traces.append(trace)
    np.testing.assert_allclose(out.x[b][positions], end, atol=2e-5)
    counts = [length]
    for layer, step in enumerate(trace):
      live = step["positions"]
      scores = np.zeros(N)
      scores[live] = step["scores"]
      np.testing.assert_allclose(aux["scores"][layer, b], scores, atol=1e-5)
      left = live[step["left"]].tolist()
      assert np.flatnonzero(aux["valid"][layer + 1, b]).tolist() == left
      counts.append(len(left))
    assert aux["counts"][b].tolist() == counts
  # The threshold did something, in each sample and layer by layer.
  dropped = np.asarray(aux["counts"][:, 0] - aux["counts"][:, -1])
  assert (dropped > 0).any() and len(set(dropped.tolist())) > 1

  expected = reference.encoder_moments(traces, cip)
  for kind in ("attn", "mlp"):
    got = np.asarray(aux["moments"][kind])
    np.testing.assert_allclose(
      got, np.stack(expected[kind]), rtol=1e-4, atol=1e-7
    )

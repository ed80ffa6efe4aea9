"""The tap, by brute force and inside a model: Eq. 3 and 4."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import importance, tokens
from comp_jax.core import masks as masks_lib
from comp_jax.core.execution import Execution
from comp_jax.models import families, specs, two_tower
from tests.core import kit, reference


def _tap_inputs(rng):
  z = rng.normal(size=(2, 3, 4, 2)).astype(np.float32)
  y_bar = rng.normal(size=z.shape).astype(np.float32)
  weights = rng.random((2, 3)).astype(np.float32)
  return z, y_bar, weights


@pytest.mark.parametrize("granularity", ["head", "channel"])
@pytest.mark.parametrize("reduce", ["signed", "abs"])
def test_tap_by_brute_force(granularity, reduce):
  rng = np.random.default_rng(4)
  z, y_bar, weights = _tap_inputs(rng)
  by_head = granularity == "head"
  mask = rng.random((4, 1) if by_head else (1, 2)).astype(np.float32)

  def apply(z, mask, probe):
    return importance.tap(reduce, z, mask, probe, jnp.asarray(weights))

  inputs = jnp.asarray(z), jnp.asarray(mask), jnp.asarray(mask)
  out, pull = jax.vjp(apply, *inputs)
  np.testing.assert_array_equal(out, z * mask)
  z_bar, mask_bar, score = pull(jnp.asarray(y_bar))
  np.testing.assert_allclose(z_bar, y_bar * mask, rtol=1e-6)
  # The masks are no weights: nothing learns them.
  assert not np.any(mask_bar)
  expected = np.zeros(4 if by_head else 2)
  for b in range(2):
    sample = np.zeros_like(expected)
    for n in range(3):
      for h in range(4):
        for e in range(2):
          unit = h if by_head else e
          sample[unit] -= weights[b, n] * z[b, n, h, e] * y_bar[b, n, h, e]
    expected += np.abs(sample) if reduce == "abs" else sample
  assert score.shape == mask.shape
  np.testing.assert_allclose(score.reshape(-1), expected, rtol=1e-4)


def test_tap_of_half_precision_sums_in_float32():
  z = jnp.full((1, 4096, 1), 1 / 64, jnp.bfloat16)
  mask = jnp.ones(1)

  def apply(probe):
    return importance.tap("signed", z, mask, probe, jnp.ones((1, 4096)))

  out, pull = jax.vjp(apply, mask)
  (score,) = pull(jnp.full_like(out, 1 / 64))
  np.testing.assert_allclose(score, [-1.0], rtol=1e-6)


SEP = 3
# One tower of each granularity.
GRANULARITY = {"vision": "head", "text": "channel"}


def _model(**changes):
  def encoder(tower, **options):
    return specs.encoder(
      width=8,
      depth=2,
      heads=2,
      mlp=6,
      norm_eps=1e-6,
      granularity=GRANULARITY[tower],
      **options,
      **changes,
    )

  return specs.TwoTowerSpec(
    vision=specs.VitSpec(
      image_size=6,
      patch_size=2,
      encoder=encoder("vision", norm_first=True, layer_scale=True),
    ),
    text=specs.BertSpec(
      vocab_size=20,
      max_length=6,
      sep_id=SEP,
      encoder=encoder("text", norm_first=False),
    ),
    joint_width=4,
  )


def _batch():
  rng = np.random.default_rng(5)
  ids = np.array(
    [[2, 5, 6, 7, SEP, 0], [2, 8, 9, 10, 11, SEP], [2, 12, 13, SEP, 0, 0]],
    np.int32,
  )
  image = rng.integers(0, 256, (3, 6, 6, 3), dtype=np.uint8)
  return {
    "image": jnp.asarray(image),
    "text_ids": jnp.asarray(ids),
    "text_mask": jnp.asarray(ids > 0),
  }


def _inputs():
  """Stacked parameters and soft masks of `_model`."""
  rng = np.random.default_rng(6)
  model = two_tower.TwoTower(_model())
  shapes = jax.eval_shape(model.init, jax.random.key(0), _batch())
  params = kit.random_params(rng, shapes["params"], 0.6)
  masks = masks_lib.build(
    families.groups(_model(), min_neurons=1),
    lambda g: jnp.asarray(
      rng.uniform(0.2, 1.0, (g.layers, g.units)), jnp.float32
    ),
  )
  return params, masks


def _execution(masks, probes, estimator):
  policies = {
    "vision": tokens.TokenPolicy(theta=jnp.float32(0.9)),
    "text": tokens.TokenPolicy(theta=jnp.float32(0.8)),
  }
  return Execution(
    masks=masks, probes=probes, policies=policies, estimator=estimator
  )


def _loss(output):
  logits = 3.0 * jnp.einsum(
    "bp,cp->bc", output["image_embedding"], output["text_embedding"]
  )
  labels = jnp.eye(3)
  return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1))


@pytest.fixture(scope="module")
def scanned():
  """Under scan and remat: (gradient or score, (output, aux)) by name."""
  params, masks = _inputs()
  model = two_tower.TwoTower(_model(remat=True))
  probes = jax.tree.map(jnp.zeros_like, masks)

  def loss(masks, probes, estimator):
    output, aux = model.apply(
      {"params": params}, _batch(), _execution(masks, probes, estimator)
    )
    return _loss(output), (output, aux)

  def run(masks, probes):
    score = jax.grad(loss, argnums=1, has_aux=True)
    return {
      "gradient": jax.grad(loss, has_aux=True)(masks, None, None),
      "unweighted": score(masks, probes, importance.Estimator(cip=False)),
      "weighted": score(masks, probes, importance.Estimator()),
    }

  return jax.jit(run, compiler_options=kit.QUICK)(masks, probes)


def _close(got, expected, atol):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5),
    got,
    expected,
  )


def test_unweighted_tap_is_minus_the_mask_gradient(scanned):
  gradient, score = scanned["gradient"][0], scanned["unweighted"][0]
  _close(score, jax.tree.map(jnp.negative, gradient), 1e-6)
  assert min(np.abs(x).max() for x in jax.tree.leaves(gradient)) > 1e-3
  # The weights matter.
  differences = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()), scanned["weighted"][0], score
  )
  assert min(jax.tree.leaves(differences)) > 1e-4


def test_taps_change_nothing_in_the_forward_pass(scanned):
  for name in ("unweighted", "weighted"):
    _close(scanned[name][1], scanned["gradient"][1], 1e-6)
  # Tokens are dropped in both towers, and in the middle of the stack.
  for tower in ("vision", "text"):
    counts = np.asarray(scanned["weighted"][1][1][tower]["counts"])
    assert (counts[:, 1] < counts[:, 0]).any()


@pytest.fixture(scope="module")
def captured():
  """Unrolled and untapped: every masked z, its weights, its y_bar; the aux."""
  params, masks = _inputs()
  unrolled = dict(params)
  for tower in ("vision", "text"):
    stacked = params[tower]["encoder"]["layers"]
    rows = {
      f"layers_{i}": jax.tree.map(lambda p, i=i: p[i], stacked)
      for i in range(2)
    }
    unrolled[tower] = {**params[tower], "encoder": rows}
  model = two_tower.TwoTower(_model(scan=False))
  probes = jax.tree.map(jnp.zeros_like, masks)

  def forward(sites):
    """The loss with `sites[i]` added to the i-th masked value."""
    seen = []

    def capture(reduce, z, mask, probe, weights):
      del reduce, probe
      index = len(seen)
      seen.append((z, weights))
      y = z * mask[None, None]
      return y if sites is None else y + sites[index]

    original, importance.tap = importance.tap, capture
    try:
      output, aux = model.apply(
        {"params": unrolled},
        _batch(),
        _execution(masks, probes, importance.Estimator()),
      )
    finally:
      importance.tap = original
    return _loss(output), (seen, aux)

  shapes = jax.eval_shape(lambda: forward(None)[1][0])
  zeros = [jnp.zeros(z.shape) for z, _ in shapes]
  gradient = jax.jit(
    jax.grad(forward, has_aux=True), compiler_options=kit.QUICK
  )
  y_bar, (seen, aux) = gradient(zeros)
  return seen, y_bar, aux


SITES = ("attn", "attn", "attn", "mlp")  # q, k, v and the MLP's hidden.


def test_tap_weights_are_the_layers_own_shares(captured):
  seen, _, aux = captured
  ids = np.asarray(_batch()["text_ids"])
  index = 0
  for tower in ("vision", "text"):
    valid = np.asarray(aux[tower]["valid"])
    protected = np.zeros(valid.shape[1:], bool)
    protected[:, 0] = True
    readout = protected if tower == "vision" else np.zeros_like(protected)
    if tower == "text":
      protected = protected | (ids == SEP)
    for layer in range(2):
      for site in SITES:
        # The MLP sees the tokens that this layer's rule left.
        alive = valid[layer + (site == "mlp")]
        for b in range(3):
          expected = reference.token_weights(
            np.asarray(aux[tower]["scores"][layer, b], np.float64),
            alive[b],
            alive[b] & ~protected[b],
            readout[b],
            cip=True,
          )
          np.testing.assert_allclose(seen[index][1][b], expected, atol=1e-6)
        index += 1
  assert index == len(seen) == 16


def test_weighted_tap_is_brute_force(captured, scanned):
  seen, y_bar, _ = captured
  index = 0
  for tower in ("vision", "text"):
    got = scanned["weighted"][0][tower]
    # [b, n, heads, head width]: a channel is shared by all heads.
    axes = "bn,bnhe->h" if GRANULARITY[tower] == "head" else "bn,bnhe->e"
    for layer in range(2):
      score = {"attn": 0.0, "mlp": 0.0}
      for site in SITES:
        z, w = (np.float64(x) for x in seen[index])
        product = -z * np.float64(y_bar[index])
        score[site] += np.einsum(
          axes if site == "attn" else "bn,bnm->m", w, product
        )
        index += 1
      for kind, expected in score.items():
        np.testing.assert_allclose(
          got[kind][layer], expected, atol=1e-6, rtol=1e-5
        )

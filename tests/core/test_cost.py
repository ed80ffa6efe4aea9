"""MACs: published constants, traced against exact, and against XLA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import compact, cost
from comp_jax.core import masks as masks_lib
from comp_jax.core.execution import Execution
from comp_jax.core.tokens import TokenPolicy
from comp_jax.models import families, specs, towers, two_tower

CLIP = dict(
  patches=576,
  patch_size=14,
  vision_width=1024,
  vision_layers=24,
  text_width=768,
  text_layers=12,
  joint_width=768,
)


def test_published_constants():
  vit = cost.vit_macs(
    patches=576, patch_size=16, width=768, layers=12, mlp=3072
  )
  assert round(vit / 1e9, 3) == 55.539
  assert round(cost.clip_macs(**CLIP) / 1e9, 1) == 197.8
  legacy = cost.clip_macs(**CLIP, convention="legacy")
  assert round(legacy / 1e9, 4) == 395.7007
  with pytest.raises(ValueError, match="convention"):
    cost.clip_macs(**CLIP, convention="training")


def _spec(width=32, mlp=48, granularity="head", scan=True):
  options = dict(granularity=granularity, scan=scan)
  return specs.TwoTowerSpec(
    vision=specs.VitSpec(
      image_size=32,
      patch_size=8,
      encoder=specs.encoder(
        width=width,
        depth=3,
        heads=4,
        mlp=mlp,
        norm_first=True,
        norm_eps=1e-6,
        layer_scale=True,
        **options,
      ),
    ),
    text=specs.BertSpec(
      vocab_size=50,
      max_length=16,
      encoder=specs.encoder(
        width=width,
        depth=2,
        heads=2,
        mlp=mlp,
        norm_first=False,
        norm_eps=1e-12,
        **options,
      ),
    ),
    joint_width=24,
  )


def _counts(b=3):
  """Tokens per sample: at the input and after each layer."""
  rng = np.random.default_rng(0)
  counts = {}
  towers = (("vision", 3, [17] * b), ("text", 2, [16, 9, 5]))
  for tower, layers, start in towers:
    after = rng.integers(0, 4, size=(b, layers))
    after[0] = 0
    table = np.asarray(start)[:, None] - np.cumsum(after, axis=1)
    table = np.concatenate([np.asarray(start)[:, None], table], axis=1)
    counts[tower] = np.maximum(table, 2)
  return counts


def _masks(model, seed=0):
  rng = np.random.default_rng(seed)

  def leaf(group):
    live = rng.random((group.layers, group.units)) < 0.6
    live[:, 0] = True
    return jnp.asarray(live.astype(np.float32))

  return masks_lib.build(families.groups(model), leaf)


def test_macs_equal_a_count_by_hand():
  """One layer, one sample: every matrix product by its three sizes."""
  d, heads, e, m, entering, leaving = 8, 2, 3, 10, 7, 5
  products = 0
  for _ in ("query", "key", "value", "out"):
    products += entering * d * (heads * e)
  products += heads * (entering * e * entering)  # Logits.
  products += heads * (entering * entering * e)  # Values.
  products += 2 * leaving * d * m
  norms = 5 * d * (entering + leaving)
  macs = cost.encoder_macs(
    width=d,
    attention_widths=[heads * e],
    mlp_widths=[m],
    counts=np.array([[entering, leaving]]),
  )
  assert macs.tolist() == [products + norms]


def test_traced_macs_equal_integers():
  counts = _counts()
  arguments = dict(
    width=32, attention_widths=[24, 16, 8], mlp_widths=[48, 7, 30]
  )
  exact = cost.encoder_macs(**arguments, counts=counts["vision"])
  assert exact.dtype == np.int64
  traced = jax.jit(lambda c: cost.encoder_macs(**arguments, counts=c))(
    jnp.asarray(counts["vision"])
  )
  np.testing.assert_array_equal(np.asarray(traced, np.int64), exact)


@pytest.mark.parametrize("granularity", ["head", "channel"])
def test_macs_of_masks_equal_those_of_the_compact_model(granularity):
  model = _spec(granularity=granularity)
  groups, masks, counts = families.groups(model), _masks(model), _counts()
  small = towers.compacted(model, compact.units_left(groups, masks))
  traced = jax.jit(lambda m, c: families.macs(model, m, c))(
    masks, jax.tree.map(jnp.asarray, counts)
  )
  exact = families.macs(small, None, counts)
  np.testing.assert_allclose(traced, exact, rtol=1e-6)
  per_sample = [
    families.macs(
      small, None, jax.tree.map(lambda c, i=i: c[i : i + 1], counts)
    )
    for i in range(3)
  ]
  assert all(value == int(value) for value in per_sample)
  np.testing.assert_allclose(exact, np.mean(per_sample), rtol=1e-12)
  assert exact < families.macs(model, None, counts)


@pytest.mark.parametrize("granularity", ["head", "channel"])
def test_the_gradient_of_a_mask_is_what_its_unit_saves(granularity):
  model, counts = _spec(granularity=granularity), _counts()
  groups = families.groups(model)
  masks = masks_lib.ones(groups)
  gradient = jax.jit(
    jax.grad(
      lambda m: families.macs(model, m, jax.tree.map(jnp.asarray, counts))
    )
  )(masks)
  units = compact.units_left(groups, masks)
  dense = families.macs(towers.compacted(model, units), None, counts)
  for group in groups:
    tower, kind = group.name.split("/")
    for layer in range(group.layers):
      fewer = {name: list(left) for name, left in units.items()}
      fewer[group.name][layer] -= 1
      less = families.macs(towers.compacted(model, fewer), None, counts)
      np.testing.assert_allclose(
        gradient[tower][kind][layer], dense - less, rtol=1e-6
      )


def test_static_counts_are_caps():
  counts = cost.static_counts(np.array([17, 6, 3]), (10, 12, 4), 3)
  assert counts.tolist() == [[17, 10, 10, 4], [6, 6, 6, 4], [3, 3, 3, 3]]
  assert cost.static_counts(np.array([5]), None, 2).tolist() == [[5, 5, 5]]


def test_macs_agree_with_xla_on_a_compact_model():
  """XLA's count of an unrolled, sliced model; both count 2 FLOPs a MAC.

  XLA adds one FLOP for each element-wise operation, which we leave out but
  for LayerNorm: a wide model keeps those few.
  """
  model = _spec(width=512, mlp=1536)
  groups, masks = families.groups(model), _masks(model)
  small = towers.compacted(model, compact.units_left(groups, masks))
  keep = {"vision": (13, 9, 6), "text": (12, 7)}
  shapes = families.param_shapes(small)
  b = 2
  batch = {
    "image": jax.ShapeDtypeStruct((b, 32, 32, 3), jnp.uint8),
    "text_ids": jax.ShapeDtypeStruct((b, 16), jnp.int32),
    "text_mask": jax.ShapeDtypeStruct((b, 16), jnp.bool_),
  }

  @functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
  )
  def run(params, batch):
    output, _ = two_tower.TwoTower(small).apply(
      {"params": params},
      batch,
      Execution(policies={t: TokenPolicy(keep=k) for t, k in keep.items()}),
    )
    return output

  flops = run.lower(shapes, batch).compile().cost_analysis()["flops"]
  counts = {
    "vision": cost.static_counts(np.full(b, 17), keep["vision"], 3),
    "text": cost.static_counts(np.full(b, 16), keep["text"], 2),
  }
  macs = families.macs(small, None, counts)
  assert 0.97 < macs * b / (flops / 2) < 1.01
  # The same check fails for counts or widths of the dense model.
  assert families.macs(model, None, counts) > 1.2 * macs

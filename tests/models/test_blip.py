"""A text tower that looks at images: what must hold for any weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import compact, cost, importance
from comp_jax.core import groups as groups_lib
from comp_jax.core import masks as masks_lib
from comp_jax.core.tokens import TokenPolicy
from comp_jax.models import blip, families, specs
from tests.models import model_kit as kit

BATCH = kit.batch()
MODEL = kit.spec(readout="cross")
PARAMS = kit.params(MODEL)
JOINT = kit.spec(readout="joint")
BOTH = pytest.mark.parametrize("model", [MODEL, JOINT], ids=["itm", "joint"])


def close(actual, desired, atol=1e-5):
  jax.tree.map(
    lambda a, d: np.testing.assert_allclose(a, d, rtol=0, atol=atol),
    actual,
    desired,
  )


def _some_removed(groups, names, seed=5):
  rng = np.random.default_rng(seed)

  def leaf(group):
    mask = np.ones((group.layers, group.units), np.float32)
    if group.name in names:
      mask[rng.random(mask.shape) < 0.4] = 0.0
      mask[:, 0] = 1.0
      mask[:, -1] = 0.0
    return jnp.asarray(mask)

  return masks_lib.build(groups, leaf)


@BOTH
def test_it_has_all_five_modes(model):
  assert families.prunable(model).modes == (
    "vision_params",
    "language_params",
    "cross_params",
    "vision_tokens",
    "language_tokens",
  )


@pytest.mark.parametrize("granularity", ["head", "channel"])
@pytest.mark.parametrize("names", [{"text/cross"}, None])
@BOTH
def test_zero_mask_equals_sliced_out(model, names, granularity):
  params = kit.params(model)
  model = specs.with_encoders(model, granularity=granularity)
  groups = families.groups(model)
  masks = _some_removed(groups, names or {g.name for g in groups})
  left = compact.units_left(groups, masks)
  small = specs.compacted(model, left)
  sliced = compact.slice_params(params, groups, masks)
  policies = {
    tower: TokenPolicy(theta=0.6, gate=granularity == "head")
    for tower in ("vision", "text")
  }
  output, aux = kit.apply(model, params, BATCH, masks, policies=policies)
  same, small_aux = kit.apply(small, sliced, BATCH, policies=policies)
  close(same, output)
  dense, _ = kit.apply(model, params, BATCH, policies=policies)
  assert np.max(np.abs(dense["logits"] - output["logits"])) > 1e-3
  for tower in ("vision", "text"):
    np.testing.assert_array_equal(
      small_aux[tower]["counts"], aux[tower]["counts"]
    )
  # The costs agree too: masks and widths are two readings of one model.
  counts = {t: np.asarray(aux[t]["counts"], np.int64) for t in aux}
  traced = families.macs(model, masks, jax.tree.map(jnp.asarray, counts))
  np.testing.assert_allclose(
    traced, families.macs(small, None, counts), rtol=1e-6
  )
  assert families.params_count(small) == sum(
    x.size for x in jax.tree.leaves(sliced)
  )
  assert specs.from_dict(specs.to_dict(small)) == small


@pytest.mark.parametrize("granularity", ["head", "channel"])
@BOTH
def test_a_group_lists_every_array_a_unit_touches(model, granularity):
  params = kit.params(model)
  model = specs.with_encoders(model, granularity=granularity)
  groups = families.groups(model)
  masks = _some_removed(groups, {g.name for g in groups})
  wild = jax.tree.map(np.array, params)
  for group in groups:
    gone = np.asarray(groups_lib.leaf(masks, group.name)) == 0
    for slot in group.slots:
      array = groups_lib.leaf(wild, f"{group.scope}/{slot.path}")
      for layer, unit in zip(*np.nonzero(gone), strict=True):
        index = [layer] + [slice(None)] * (array.ndim - 1)
        index[slot.axis + 1] = unit
        array[tuple(index)] += 7.0
  output, _ = kit.apply(model, params, BATCH, masks)
  same, _ = kit.apply(model, wild, BATCH, masks)
  close(same, output)


def test_mask_execution_equals_static_at_equal_counts():
  flat = specs.with_encoders(MODEL, scan=False)
  params = kit.unrolled(PARAMS, MODEL)
  policies = {"vision": TokenPolicy(theta=0.8), "text": TokenPolicy(theta=0.9)}
  inputs = jax.tree.map(lambda x: np.repeat(x[:1], 2, axis=0), BATCH)
  output, aux = kit.apply(MODEL, PARAMS, inputs, policies=policies)
  static = {}
  for tower, policy in policies.items():
    counts = np.asarray(aux[tower]["counts"])[0]
    assert counts[-1] < counts[0]
    static[tower] = dataclasses.replace(
      policy, theta=0.0, keep=tuple(int(k) for k in counts[1:])
    )
  same, _ = kit.apply(flat, params, inputs, policies=static)
  close(same, output)


@BOTH
def test_padding_and_batch_composition_change_nothing(model):
  params = kit.params(model)
  policies = {tower: TokenPolicy(theta=0.8) for tower in ("vision", "text")}
  output, _ = kit.apply(model, params, BATCH, policies=policies)
  length = int(BATCH["text_mask"][1].sum())
  alone = {
    "image": BATCH["image"][1:2],
    "text_ids": BATCH["text_ids"][1:2, :length],
    "text_mask": BATCH["text_mask"][1:2, :length],
  }
  single, _ = kit.apply(model, params, alone, policies=policies)
  for name in output.keys() - {"logit_scale"}:
    close(single[name][0], output[name][1])


def test_a_dropped_image_token_is_gone_for_the_text():
  """What is dropped may hold anything: the text does not see it."""
  policies = {"vision": TokenPolicy(theta=0.9), "text": None}
  model = blip.Matching(MODEL)
  variables = {"params": jax.tree.map(jnp.asarray, PARAMS)}
  source, aux = model.apply(
    variables,
    jnp.asarray(BATCH["image"]),
    policy=policies["vision"],
    method="look",
  )
  assert not np.all(source.valid)
  wild = dataclasses.replace(
    source, x=jnp.where(source.valid[..., None], source.x, 9.0)
  )
  text = jnp.asarray(BATCH["text_ids"]), jnp.asarray(BATCH["text_mask"])
  plain, _ = model.apply(variables, source, *text, method="read")
  same, _ = model.apply(variables, wild, *text, method="read")
  close(same, plain)


def test_enc_takes_the_place_of_cls_when_the_text_looks_at_images():
  text = dataclasses.replace(MODEL.text, enc_id=kit.VOCAB - 1)
  model = dataclasses.replace(MODEL, text=text)
  ids = np.array(BATCH["text_ids"])
  ids[:, 0] = kit.VOCAB - 1
  expected, _ = kit.apply(MODEL, PARAMS, {**BATCH, "text_ids": ids})
  output, _ = kit.apply(model, PARAMS, BATCH)
  close(output, expected, atol=1e-6)
  plain, _ = kit.apply(MODEL, PARAMS, BATCH)
  assert np.max(np.abs(plain["logits"] - output["logits"])) > 1e-3


@pytest.mark.parametrize("granularity", ["head", "channel"])
def test_taylor_without_cip_is_minus_the_gradient_of_the_mask(granularity):
  model = specs.with_encoders(MODEL, granularity=granularity)
  groups = families.groups(model)
  rng = np.random.default_rng(2)
  masks = masks_lib.build(
    groups,
    lambda g: jnp.asarray(
      rng.uniform(0.5, 1.0, (g.layers, g.units)).astype(np.float32)
    ),
  )
  estimator = importance.Estimator(kind="taylor", cip=False)

  def loss(masks, probes, estimator):
    output, _ = kit.forward(
      model, PARAMS, BATCH, masks, probes, None, estimator
    )
    return jnp.sum(output["logits"] * jnp.array([[1.0, -2.0]]))

  plain = jax.jit(jax.grad(lambda m: loss(m, None, None)))(masks)
  probes = jax.tree.map(jnp.zeros_like, masks)
  scores = jax.jit(jax.grad(lambda p: loss(masks, p, estimator)))(probes)
  close(scores, jax.tree.map(jnp.negative, plain), atol=1e-3)
  assert np.any(np.asarray(scores["text"]["cross"]) != 0)


def test_cip_weighs_keys_by_image_tokens_and_queries_by_text_tokens():
  """The score of a cross unit is the tap's sum with those two weights."""
  groups = families.groups(MODEL)
  masks = masks_lib.ones(groups)
  probes = jax.tree.map(jnp.zeros_like, masks)

  def scores(cip):
    estimator = importance.Estimator(kind="taylor", cip=cip)

    def loss(probes):
      output, _ = kit.forward(
        MODEL, PARAMS, BATCH, masks, probes, None, estimator
      )
      return jnp.sum(output["logits"] * jnp.array([[1.0, -2.0]]))

    return np.asarray(jax.jit(jax.grad(loss))(probes)["text"]["cross"])

  weighted, plain = scores(True), scores(False)
  assert np.max(np.abs(weighted - plain)) > 1e-4
  model = blip.Matching(MODEL)
  source, aux = model.apply(
    {"params": jax.tree.map(jnp.asarray, PARAMS)},
    jnp.asarray(BATCH["image"]),
    masks["vision"],
    probes["vision"],
    None,
    importance.Estimator(kind="taylor"),
    method="look",
  )
  # CLS weighs 1, the patches share 1 by their score in the last layer.
  np.testing.assert_allclose(source.weights[:, 0], 1.0)
  np.testing.assert_allclose(
    source.weights[:, 1:], aux["scores"][-1][:, 1:], atol=1e-6
  )


def test_wanda_gathers_a_moment_for_every_group():
  estimator = importance.Estimator(kind="wanda")
  masks = masks_lib.ones(families.groups(MODEL))
  _, aux = kit.apply(MODEL, PARAMS, BATCH, masks, estimator=estimator)
  assert aux["text"]["moments"]["cross"].shape == (2, 4, 4)
  assert np.all(np.asarray(aux["text"]["moments"]["cross"]) > 0)


def test_macs_of_cross_attention_follow_the_closed_form():
  """Spec `upop.md` part 4, one cross-attention per layer."""
  queries, keys, d, e = 5, 17, 16, 24
  per_layer = queries * d * d + 2 * keys * e * d + 2 * queries * keys * d
  per_layer += queries * d * d
  macs = cost.cross_macs(
    width=d,
    source_width=e,
    attention_widths=[d, d],
    queries=np.full((1, 2), queries),
    keys=np.array([keys]),
  )
  assert macs.tolist() == [2 * per_layer]

"""Text towers that look at others: what must hold for any weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import compact
from comp_jax.core import groups as groups_lib
from comp_jax.core import masks as masks_lib
from comp_jax.core.execution import Execution
from comp_jax.core.tokens import TokenPolicy
from comp_jax.models import (
  blip,
  blip_vqa,
  families,
  spec_json,
  specs,
  towers,
)
from tests.models import model_kit as kit
from tests.models.blip_kit import (
  BATCH,
  MODEL,
  MODELS,
  PARAMS,
  PARAMS_OF,
  close,
  every_model,
)

# Towers that lose tokens.
DROP = {
  "cross": ("vision", "text"),
  "joint": ("vision", "text"),
  "caption": ("vision",),
  "vqa": ("vision", "text"),
}


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


@every_model
def test_it_has_all_five_modes_but_a_decoder_drops_no_token(name):
  modes = (
    "vision_params",
    "language_params",
    "cross_params",
    "vision_tokens",
    "language_tokens",
  )
  prunable = families.prunable(MODELS[name])
  assert prunable.modes == modes[: 3 + len(DROP[name])]
  assert prunable.towers == DROP[name]


@pytest.mark.parametrize(
  ("name", "groups_named", "granularity"),
  [
    ("cross", None, "head"),
    ("cross", None, "channel"),
    ("joint", None, "head"),
    ("caption", None, "head"),
    ("vqa", None, "channel"),
  ]
  + kit.slow_cases(
    # One group alone tells where it was.
    ("cross", {"text/cross"}, "head"),
    ("cross", {"text/cross"}, "channel"),
    ("vqa", {"answer/cross"}, "head"),
    ("joint", None, "channel"),
  ),
)
def test_zero_mask_equals_sliced_out(name, groups_named, granularity):
  model = specs.with_encoders(MODELS[name], granularity=granularity)
  params = PARAMS_OF[name]
  groups = families.groups(model)
  masks = _some_removed(groups, groups_named or {g.name for g in groups})
  left = compact.units_left(groups, masks)
  small = towers.compacted(model, left)
  sliced = compact.slice_params(params, groups, masks)
  policies = {
    tower: TokenPolicy(theta=0.6, gate=granularity == "head")
    for tower in DROP[name]
  }
  output, aux = kit.apply(model, params, BATCH, masks, policies=policies)
  same, small_aux = kit.apply(small, sliced, BATCH, policies=policies)
  close(same, output)
  dense, _ = kit.apply(model, params, BATCH, policies=policies)
  assert np.max(np.abs(dense["logits"] - output["logits"])) > 1e-3
  for tower in model.towers:
    np.testing.assert_array_equal(
      small_aux[tower]["counts"], aux[tower]["counts"]
    )
  # The costs agree too: masks and widths are two readings of one model.
  counts = {t: np.asarray(aux[t]["counts"], np.int64) for t in aux}
  traced = families.macs(model, masks, jax.tree.map(jnp.asarray, counts))
  np.testing.assert_allclose(
    traced, families.macs(small, None, counts), rtol=1e-6
  )
  size = sum(x.size for x in jax.tree.leaves(sliced))
  assert families.params_count(small) == size
  assert jax.jit(families.live_params, static_argnums=0)(model, masks) == size
  assert spec_json.from_dict(spec_json.to_dict(small)) == small


@pytest.mark.parametrize(
  ("name", "granularity"),
  [("cross", "channel"), ("vqa", "head")]
  + kit.slow_cases(("cross", "head"), ("joint", "head")),
)
def test_a_group_lists_every_array_a_unit_touches(name, granularity):
  model = specs.with_encoders(MODELS[name], granularity=granularity)
  params = PARAMS_OF[name]
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


@every_model
def test_masks_of_ones_and_theta_0_change_nothing(name):
  """Not a bit, where each operation runs by itself and none is fused."""
  flat = specs.with_encoders(MODELS[name], scan=False)
  params = kit.unrolled(PARAMS_OF[name], flat)
  masks = masks_lib.ones(families.groups(flat))
  policies = {tower: TokenPolicy() for tower in DROP[name]}
  plain, _ = kit.forward(flat, params, BATCH)
  same, _ = kit.forward(flat, params, BATCH, masks, policies=policies)
  close(same, plain, atol=0)


@pytest.mark.parametrize(
  "name", ["joint", "vqa"] + kit.slow_cases(("cross",), ("caption",))
)
def test_masks_of_ones_and_theta_0_change_nothing_compiled(name):
  """Up to what fusing the operations rounds."""
  masks = masks_lib.ones(families.groups(MODELS[name]))
  policies = {tower: TokenPolicy() for tower in DROP[name]}
  args = (MODELS[name], PARAMS_OF[name], BATCH)
  plain, _ = kit.fused(*args)
  same, _ = kit.fused(*args, masks, policies=policies)
  close(same, plain, atol=1e-6)


@every_model
def test_mask_execution_equals_static_at_equal_counts(name):
  model = MODELS[name]
  flat = specs.with_encoders(model, scan=False)
  params = kit.unrolled(PARAMS_OF[name], model)
  policies = {tower: TokenPolicy(theta=0.85) for tower in DROP[name]}
  inputs = jax.tree.map(lambda x: np.repeat(x[:1], 2, axis=0), BATCH)
  output, aux = kit.apply(model, PARAMS_OF[name], inputs, policies=policies)
  static = {}
  for tower, policy in policies.items():
    counts = np.asarray(aux[tower]["counts"])[0]
    assert counts[-1] < counts[0]
    static[tower] = dataclasses.replace(
      policy, theta=0.0, keep=tuple(int(k) for k in counts[1:])
    )
  same, _ = kit.apply(flat, params, inputs, policies=static)
  close(same, output)


@every_model
def test_padding_and_batch_composition_change_nothing(name):
  model, params = MODELS[name], PARAMS_OF[name]
  policies = {tower: TokenPolicy(theta=0.8) for tower in DROP[name]}
  output, _ = kit.apply(model, params, BATCH, policies=policies)
  length = int(BATCH["text_mask"][1].sum())
  answer = int(BATCH["answer_mask"][1, 0].sum())
  alone = {
    "image": BATCH["image"][1:2],
    "text_ids": BATCH["text_ids"][1:2, :length],
    "text_mask": BATCH["text_mask"][1:2, :length],
    "answer_ids": BATCH["answer_ids"][1:2, :1, :answer],
    "answer_mask": BATCH["answer_mask"][1:2, :1, :answer],
  }
  single, _ = kit.apply(model, params, alone, policies=policies)
  real = {
    "caption": np.s_[1, :length],
    "vqa": np.s_[1, :1, :answer],
  }.get(name, np.s_[1])
  for key in output.keys() - {"logit_scale"}:
    close(single[key][0], output[key][real])


def test_a_dropped_image_token_is_gone_for_the_text():
  """What is dropped may hold anything: the text does not see it."""
  policies = {"vision": TokenPolicy(theta=0.9), "text": None}
  model = blip.Matching(MODEL)
  variables = {"params": jax.tree.map(jnp.asarray, PARAMS)}
  source, aux = model.apply(
    variables,
    jnp.asarray(BATCH["image"]),
    Execution(policies=policies).of("vision"),
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


@pytest.mark.parametrize("name", ["caption", "vqa"])
def test_no_token_of_a_decoder_sees_a_later_one(name):
  model, prefix = MODELS[name], "text" if name == "caption" else "answer"
  ids = np.array(BATCH[f"{prefix}_ids"])
  ids[..., 3:] = 7
  output, _ = kit.apply(model, PARAMS_OF[name], BATCH)
  other, _ = kit.apply(model, PARAMS_OF[name], {**BATCH, f"{prefix}_ids": ids})
  output, other = output["logits"], other["logits"]
  before = np.array(BATCH[f"{prefix}_mask"])
  before[..., 3:] = False
  close(other[before], output[before])
  assert np.max(np.abs(other[..., 3, :] - output[..., 3, :])) > 1e-3


def test_a_dropped_question_token_is_gone_for_the_answer():
  model, params = MODELS["vqa"], PARAMS_OF["vqa"]
  variables = {"params": jax.tree.map(jnp.asarray, params)}
  batch = jax.tree.map(jnp.asarray, BATCH)
  policies = {"vision": None, "text": TokenPolicy(theta=0.9)}
  module = blip_vqa.Vqa(model)
  source, aux = module.apply(
    variables, batch, Execution(policies=policies), method="ask"
  )
  gone = batch["text_mask"] & ~source.valid
  assert np.any(gone)
  wild = dataclasses.replace(
    source, x=jnp.where(source.valid[..., None], source.x, 9.0)
  )
  answer = batch["answer_ids"][:, 0], batch["answer_mask"][:, 0]
  plain = module.apply(variables, source, *answer, method="write")
  same = module.apply(variables, wild, *answer, method="write")
  close(same, plain)


def test_only_the_first_answer_is_costed():
  _, aux = kit.apply(MODELS["vqa"], PARAMS_OF["vqa"], BATCH)
  counts = np.asarray(aux["answer"]["counts"])
  expected = BATCH["answer_mask"][:, 0].sum(axis=-1)
  np.testing.assert_array_equal(counts, np.repeat(expected[:, None], 3, axis=1))

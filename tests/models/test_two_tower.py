"""What must hold for any weights: masks, executions, padding, options."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import compact, importance
from comp_jax.core import groups as groups_lib
from comp_jax.core import masks as masks_lib
from comp_jax.core.execution import Execution
from comp_jax.core.tokens import TokenPolicy
from comp_jax.models import families, specs, towers, two_tower
from tests.models import model_kit as kit

BATCH = kit.batch()


def close(actual, desired, atol=1e-5):
  jax.tree.map(
    lambda a, d: np.testing.assert_allclose(a, d, rtol=0, atol=atol),
    actual,
    desired,
  )


@functools.cache
def _model(**options):
  model = kit.spec(**options)
  return model, kit.params(model)


def _some_removed(groups, names, seed=5):
  """Hard masks: about 40 % of the units of the named groups are removed."""
  rng = np.random.default_rng(seed)

  def leaf(group):
    mask = np.ones((group.layers, group.units), np.float32)
    if group.name in names:
      mask[rng.random(mask.shape) < 0.4] = 0.0
      mask[:, 0] = 1.0  # A unit stays, and one goes, in every layer.
      mask[:, -1] = 0.0
    return jnp.asarray(mask)

  return masks_lib.build(groups, leaf)


def _sliced(model, params, masks):
  groups = families.groups(model)
  small = towers.compacted(model, compact.units_left(groups, masks))
  return small, compact.slice_params(params, groups, masks)


GROUPS = ["vision/attn", "vision/mlp", "text/attn", "text/mlp", "all"]


@pytest.mark.parametrize(
  ("name", "granularity", "options"),
  [
    ("all", granularity, options)
    for granularity in ("head", "channel")
    for options in ({}, {"layer_scale": False}, {"readout": "end"})
  ]
  + kit.slow_cases(
    # One group alone tells where it was.
    *((name, "head", {}) for name in GROUPS[:-1]),
    *((name, "channel", {"layer_scale": False}) for name in GROUPS[:-1]),
    ("text/attn", "head", {"readout": "end"}),
  ),
)
def test_zero_mask_equals_sliced_out(name, granularity, options):
  model, params = _model(granularity=granularity, **options)
  groups = families.groups(model)
  names = {group.name for group in groups}
  assert names == set(GROUPS) - {"all"}
  masks = _some_removed(groups, names if name == "all" else {name})
  small, small_params = _sliced(model, params, masks)
  # Token choices must agree too: removed heads may not vote.
  policies = {
    tower: TokenPolicy(theta=0.6, gate=granularity == "head")
    for tower in ("vision", "text")
  }
  masked, aux = kit.apply(model, params, BATCH, masks, policies=policies)
  sliced, small_aux = kit.apply(small, small_params, BATCH, policies=policies)
  close(sliced, masked)
  for tower in ("vision", "text"):
    close(small_aux[tower]["scores"], aux[tower]["scores"])
    np.testing.assert_array_equal(
      small_aux[tower]["counts"], aux[tower]["counts"]
    )
    assert np.any(aux[tower]["counts"][:, -1] < aux[tower]["counts"][:, 0])
  ones = masks_lib.ones(groups)
  dense, _ = kit.apply(model, params, BATCH, ones, policies=policies)
  # The mask did remove something.
  sides = {"v": ["image"], "t": ["text"], "a": ["image", "text"]}[name[0]]
  for side in sides:
    gap = dense[f"{side}_embedding"] - masked[f"{side}_embedding"]
    assert np.max(np.abs(gap)) > 1e-3


@pytest.mark.parametrize("granularity", ["head", "channel"])
def test_a_group_lists_every_array_a_unit_touches(granularity):
  """A removed unit has no influence: its weights may hold anything."""
  model, params = _model(granularity=granularity)
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


def test_no_threshold_and_live_masks_change_nothing():
  model, params = _model()
  masks = masks_lib.ones(families.groups(model))
  policies = {tower: TokenPolicy(theta=0.0) for tower in ("vision", "text")}
  plain, _ = kit.apply(model, params, BATCH)
  output, aux = kit.apply(model, params, BATCH, masks, policies=policies)
  close(output, plain, atol=1e-6)
  # Op by op, where nothing is fused, they are the same bits.
  flat = two_tower.TwoTower(specs.with_encoders(model, scan=False))
  variables = {"params": kit.unrolled(params, model)}
  inputs = jax.tree.map(jnp.asarray, BATCH)
  plain, _ = flat.apply(variables, inputs)
  output, _ = flat.apply(
    variables, inputs, Execution(masks=masks, policies=policies)
  )
  jax.tree.map(np.testing.assert_array_equal, output, plain)
  for tower in ("vision", "text"):
    counts = np.asarray(aux[tower]["counts"])
    assert np.all(counts == counts[:, :1])


def test_scan_equals_unrolled():
  model, params = _model()
  groups = families.groups(model)
  masks = _some_removed(groups, {g.name for g in groups})
  policies = {tower: TokenPolicy(theta=0.7) for tower in ("vision", "text")}
  stacked = kit.apply(model, params, BATCH, masks, policies=policies)
  flat = kit.apply(
    specs.with_encoders(model, scan=False),
    kit.unrolled(params, model),
    BATCH,
    masks,
    policies=policies,
  )
  close(flat, stacked)


@pytest.mark.parametrize("changes", [{"remat": True}, {"unroll": 2}])
def test_options_of_the_stack_change_no_value_and_no_gradient(changes):
  model, params = _model()

  @functools.partial(jax.jit, static_argnums=0, compiler_options=kit.FAST)
  def run(model, params):
    def loss(params):
      output, _ = kit.forward(model, params, BATCH)
      return jnp.sum(
        output["image_embedding"] @ output["text_embedding"].T * 3.0
      )

    return jax.value_and_grad(loss)(params)

  close(run(specs.with_encoders(model, **changes), params), run(model, params))


@pytest.mark.parametrize("scan", [True, False])
def test_remat_keeps_the_taps(scan):
  model, params = _model()
  if not scan:
    params = kit.unrolled(params, model)
    model = specs.with_encoders(model, scan=False)
  masks = masks_lib.ones(families.groups(_model()[0]))
  probes = jax.tree.map(jnp.zeros_like, masks)
  estimator = importance.Estimator(kind="taylor")

  def scores(model):
    def loss(probes):
      output, _ = kit.forward(
        model, params, BATCH, masks, probes, None, estimator
      )
      return jnp.sum(output["image_embedding"] @ output["text_embedding"].T)

    return jax.jit(jax.grad(loss), compiler_options=kit.FAST)(probes)

  plain = scores(model)
  assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(plain))
  close(scores(specs.with_encoders(model, remat=True)), plain)


def test_bfloat16_runs_and_stays_close():
  model, params = _model()
  policies = {tower: TokenPolicy(theta=0.3) for tower in ("vision", "text")}
  half = specs.with_encoders(model, dtype="bfloat16")
  exact, _ = kit.apply(model, params, BATCH)
  output, aux = kit.apply(half, params, BATCH)
  dropping = jax.eval_shape(
    lambda: kit.forward(half, params, BATCH, policies=policies)[0]
  )
  assert jax.tree.map(jnp.shape, dropping) == jax.tree.map(jnp.shape, output)
  for name in ("image_embedding", "text_embedding"):
    assert output[name].dtype == jnp.float32
    similarity = np.sum(np.asarray(exact[name] * output[name]), axis=-1)
    assert np.all(similarity > 0.999)
  assert aux["vision"]["scores"].dtype == jnp.float32
  shapes = families.param_shapes(half)
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {
    jnp.dtype("float32")
  }


@pytest.mark.parametrize(
  ("combine", "readout", "rule", "theta"),
  [
    ("drop", "mean", "mean", 0.8),
    ("merge", "cls", "mean", 0.8),
    ("drop", "end", "mean", 0.8),
    ("merge", "cls", "madtp", 30.0),
    ("merge", "end", "evit", 0.8),
    ("match", "cls", "tome", 2.5),
    ("match", "mean", "crossget", 2.5),
  ],
)
def test_mask_execution_equals_static_at_equal_counts(
  combine, readout, rule, theta
):
  model, params = _model(readout=readout)
  flat = specs.with_encoders(model, scan=False)
  flat_params = kit.unrolled(params, model)
  policies = {
    "vision": TokenPolicy(theta=theta, combine=combine, rule=rule),
    "text": TokenPolicy(theta=1.1 * theta, combine=combine, rule=rule),
  }
  dropped = {tower: 0 for tower in policies}
  for row in (0, 1):
    # Each sample has counts of its own under a threshold.
    inputs = jax.tree.map(lambda x, i=row: x[i : i + 1], BATCH)
    inputs = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), inputs)
    output, aux = kit.apply(model, params, inputs, policies=policies)
    static = {}
    for tower, policy in policies.items():
      counts = np.asarray(aux[tower]["counts"])
      np.testing.assert_array_equal(counts[0], counts[1])
      dropped[tower] += int(counts[0, 0] - counts[0, -1])
      static[tower] = dataclasses.replace(
        policy, theta=0.0, keep=tuple(int(k) for k in counts[0, 1:])
      )
    same, small_aux = kit.apply(flat, flat_params, inputs, policies=static)
    close(same, output)
    for tower in policies:
      np.testing.assert_array_equal(
        small_aux[tower]["counts"], aux[tower]["counts"]
      )
      last = small_aux[tower]["valid"][-1]
      assert last.shape[1] == static[tower].keep[-1]
  assert all(n > 3 for n in dropped.values())


def test_static_counts_need_unrolled_layers():
  model, params = _model()
  policies = {"vision": TokenPolicy(keep=(9, 9)), "text": None}
  with pytest.raises(ValueError, match="unrolled"):
    kit.apply(model, params, BATCH, policies=policies)
  policies = {"vision": TokenPolicy(keep=(9,)), "text": None}
  with pytest.raises(ValueError, match="1 static counts for 2 layers"):
    kit.apply(model, params, BATCH, policies=policies)


@pytest.mark.parametrize(
  ("combine", "readout", "static"),
  [
    ("drop", "mean", False),
    ("merge", "mean", True),
    ("match", "mean", False),
    ("match", "mean", True),
    ("drop", "end", False),
  ]
  + kit.slow_cases(
    ("drop", "mean", True),
    ("merge", "mean", False),
    ("drop", "end", True),
  ),
)
def test_padding_and_batch_composition_change_nothing(combine, readout, static):
  model, params = _model(readout=readout)
  policies = {t: TokenPolicy(theta=0.8, combine=combine) for t in model.towers}
  if static:
    params = kit.unrolled(params, model)
    model = specs.with_encoders(model, scan=False)
    keep = {"vision": (12, 9), "text": (8, 6)}
    policies = {
      tower: TokenPolicy(keep=keep[tower], combine=combine)
      for tower in ("vision", "text")
    }
  output, _ = kit.apply(model, params, BATCH, policies=policies)
  row = 1
  length = int(BATCH["text_mask"][row].sum())
  assert length < kit.LENGTH
  alone = {
    "image": BATCH["image"][row : row + 1],
    "text_ids": BATCH["text_ids"][row : row + 1, :length],
    "text_mask": BATCH["text_mask"][row : row + 1, :length],
  }
  single, _ = kit.apply(model, params, alone, policies=policies)
  for name in ("image_embedding", "text_embedding"):
    close(single[name][0], output[name][row])
  garbage = np.where(BATCH["text_mask"], BATCH["text_ids"], kit.SEP)
  same, _ = kit.apply(
    model, params, {**BATCH, "text_ids": garbage}, policies=policies
  )
  close(same, output)


def test_a_layer_without_live_units_drops_no_token():
  model, params = _model()
  masks = masks_lib.ones(families.groups(model))
  masks["vision"]["attn"] = masks["vision"]["attn"].at[1].set(0.0)
  masks["vision"]["mlp"] = masks["vision"]["mlp"].at[1].set(0.0)
  policies = {tower: TokenPolicy(theta=0.8) for tower in ("vision", "text")}
  _, aux = kit.apply(model, params, BATCH, masks, policies=policies)
  counts = np.asarray(aux["vision"]["counts"])
  np.testing.assert_array_equal(counts[:, 2], counts[:, 1])


def test_a_layer_may_lose_its_whole_mlp():
  model, params = _model()
  masks = masks_lib.ones(families.groups(model))
  for tower in ("vision", "text"):
    masks[tower]["mlp"] = masks[tower]["mlp"].at[1].set(0.0)
  small, small_params = _sliced(model, params, masks)
  assert small.vision.encoder.layers[1] == specs.LayerSpec(
    heads=3, head_width=8, mlp=0
  )
  masked, _ = kit.apply(model, params, BATCH, masks)
  sliced, _ = kit.apply(small, small_params, BATCH)
  close(sliced, masked)


def test_wrong_inputs_are_refused():
  model, params = _model()
  small = {**BATCH, "image": BATCH["image"][:, :16, :16]}
  with pytest.raises(ValueError, match="model wants"):
    kit.apply(model, params, small)
  long = {
    **BATCH,
    "text_ids": np.ones((3, 13), np.int32),
    "text_mask": np.ones((3, 13), bool),
  }
  with pytest.raises(ValueError, match="12 positions"):
    kit.apply(model, params, long)


def test_bytes_are_normalised_by_the_spec():
  model, params = _model()
  mean, std = np.asarray(model.vision.mean), np.asarray(model.vision.std)
  floats = ((BATCH["image"] / 255.0 - mean) / std).astype(np.float32)
  expected, _ = kit.apply(model, params, {**BATCH, "image": floats})
  output, _ = kit.apply(model, params, BATCH)
  close(output, expected)


@pytest.mark.parametrize(
  ("x", "slope", "gradient"),
  [
    (0.3, 2.0, 2.0),
    (0.3, -2.0, -2.0),
    # Beyond a bound descent may lead back, and not on.
    (0.7, 2.0, 2.0),
    (0.7, -2.0, 0.0),
    (0.0, -2.0, -2.0),
    (0.0, 2.0, 0.0),
    (0.5, -2.0, -2.0),
  ],
)
def test_a_temperature_beyond_its_bounds_comes_back(x, slope, gradient):
  bounded = lambda x: slope * two_tower.within(x, 0.1, 0.5)  # noqa: E731
  value, found = jax.value_and_grad(bounded)(jnp.float32(x))
  assert float(value) == pytest.approx(slope * min(max(x, 0.1), 0.5))
  assert float(found) == gradient

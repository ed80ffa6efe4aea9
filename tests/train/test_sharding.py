"""Rules place arrays, and a jitted step agrees on 1, 2, 4 and 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from comp_jax import errors
from comp_jax.core import masks as masks_lib
from comp_jax.models import families
from comp_jax.train import sharding
from tests.train import kit


def _params():
  rng = np.random.default_rng(0)
  return {
    "tower": {
      "kernel": rng.normal(size=(128, 256)).astype(np.float32),
      "bias": rng.normal(size=(256,)).astype(np.float32),
    },
    "out": {"kernel": rng.normal(size=(256, 24)).astype(np.float32)},
  }


def test_mesh_has_one_auto_axis():
  mesh = sharding.make_mesh()
  assert mesh.axis_names == ("data",) and mesh.size == jax.device_count() == 8
  assert mesh.axis_types == (AxisType.Auto,)
  assert sharding.make_mesh(jax.devices()[:2]).size == 2


@pytest.mark.parametrize(
  ("rows", "devices"),
  [(16, 8), (10, 5), (6, 6), (7, 7), (9, 3), (11, 1), (0, 8)],
)
def test_rows_are_split_over_as_many_devices_as_divide_them(rows, devices):
  mesh = sharding.dividing(sharding.make_mesh(jax.devices()[:8]), rows)
  assert mesh.size == devices
  placed = jax.device_put(np.zeros((rows, 2)), sharding.batch_sharding(mesh))
  assert {shard.data.shape[0] for shard in placed.addressable_shards} == {
    rows // devices
  }


def test_first_match_wins_and_unused_rules_are_reported():
  mesh = sharding.make_mesh()
  rules = (
    ("tower/kernel", PartitionSpec(None, "data")),
    ("tower/.*", PartitionSpec()),
    ("kernel", PartitionSpec("data")),  # A whole path is never just this.
    ("out/.*", lambda shape, devices: PartitionSpec("data")),
  )
  placed, unused = sharding.tree_shardings(mesh, _params(), rules)
  assert placed["tower"]["kernel"].spec == PartitionSpec(None, "data")
  assert placed["tower"]["bias"].spec == PartitionSpec()
  assert placed["out"]["kernel"].spec == PartitionSpec("data")
  assert unused == ("kernel",)


def test_unmatched_and_indivisible_arrays_are_all_named():
  rules = (
    ("out/.*", PartitionSpec(None, ("data",))),
    ("tower/bias", PartitionSpec()),
  )
  params = _params()
  params["out"]["kernel"] = params["out"]["kernel"][:, :23]
  with pytest.raises(ValueError, match="no rule") as raised:
    sharding.tree_shardings(sharding.make_mesh(), params, rules)
  assert "tower/kernel" in str(raised.value)
  assert "out/kernel (256, 23)" in str(raised.value)
  assert "tower/bias" not in str(raised.value)


def test_fully_sharded_splits_the_largest_axis_that_fits():
  def split(*shape):
    return sharding.split_largest(shape, 8)

  assert split(128, 256) == PartitionSpec(None, "data")
  assert split(256, 256) == PartitionSpec("data")
  assert split(128, 257) == PartitionSpec("data")
  assert split(127, 257) == PartitionSpec()
  assert split(64, 255) == PartitionSpec()  # Small: 16,320 elements.
  assert split(64, 256) == PartitionSpec(None, "data")
  assert split() == PartitionSpec()


@pytest.fixture(scope="module")
def scored():
  """A training step that scores, its inputs, and its outcome without a mesh."""
  stage = kit.make_stage(score="taylor")
  objective, groups = stage.objective, stage.prunable.groups
  thetas = {"vision": jnp.float32(0.05), "text": jnp.float32(0.1)}
  masks = jax.tree.map(
    lambda m: m * jnp.linspace(1.0, 0.5, m.shape[-1])[None],
    masks_lib.ones(groups),
  )

  def step(params, batches):
    batch = jax.tree.map(lambda x: x[0], batches)
    execution = objective.execution(masks, thetas, stage.recipe.estimator)
    return objective.gradients(params, None, batch, execution)[1:]

  params = families.initial_params(kit.spec(), 0)
  batches = next(kit.batches(0))
  return step, params, batches, jax.jit(step)(params, batches)


@pytest.mark.parametrize(
  ("devices", "rules"),
  [
    (1, sharding.FULLY_SHARDED),
    (2, sharding.REPLICATED),
    (2, sharding.FULLY_SHARDED),
    (4, sharding.FULLY_SHARDED),
    (8, sharding.REPLICATED),
  ],
)
def test_loss_gradients_and_scores_agree_on_any_number_of_devices(
  monkeypatch, scored, devices, rules
):
  """Of our own model, its units and tokens partly gone."""
  monkeypatch.setattr(sharding, "_SMALL", 0)  # Or nothing here were split.
  step, params, batches, expected = scored
  mesh = sharding.make_mesh(jax.devices()[:devices])
  shapes = jax.eval_shape(lambda: params)
  placed, unused = sharding.tree_shardings(mesh, shapes, rules)
  assert unused == ()
  run = jax.jit(
    step,
    in_shardings=(placed, sharding.batch_sharding(mesh, leading_axes=1)),
    out_shardings=(None, placed, None),
  )
  found = run(params, batches)
  kernel = found[1]["vision"]["patch_embed"]["kernel"]
  assert len(kernel.sharding.device_set) == devices
  parts = devices if rules is sharding.FULLY_SHARDED else 1
  part = kernel.sharding.shard_shape(kernel.shape)
  assert np.prod(part) * parts == kernel.size
  for got, want in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    # Of an array's largest element: a sum of large terms can be next to 0.
    scale = max(np.max(np.abs(want)), 1e-1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * scale)
  assert all(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(found[2]))


@pytest.mark.parametrize("rules", [sharding.REPLICATED, sharding.FULLY_SHARDED])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_a_step_agrees_on_any_number_of_devices(rules, devices):
  params = _params()
  batch = np.random.default_rng(1).normal(size=(2, 16, 128)).astype(np.float32)

  def step(params, batch):
    def loss(params):
      hidden = batch @ params["tower"]["kernel"]
      hidden = jnp.tanh(hidden + params["tower"]["bias"][None, None])
      return jnp.mean((hidden @ params["out"]["kernel"]) ** 2)

    grads = jax.grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

  expected = jax.jit(step)(params, batch)
  mesh = sharding.make_mesh(jax.devices()[:devices])
  shapes = jax.eval_shape(lambda: params)
  placed, unused = sharding.tree_shardings(mesh, shapes, rules)
  assert unused == ()
  jitted = jax.jit(
    step,
    in_shardings=(placed, sharding.batch_sharding(mesh, leading_axes=1)),
    out_shardings=placed,
  )
  result = jitted(params, batch)
  kernel = result["tower"]["kernel"]
  assert len(kernel.sharding.device_set) == devices
  if rules is sharding.FULLY_SHARDED:
    assert kernel.sharding.shard_shape(kernel.shape) == (128, 256 // devices)
  for got, want in zip(
    jax.tree.leaves(result), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_batch_sharding_splits_the_batch_axis():
  mesh = sharding.make_mesh()
  assert sharding.batch_sharding(mesh).shard_shape((16, 3)) == (2, 3)
  stacked = sharding.batch_sharding(mesh, leading_axes=1)
  assert stacked.shard_shape((3, 16, 5)) == (3, 2, 5)
  assert sharding.replicated(mesh).shard_shape((3, 5)) == (3, 5)


def test_check_batch_names_the_nearest_sizes():
  mesh = sharding.make_mesh()
  sharding.check_batch(16, mesh)
  sharding.check_batch(32, mesh, micro_batches=2)
  with pytest.raises(errors.UserError, match="20 .* 8 devices; use 16 or 24"):
    sharding.check_batch(20, mesh)
  with pytest.raises(errors.UserError, match="5 .* 8 devices; use 8$"):
    sharding.check_batch(5, mesh)
  with pytest.raises(errors.UserError, match="use 8$"):
    sharding.check_batch(0, mesh)
  with pytest.raises(errors.UserError, match="2 micro-batches; use 16 or 32"):
    sharding.check_batch(24, mesh, micro_batches=2)

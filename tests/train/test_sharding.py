"""Rules place arrays, and a jitted step agrees on 1, 2, 4 and 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from comp_jax import errors
from comp_jax.train import sharding


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

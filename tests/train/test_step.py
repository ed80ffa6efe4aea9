"""One training step: in microbatches, and in bfloat16."""

import dataclasses
import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import masks as masks_lib
from comp_jax.models import families
from tests.train import kit

THETAS = {"vision": 0.05, "text": 0.1}


@functools.cache
def objective_of(score, **options):
  """The kit's objective, and what to gather; parts of it are gone."""
  stage = kit.make_stage(score=score, model=kit.spec(**options))
  masks = jax.tree.map(
    lambda m: m * jnp.linspace(1.0, 0.5, m.shape[-1])[None],
    masks_lib.ones(stage.prunable.groups),
  )
  thetas = jax.tree.map(jnp.float32, THETAS)
  execution = stage.objective.execution(masks, thetas, stage.recipe.estimator)
  return stage.objective, execution


def gradients(objective, execution, batch):
  """Loss, gradients and statistics."""
  params = families.initial_params(kit.spec(), 0)
  run = jax.jit(lambda b: objective.gradients(params, None, b, execution)[1:])
  return run(batch)


def batch_of():
  return jax.tree.map(lambda x: x[0], next(kit.batches(0)))


@pytest.mark.parametrize("score", ["taylor", "wanda"])
def test_microbatches_give_the_mean_of_their_parts(score):
  """Each part has negatives of its own; its scores count as much."""
  objective, execution = objective_of(score)
  batch = batch_of()
  halves = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), batch)
  first, second = (
    gradients(objective, execution, jax.tree.map(lambda x, i=i: x[i], halves))
    for i in range(2)
  )
  found = gradients(
    dataclasses.replace(objective, microbatches=2), execution, batch
  )
  mean = jax.tree.map(lambda a, b: np.asarray(a + b) / 2, first, second)
  for got, want in zip(
    jax.tree.leaves(found), jax.tree.leaves(mean), strict=True
  ):
    # Of an array's largest element: a sum of large terms can be next to 0.
    scale = max(np.max(np.abs(want)), 1e-1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * scale)
  assert all(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(found[2]))


@pytest.mark.parametrize("score", ["taylor", "wanda"])
def test_scores_of_bfloat16_are_float32_and_near_those_of_float32(score):
  batch = batch_of()
  exact = gradients(*objective_of(score), batch)
  half = gradients(*objective_of(score, dtype="bfloat16"), batch)
  assert half[0] != exact[0]
  np.testing.assert_allclose(half[0], exact[0], rtol=1e-2)
  assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype("float32")}
  for scores in zip(*map(jax.tree.leaves, (half[2], exact[2])), strict=True):
    assert _distance(*scores) < 0.05
  # All weights together: some have no slope but that of rounding.
  weights = (jax.flatten_util.ravel_pytree(x[1])[0] for x in (half, exact))
  assert _distance(*weights) < 0.05


def _distance(ours, theirs):
  """Relative, of two arrays."""
  return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)

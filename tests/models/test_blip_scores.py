"""What text towers that look at others gather for CIM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import groups as groups_lib
from comp_jax.core import importance
from comp_jax.core import masks as masks_lib
from comp_jax.core.execution import Execution
from comp_jax.models import blip, families, specs
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


def _of_real_tokens(logits):
  """A scalar of the logits that padding has no part in."""
  size = logits.shape[-1]
  total = jnp.einsum("...v,v->...", logits, jnp.arange(1.0, size + 1) / size)
  if logits.ndim == 2:
    return jnp.sum(total)
  real = BATCH["text_mask"] if logits.ndim == 3 else BATCH["answer_mask"]
  return jnp.sum(jnp.where(real, total, 0.0))


@pytest.mark.parametrize(
  ("name", "granularity"),
  [("cross", "channel"), ("vqa", "head")]
  + kit.slow_cases(("cross", "head"), ("caption", "head")),
)
def test_taylor_without_cip_is_minus_the_gradient_of_the_mask(
  name, granularity
):
  model = specs.with_encoders(MODELS[name], granularity=granularity)
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
      model, PARAMS_OF[name], BATCH, masks, probes, None, estimator
    )
    return _of_real_tokens(output["logits"])

  plain = jax.jit(jax.grad(lambda m: loss(m, None, None)))(masks)
  probes = jax.tree.map(jnp.zeros_like, masks)
  scores = jax.jit(jax.grad(lambda p: loss(masks, p, estimator)))(probes)
  close(scores, jax.tree.map(jnp.negative, plain), atol=1e-3)
  for group in groups:
    assert np.any(np.asarray(groups_lib.leaf(scores, group.name)) != 0)


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
    Execution(
      masks=masks,
      probes=probes,
      estimator=importance.Estimator(kind="taylor"),
    ).of("vision"),
    method="look",
  )
  # CLS weighs 1, the patches share 1 by their score in the last layer.
  np.testing.assert_allclose(source.weights[:, 0], 1.0)
  np.testing.assert_allclose(
    source.weights[:, 1:], aux["scores"][-1][:, 1:], atol=1e-6
  )


@every_model
def test_wanda_gathers_a_moment_for_every_group(name):
  estimator = importance.Estimator(kind="wanda")
  model = MODELS[name]
  groups = families.groups(model)
  masks = masks_lib.ones(groups)
  _, aux = kit.apply(model, PARAMS_OF[name], BATCH, masks, estimator=estimator)
  for group in groups:
    tower, block = group.name.split("/")
    moment = np.asarray(aux[tower]["moments"][block])
    assert moment.shape == (group.layers, *group.rows)
    assert np.all(moment > 0)


@pytest.mark.parametrize("name", ["caption", "vqa"])
def test_a_decoders_valid_tokens_weigh_alike_in_cip(name):
  """With and without CIP its statistics are the same bits: weight 1 each."""
  flat = specs.with_encoders(MODELS[name], scan=False)
  params = kit.unrolled(PARAMS_OF[name], flat)
  masks = masks_lib.ones(families.groups(flat))
  moments = [
    kit.forward(
      flat,
      params,
      BATCH,
      masks,
      estimator=importance.Estimator(kind="wanda", cip=cip),
    )[1][flat.towers[-1]]["moments"]
    for cip in (True, False)
  ]
  close(*moments, atol=0)

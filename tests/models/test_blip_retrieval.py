"""BLIP's retrieval model: two readings of a text, and hard negatives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import importance
from comp_jax.core import masks as masks_lib
from comp_jax.core.execution import Execution
from comp_jax.core.tokens import TokenPolicy
from comp_jax.models import blip_retrieval, families, specs, towers
from tests.models import model_kit as kit

MODEL = kit.spec(readout="joint")
PARAMS = kit.params(MODEL)
# The second and the third pair show the same thing.
CONCEPT = np.array([4, 7, 7], np.int32)
BATCH = {
  **kit.batch(),
  "concept": CONCEPT,
  "key": jax.random.split(jax.random.key(0), 3),
}


def close(actual, desired, atol=1e-5):
  np.testing.assert_allclose(actual, desired, rtol=0, atol=atol)


def inputs(batch):
  return {name: batch[name] for name in towers.INPUTS}


def test_negatives_are_judged_as_pairs_of_their_own():
  output, aux = kit.apply(MODEL, PARAMS, BATCH)
  plain, alone = kit.apply(MODEL, PARAMS, inputs(BATCH))
  for name, value in plain.items():
    close(output[name], value)
  jax.tree.map(close, aux, alone)
  similarity = output["logit_scale"] * (
    output["image_embedding"] @ output["text_embedding"].T
  )
  others, has = blip_retrieval.hard_negatives(
    similarity, jnp.asarray(CONCEPT), BATCH["key"]
  )
  assert np.all(has)
  for half, swapped in enumerate(
    (
      {"image": BATCH["image"][np.asarray(others[0])]},
      {
        name: BATCH[name][np.asarray(others[1])]
        for name in ("text_ids", "text_mask")
      },
    )
  ):
    expected, _ = kit.apply(MODEL, PARAMS, {**inputs(BATCH), **swapped})
    close(output["negative_logits"][:, half], expected["logits"])


def test_negatives_follow_the_softmax_and_are_of_another_concept():
  logits = jnp.array([[1.0, 0.5, -1.0], [0.0, 2.0, 1.0], [0.5, 0.0, 0.0]])
  concept = jnp.array([0, 1, 2])
  draw = jax.jit(
    jax.vmap(
      lambda key: blip_retrieval.hard_negatives(
        logits, concept, jax.random.split(key, 3)
      )[0]
    )
  )
  images, texts = draw(jax.random.split(jax.random.key(1), 4000))
  for drawn, table in ((texts, logits), (images, logits.T)):
    weights = np.array(jax.nn.softmax(table, axis=1)) * (1 - np.eye(3))
    weights /= weights.sum(axis=1, keepdims=True)
    found = (np.asarray(drawn)[..., None] == np.arange(3)).mean(axis=0)
    close(found, weights, atol=0.03)
  hardest, has = blip_retrieval.hard_negatives(
    logits, jnp.array([5, 5, 6]), None
  )
  np.testing.assert_array_equal(hardest[1], [2, 2, 0])
  np.testing.assert_array_equal(hardest[0], [2, 2, 1])
  assert np.all(has)
  _, has = blip_retrieval.hard_negatives(logits, jnp.zeros(3, int), None)
  assert not np.any(has)


def test_each_reading_has_its_own_counts():
  policies = {"vision": TokenPolicy(theta=0.8), "text": TokenPolicy(theta=0.9)}
  output, aux = kit.apply(MODEL, PARAMS, BATCH, policies=policies)
  counts = np.asarray(aux["text"]["counts"])
  assert counts.shape == (6, 3)
  np.testing.assert_array_equal(
    counts[:, 0], np.repeat(BATCH["text_mask"].sum(axis=1), 2)
  )
  assert np.any(counts[0::2] != counts[1::2])
  # Static counts of either reading give that reading's output.
  flat, params = towers.unrolled(MODEL, jax.tree.map(np.asarray, PARAMS))
  one = jax.tree.map(lambda x: x[:1], inputs(BATCH))
  output, aux = kit.apply(MODEL, PARAMS, one, policies=policies)
  keep = {t: np.asarray(aux[t]["counts"]) for t in aux}
  for reading, name in enumerate(("text_embedding", "logits")):
    static = {
      "vision": TokenPolicy(keep=tuple(keep["vision"][0, 1:].tolist())),
      "text": TokenPolicy(keep=tuple(keep["text"][reading, 1:].tolist())),
    }
    same, _ = kit.apply(flat, params, one, policies=static)
    close(same[name], output[name])
    close(same["image_embedding"], output["image_embedding"])


def test_a_text_alone_begins_with_cls():
  """[ENC] takes the first place where the text looks at an image."""
  text = dataclasses.replace(MODEL.text, enc_id=kit.VOCAB - 1)
  model = dataclasses.replace(MODEL, text=text)
  ids = np.array(BATCH["text_ids"])
  ids[:, 0] = kit.VOCAB - 1
  enc, _ = kit.apply(MODEL, PARAMS, {**inputs(BATCH), "text_ids": ids})
  cls, _ = kit.apply(MODEL, PARAMS, inputs(BATCH))
  output, _ = kit.apply(model, PARAMS, inputs(BATCH))
  close(output["logits"], enc["logits"], atol=1e-6)
  close(output["text_embedding"], cls["text_embedding"], atol=1e-6)


@pytest.mark.parametrize("granularity", ["head", "channel"])
def test_taylor_without_cip_is_minus_the_gradient_of_the_mask(granularity):
  """Of all passes: both readings, and the negatives."""
  model = specs.with_encoders(MODEL, granularity=granularity)
  rng = np.random.default_rng(2)
  masks = masks_lib.build(
    families.groups(model),
    lambda g: jnp.asarray(
      rng.uniform(0.5, 1.0, (g.layers, g.units)).astype(np.float32)
    ),
  )
  estimator = importance.Estimator(kind="taylor", cip=False)

  def loss(masks, probes, estimator):
    output, _ = kit.forward(
      model, PARAMS, BATCH, masks, probes, None, estimator
    )
    similarity = output["image_embedding"] @ output["text_embedding"].T
    sign = jnp.array([1.0, -2.0])
    return (
      jnp.sum(similarity * jnp.arange(9.0).reshape(3, 3))
      + jnp.sum(output["logits"] * sign[None])
      - jnp.sum(output["negative_logits"] * sign[None, None])
    )

  plain = jax.jit(jax.grad(lambda m: loss(m, None, None)))(masks)
  probes = jax.tree.map(jnp.zeros_like, masks)
  scores = jax.jit(jax.grad(lambda p: loss(masks, p, estimator)))(probes)
  jax.tree.map(lambda a, b: close(a, -b, atol=1e-3), scores, plain)


def test_wanda_takes_the_mean_over_both_readings():
  estimator = importance.Estimator(kind="wanda")
  masks = masks_lib.ones(families.groups(MODEL))
  text = kit.apply(MODEL, PARAMS, inputs(BATCH), masks, estimator=estimator)[1]
  moments = text["text"]["moments"]
  module = families.module(MODEL)
  variables = {"params": jax.tree.map(jnp.asarray, PARAMS)}
  texts = jnp.asarray(BATCH["text_ids"]), jnp.asarray(BATCH["text_mask"])
  read = Execution(masks=masks, estimator=estimator).of("text")
  _, alone = module.apply(variables, *texts, read, method="encode_text")
  source, _ = module.apply(
    variables, jnp.asarray(BATCH["image"]), method="look"
  )
  _, looking = module.apply(variables, source, *texts, read, method="read")
  close(moments["cross"], looking["moments"]["cross"])
  for name in ("attn", "mlp"):
    mean = (alone["moments"][name] + looking["moments"][name]) / 2
    close(moments[name], mean, atol=1e-4)
    assert np.max(np.abs(moments[name] - alone["moments"][name])) > 1e-3

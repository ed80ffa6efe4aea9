"""Beam search with cached keys and values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import compact
from comp_jax.core.execution import Execution
from comp_jax.core.tokens import TokenPolicy
from comp_jax.models import families, generation, towers
from tests.models import model_kit as kit
from tests.models import test_blip

PROMPT = (2, 7)
BEAM = generation.Beam(width=3, max_length=8, min_length=4)


@functools.partial(
  jax.jit, static_argnames=("model", "beam"), compiler_options=kit.FAST
)
def _write(model, params, batch, masks, policies, beam=BEAM):
  prompt = jnp.tile(jnp.array([PROMPT]), (len(batch["image"]), 1))
  execution = Execution(masks=masks, policies=policies)
  return generation.write(model, params, batch, prompt, beam, execution)


@functools.partial(jax.jit, static_argnames="model", compiler_options=kit.FAST)
def _all_logits(model, params, batch, ids, masks, policies):
  module, variables = families.module(model), {"params": params}
  execution = Execution(masks=masks, policies=policies)
  source = module.apply(variables, batch, execution, method="read")
  mask = jnp.ones(ids.shape, bool)
  return module.apply(variables, source, ids, mask, execution, method="write")


def _reference(model, params, batch, masks, policies, beam=BEAM):
  """One example: texts grow one by one, each pass reads all of them anew."""
  decoder = getattr(model, model.towers[-1])

  def log_p(text):
    padded = np.zeros((1, beam.max_length), np.int32)
    padded[0, : len(text)] = text
    logits = _all_logits(
      model, params, batch, jnp.asarray(padded), masks, policies
    )
    row = np.asarray(logits, np.float64)[0, len(text) - 1]
    return row - row.max() - np.log(np.sum(np.exp(row - row.max())))

  running, finished = [(0.0, PROMPT)], []
  for length in range(len(PROMPT), beam.max_length):
    written = length + 1 - len(PROMPT)
    grown = []
    for score, text in running:
      for token, value in enumerate(log_p(text)):
        if token == decoder.sep_id and length < beam.min_length:
          continue
        grown.append((score + value, (*text, token)))
    grown = sorted(grown, reverse=True)[: 2 * beam.width]
    ends = lambda text: (  # noqa: E731
      text[-1] == decoder.sep_id or len(text) == beam.max_length
    )
    finished += [
      (score / written, text)
      for score, text in grown[: beam.width]
      if ends(text)
    ]
    finished = sorted(finished, reverse=True)[: beam.width]
    running = [x for x in grown if not ends(x[1])][: beam.width]
    full = len(finished) == beam.width
    if not running or (full and running[0][0] / written <= finished[-1][0]):
      break
  score, text = finished[0]
  return list(text) + [0] * (beam.max_length - len(text)), score


@pytest.mark.parametrize("name", ["caption", "vqa"])
def test_it_finds_what_a_search_without_a_cache_finds(name):
  """Masked and compact, with dropped source tokens, scanned and unrolled."""
  model = test_blip.MODELS[name]
  params = jax.tree.map(jnp.asarray, test_blip.PARAMS_OF[name])
  batch = jax.tree.map(jnp.asarray, test_blip.BATCH)
  groups = families.groups(model)
  masks = test_blip._some_removed(groups, {g.name for g in groups})
  policies = {t: TokenPolicy(theta=0.6) for t in test_blip.DROP[name]}
  ids, scores = _write(model, params, batch, masks, policies)
  assert not np.array_equal(
    ids, _write(model, params, batch, None, policies)[0]
  )
  for i in range(len(ids)):
    one = jax.tree.map(lambda x, i=i: x[i : i + 1], batch)
    text, score = _reference(model, params, one, masks, policies)
    assert ids[i].tolist() == text
    np.testing.assert_allclose(scores[i], score, rtol=0, atol=1e-4)
  small = towers.compacted(model, compact.units_left(groups, masks))
  sliced = compact.slice_params(params, groups, masks)
  same, same_scores = _write(small, sliced, batch, None, policies)
  np.testing.assert_array_equal(same, ids)
  np.testing.assert_allclose(same_scores, scores, rtol=0, atol=1e-5)


def test_a_text_ends_no_sooner_than_it_may():
  """A head that always says [SEP] writes it as soon as `min_length` lets it."""
  model = test_blip.MODELS["caption"]
  params = jax.tree.map(jnp.asarray, test_blip.PARAMS_OF["caption"])
  bias = params["text"]["output_bias"].at[kit.SEP].add(50.0)
  params = {**params, "text": {**params["text"], "output_bias": bias}}
  batch = jax.tree.map(jnp.asarray, test_blip.BATCH)
  ids, _ = _write(model, params, batch, None, None)
  assert np.all(np.asarray(ids)[:, BEAM.min_length] == kit.SEP)
  assert np.all(np.asarray(ids)[:, BEAM.min_length + 1 :] == 0)
  assert np.all(np.asarray(ids)[:, :2] == PROMPT)

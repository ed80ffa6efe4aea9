"""A model that diverged is refused, whatever its task counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core.execution import DENSE
from comp_jax.models import families
from comp_jax.tasks import caption_score
from comp_jax.train import (
  checkpoints,
  finite,
  fit,
  metrics,
  preemption,
  prepare,
  setup,
  sharding,
)
from tests.train import kit, test_decoder_runs, test_five_modes

data_dir = test_decoder_runs.data_dir
questions = test_decoder_runs.questions
captions = test_decoder_runs.captions


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  data_dir = test_five_modes.data_dir.__wrapped__(tmp_path_factory)
  return test_five_modes.config.__wrapped__(data_dir, tmp_path_factory)


def test_keys_and_whole_numbers_are_finite():
  sound = {"key": jax.random.key(0), "ids": jnp.arange(3), "w": jnp.ones(2)}
  assert finite.everywhere(sound)
  for bad in (np.nan, np.inf):
    assert not finite.everywhere({**sound, "w": jnp.array([1.0, bad])})


@pytest.mark.parametrize(
  "field", ["params", "statistics", "strategy", "metric", "memory"]
)
def test_a_search_state_is_asked_for_all_that_the_next_stage_reads(field):
  stage = kit.make_stage("uniform")
  state = dataclasses.replace(kit.initial(stage), memory=jnp.ones(3))
  assert finite.everywhere(state)

  def spoil(leaf):
    floats = jnp.issubdtype(leaf.dtype, jnp.inexact)
    return leaf * jnp.inf if floats else leaf

  spoilt = jax.tree.map(spoil, getattr(state, field))
  assert not finite.everywhere(dataclasses.replace(state, **{field: spoilt}))


def test_weights_that_the_last_step_spoilt_are_not_saved(tmp_path):
  stage = kit.make_stage()

  def single(start):
    for batch in kit.batches(start):
      yield {name: array[:1] for name, array in batch.items()}

  told = r"train: .* after step 0 \(params/logit_scale and .* other arrays\);"
  with checkpoints.Checkpoints(tmp_path) as saved:
    with pytest.raises(finite.NotFinite, match=told):
      fit.fit(
        stage.objective,
        families.initial_params(kit.spec(), 0),
        {},
        DENSE,
        fit.Schedule(steps=1, chunk=1, learning_rate=np.inf),
        single,
        mesh=sharding.make_mesh(jax.devices()[:1]),
        rules=sharding.REPLICATED,
        checkpoints=saved,
        writer=lambda first: metrics.MetricWriter(tmp_path, first),
        watch=preemption.Watch(),
        what="train",
      )
    assert not saved.steps()


@pytest.mark.parametrize("kind", ["pairs", "captions", "written", "ranked"])
def test_a_diverged_model_is_not_evaluated(request, monkeypatch, kind):
  monkeypatch.setattr(caption_score, "scorers", lambda: None)
  fixture = kind if kind in ("pairs", "captions") else "questions"
  c = request.getfixturevalue(fixture).copy_and_resolve_references()
  c.task.rank = 4 * (kind == "ranked")
  job = prepare.prepare(c)
  broken = jax.tree.map(lambda x: x * np.nan, job.dense.params)
  evaluate = setup.Evaluator(job.task, job.spec, job.mesh)
  with pytest.raises(finite.NotFinite, match="on split val are not finite"):
    evaluate(c, job.data, broken)

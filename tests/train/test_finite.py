"""A model that diverged is refused, whatever its task counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.tasks import caption_score
from comp_jax.train import finite, prepare, setup
from tests.train import test_decoder_runs, test_five_modes

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
    evaluate(c, job.data, broken, None, None)

"""BLIP's retrieval pruned from data to re-ranked recalls."""

import jax
import numpy as np
import pytest

import comp_jax
from comp_jax import errors
from comp_jax.interop import store
from comp_jax.models import families, specs
from comp_jax.tasks import outcomes
from comp_jax.train import examples, prepare, pruning
from tests.train import test_five_modes

data_dir = test_five_modes.data_dir


@pytest.fixture(scope="module")
def config(data_dir, tmp_path_factory):
  """The five-mode run, its model with a joint space, its photos alone."""
  c = test_five_modes.config.__wrapped__(data_dir, tmp_path_factory)
  loaded = store.load(c.checkpoint)
  spec = specs.RetrievalSpec(
    vision=loaded.spec.vision, text=loaded.spec.text, joint_width=8
  )
  c.checkpoint = str(tmp_path_factory.mktemp("joint") / "model")
  store.save(
    c.checkpoint,
    params=families.initial_params(spec, 0),
    spec=spec,
    policies={},
    tokenizer_json=loaded.tokenizer_json,
    recipe={"name": "random"},
  )
  c.data.name = "flickr8k"
  c.data.report_splits = ("dev",)
  c.task.queue, c.task.rerank = 16, 3
  c.evaluate.rows = ("dense", "finetuned")
  return c


@pytest.mark.slow
def test_all_five_modes_prune_and_the_small_model_retrieves(config, tmp_path):
  report, _ = pruning.run(config, tmp_path)
  assert {row["mode"] for row in report["stages"]} >= {
    "vision_params",
    "language_params",
    "cross_params",
    "vision_tokens",
    "language_tokens",
  }
  assert report["compilations"]["stage_step"] == 1
  assert 0.99 * report["macs"]["target"] <= report["macs"]["final"]
  assert report["macs"]["final"] <= report["macs"]["target"]
  for row in ("dense", "finetuned"):
    found = report["metrics"][row]["dev"]
    assert set(found) == {
      f"{way}_r{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)
    }
  ranks = examples.read(tmp_path, "dev")
  assert outcomes.means(found, ranks) == found
  loaded = comp_jax.load(tmp_path / "model")
  assert isinstance(loaded.spec, specs.RetrievalSpec)
  images = np.zeros((2, 16, 16, 3), np.uint8)
  ids = np.full((3, 12), 5, np.int32)
  logits = loaded.logits(images, ids, np.ones((3, 12), bool))
  assert np.all(np.isfinite(jax.device_get(logits)))
  assert logits.shape == (2, 3)


def test_a_queue_of_broken_batches_is_refused(config):
  other = config.copy_and_resolve_references()
  other.task.queue = 20
  with pytest.raises(errors.UserError, match="prune.batch_size.* 16 or 24"):
    prepare.prepare(other)

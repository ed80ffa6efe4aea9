"""Metrics from the outcomes of single examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.tasks import matching, nlvr, outcomes, retrieval


def test_a_recall_is_how_often_a_rank_is_below_k():
  examples = {"t2i_rank": np.array([[0, 7], [4, 12], [1, 5]], np.int32)}
  found = outcomes.values("t2i_r5", examples)
  # The texts of an image are one example.
  np.testing.assert_array_equal(found, [0.5, 0.5, 0.5])
  assert outcomes.means(["t2i_r1", "t2i_r10"], examples) == {
    "t2i_r1": pytest.approx(1 / 6),
    "t2i_r10": pytest.approx(5 / 6),
  }


def test_what_is_no_mean_over_the_examples_has_no_values():
  examples = {"accuracy": np.array([True, False]), "score": np.ones(2)}
  assert outcomes.values("auc", examples) is None
  assert outcomes.values("t2i_r5", examples) is None
  assert outcomes.values("accuracy", {}) is None
  assert outcomes.means(["accuracy"], examples) == {"accuracy": 0.5}


def test_retrieval_ranks_every_query_without_the_padding():
  """Three images with two texts each, in batches of two."""
  images = np.eye(4, dtype=np.float32)[[0, 1, 2, 2]]
  texts = np.eye(4, dtype=np.float32)[[[0, 1], [1, 1], [2, 3], [2, 3]]]
  concept = np.array([5, 6, 7, -1], np.int32)
  mask = np.array([True, True, True, False])
  batches = [
    {"rows": rows, "concept": concept[rows], "_mask": mask[rows]}
    for rows in np.arange(4).reshape(2, 2)
  ]
  found = retrieval.evaluate(
    lambda batch: (images[batch["rows"]], texts[batch["rows"]]), batches
  )
  # The second text of image 0 is that of image 1; that of image 2 is like no
  # image, and ties count against it.
  np.testing.assert_array_equal(
    found.examples["t2i_rank"], [[0, 2], [0, 0], [0, 2]]
  )
  np.testing.assert_array_equal(found.examples["i2t_rank"], [0, 1, 0])
  assert list(found.metrics) == list(retrieval.RECALLS)
  assert found.metrics["t2i_r1"] == pytest.approx(4 / 6)
  assert found.metrics["i2t_r1"] == pytest.approx(2 / 3)
  assert found.metrics["t2i_r5"] == 1.0


def test_pairs_are_judged_one_by_one():
  logits = jnp.array([[0.0, 1.0], [2.0, 0.0], [0.0, 3.0], [0.0, 9.0]])
  batches = [
    {
      "label": np.array([1, 1, 0, 0]),
      "_mask": np.array([True, True, True, False]),
    }
  ]
  found = matching.evaluate(lambda batch: logits, batches)
  assert found.examples["accuracy"].tolist() == [True, False, False]
  assert found.examples["score"].tolist() == [1.0, -2.0, 3.0]
  assert found.examples["label"].tolist() == [True, True, False]
  assert found.metrics == {"accuracy": pytest.approx(1 / 3), "auc": 0.0}
  alone = nlvr.evaluate(lambda batch: logits, batches)
  assert alone.metrics == {"accuracy": found.metrics["accuracy"]}
  assert alone.examples["accuracy"].tolist() == [True, False, False]


def test_nan_finds_nothing():
  """More rows than k: counted as ahead or not, NaN must not be found."""
  eye = np.eye(12, dtype=np.float32)
  matches = np.eye(12, dtype=bool)
  batch = {"concept": jnp.arange(12)}
  for broken in (eye * np.nan, np.where(eye > 0, np.nan, eye)):
    ranks = retrieval.best_ranks(broken, matches)
    assert ranks.min() == np.iinfo(np.int32).max
    output = {"image_embedding": eye, "text_embedding": broken}
    assert retrieval.recall_at_10(jax.tree.map(jnp.asarray, output), batch) == 0
  # A sound match among candidates that are NaN is behind all of them.
  broken = np.where(eye > 0, eye, np.nan)
  np.testing.assert_array_equal(retrieval.best_ranks(broken, matches), 11)

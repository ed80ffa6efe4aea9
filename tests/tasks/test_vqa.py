"""Question answering and captioning: losses, ranking, the official accuracy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from comp_jax.core.execution import Execution
from comp_jax.core.tokens import TokenPolicy
from comp_jax.data import pipelines, tokenizers
from comp_jax.tasks import caption, caption_score, task, vqa, vqa_score
from tests.models import model_kit as kit

MODEL = kit.spec(readout="vqa")
PARAMS = jax.tree.map(jnp.asarray, kit.params(MODEL))
BATCH = jax.tree.map(jnp.asarray, {**kit.batch(), **kit.answers()})


def _cross_entropies(logits, ids, mask):
  """Each predicted token's loss with smoothing 0.1; 0 for padding."""
  logits = np.asarray(logits, np.float64)[..., :-1, :]
  log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
  target = 0.9 * np.eye(logits.shape[-1])[ids[..., 1:]]
  target += 0.1 / logits.shape[-1]
  return -np.sum(target * log_p, axis=-1) * mask[..., 1:]


def _random_logits(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_the_caption_loss_is_the_mean_over_the_words_after_the_prompt():
  rng = np.random.default_rng(1)
  ids, mask = kit.texts(rng, 4)
  logits = _random_logits(*ids.shape, kit.VOCAB)
  each = _cross_entropies(logits, ids, mask)
  # Of [DEC] a picture of, nothing is predicted.
  real = mask[:, 1:] & (np.arange(1, ids.shape[1]) >= 4)
  output = {"logits": jnp.asarray(logits)}
  batch = {"text_ids": jnp.asarray(ids), "text_mask": jnp.asarray(mask)}
  np.testing.assert_allclose(
    caption.loss(output, batch), each[real].mean(), rtol=1e-5
  )


def test_the_vqa_loss_weighs_answers_and_is_divided_by_the_images():
  answers = kit.answers(b=3, a=2)
  ids, mask = answers["answer_ids"], answers["answer_mask"]
  weight = np.float32([[0.6, 0.4], [1.0, 0.2], [0.9, 0.0]])
  logits = _random_logits(*ids.shape, kit.VOCAB)
  each = _cross_entropies(logits, ids, mask)
  expected = np.sum(weight * each.sum(axis=-1)) / 3
  batch = jax.tree.map(jnp.asarray, {**answers, "answer_weight": weight})
  value = vqa.loss({"logits": jnp.asarray(logits)}, batch)
  np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_rank_compares_the_best_first_tokens_whole():
  """Against a forward pass over every answer to every question."""
  rng = np.random.default_rng(4)
  ids, mask = kit.texts(rng, 9, n=5)
  # Several answers begin alike: only their whole loss tells them apart.
  ids[:, 1] = 5 + np.arange(9) % 4
  policies = {t: TokenPolicy(theta=0.6) for t in ("vision", "text")}
  every = {
    "answer_ids": jnp.tile(jnp.asarray(ids)[None], (3, 1, 1)),
    "answer_mask": jnp.tile(jnp.asarray(mask)[None], (3, 1, 1)),
  }
  output, _ = kit.apply(MODEL, PARAMS, {**BATCH, **every}, policies=policies)
  losses = _cross_entropies(output["logits"], ids[None], mask[None]).sum(-1)
  first = np.asarray(output["logits"])[:, 0, 0][:, ids[:, 1]]
  run = jax.jit(functools.partial(vqa.rank, MODEL), static_argnames="best")
  answers = jnp.asarray(ids), jnp.asarray(mask)
  execution = Execution(policies=policies)
  for best in (4, 128):
    found, loss = run(PARAMS, BATCH, answers, best=best, execution=execution)
    for i in range(3):
      chosen = np.argsort(-first[i], kind="stable")[:best]
      assert found[i] == chosen[np.argmin(losses[i][chosen])]
      np.testing.assert_allclose(loss[i], losses[i][found[i]], rtol=1e-4)


@pytest.mark.parametrize(
  ("answer", "expected"),
  [
    ("The  dog.", "dog"),
    ("two", "2"),
    ("none", "0"),
    ("a man, an umbrella", "man umbrella"),
    ("dont know", "don't know"),
    ("couldntve", "couldntve"),
    ("couldnt've", "couldn't've"),
    ("1,000", "1000"),
    ("2.5", "2.5"),
    ("black/white", "black white"),
    ("yes?", "yes"),
    ("red\nwine", "red wine"),
    ("t-shirt", "t shirt"),
  ],
)
def test_answers_are_brought_into_one_form(answer, expected):
  assert vqa_score.normalised(answer) == expected


def test_accuracy_is_the_mean_over_the_annotators():
  annotators = ["yes"] * 2 + ["no"] * 8
  # Left out once each: the two who said yes leave one, the others two.
  expected = (2 * (1 / 3) + 8 * (2 / 3)) / 10
  assert vqa_score.accuracy("Yes.", annotators) == pytest.approx(expected)
  assert vqa_score.accuracy("no", annotators) == pytest.approx(1.0)
  assert vqa_score.accuracy("maybe", annotators) == 0.0
  # Where all agree, nothing is normalised.
  assert vqa_score.accuracy("The yes", ["yes"] * 10) == 0.0


class Source(list):
  """Examples, and the answers that train gives."""

  answers = ("yes", "no", "dogs", "two")


def _batches(examples):
  """Examples with a picture and a text in batches of two."""
  image = Image.new("RGB", (8, 8))
  return pipelines.eval_batches(
    Source(
      {"image": image, "captions": ["two"], "concept": i, "id": str(i)} | more
      for i, more in enumerate(examples)
    ),
    tokenizers.train_wordpiece(["yes no two dogs"] * 9, 40),
    batch_size=2,
    image_size=8,
    text_length=6,
  )


def _evaluated(evaluate, examples, written):
  """What a task says of a split for which these texts are written."""
  batches = _batches(examples)
  ids = jnp.asarray(batches.tokenizer.encode(written, 6)[0])
  ids = iter(ids.reshape(-1, 2, 6))
  return evaluate(lambda batch: (next(ids), jnp.zeros(2)), batches)


def test_what_is_written_is_scored_without_the_padding(monkeypatch):
  """Three examples in batches of two: the last row is no example."""
  written = ["yes", "two dogs", "no", "yes"]
  answers = [["yes"] * 8 + ["no"] * 2, ["dogs"] * 10, ["no"] * 2 + ["yes"] * 8]
  examples = [{"answers": each, "blind": "yes"} for each in answers]
  found = _evaluated(vqa.build(task.Options()).evaluate, examples, written)
  third = vqa_score.accuracy("no", answers[2])
  assert found.metrics == {
    "accuracy": pytest.approx((1.0 + 0.0 + third) / 3),
    "question_only": pytest.approx((1.0 + 0.0 + 1.0) / 3),
  }
  assert found.examples["accuracy"].tolist() == [1.0, 0.0, third]
  assert found.examples["question_only"].tolist() == [1.0, 0.0, 1.0]

  judged = []

  def scores(*texts):
    judged.extend(texts)
    return {"bleu_1": 0.5, "cider": 1.25}

  monkeypatch.setattr(caption_score, "scores", scores)
  references = [["Two dogs."], ["A dog", "dogs"], ["no"]]
  found = _evaluated(
    caption.evaluate, [{"references": each} for each in references], written
  )
  assert list(found.metrics.items()) == [("cider", 1.25), ("bleu_1", 0.5)]
  assert not found.examples
  assert judged == [
    dict(zip("012", written[:3], strict=True)),
    dict(zip("012", references, strict=True)),
  ]


def test_answers_are_chosen_among_those_of_train():
  answers = [["dogs"] * 10, ["no"] * 10, ["yes"] * 10]
  batches = _batches([{"answers": each, "blind": "no"} for each in answers])
  options = task.Options(rank=3, answer_length=4)
  chosen = iter(jnp.asarray([[2, 1], [1, 0]]))
  given = []

  def predict(batch, *shared):
    given.append(shared)
    return next(chosen), jnp.zeros(2)

  found = vqa.build(options).evaluate(predict, batches)
  assert found.metrics == {
    "accuracy": pytest.approx(2 / 3),
    "question_only": pytest.approx(1 / 3),
  }
  for shared in given:
    for array, expected in zip(
      shared, batches.tokenizer.encode(Source.answers[:3], 4), strict=True
    ):
      np.testing.assert_array_equal(array, expected)


def test_an_answer_that_is_not_listed_is_not_answered_right():
  answers = [["cats"] * 10, ["no"] * 10, ["a cat"] * 8 + ["yes"] * 2]
  batches = _batches([{"answers": each, "blind": "no"} for each in answers])
  assert not {"cats", "a cat"} & set(Source.answers)
  chosen = iter(jnp.asarray([[0, 1], [0, 0]]))
  predict = lambda *_: (next(chosen), jnp.zeros(2))  # noqa: E731
  options = task.Options(rank=3, answer_length=4)
  found = vqa.build(options).evaluate(predict, batches)
  # What two of ten annotators said counts 0.6.
  np.testing.assert_allclose(found.examples["accuracy"], [0.0, 1.0, 0.6])

"""Batches: determinism, resumption, caption choice, padding."""

import threading

import numpy as np
import pytest

from comp_jax import errors
from comp_jax.data import images, pipelines, texts, tokenizers

AUGMENT = pipelines.AugmentSpec(jitter=0.2, word_dropout=0.2)


@pytest.fixture(scope="module")
def tokenizer():
  captions = [f"a{i} photo of thing {i}" for i in range(10)]
  return tokenizers.train_wordpiece(captions, 60)


def train(source, tokenizer, seed=0, augment=AUGMENT, batch_size=4):
  return pipelines.train_batches(
    source,
    tokenizer,
    batch_size=batch_size,
    image_size=12,
    text_length=10,
    seed=seed,
    augment=augment,
  )


def evaluate(source, tokenizer, **kwargs):
  return pipelines.eval_batches(
    source, tokenizer, image_size=12, text_length=10, **kwargs
  )


def assert_equal(a, b):
  assert a.keys() == b.keys()
  for key in a:
    assert a[key].dtype == b[key].dtype
    np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_layout(toy_source, tokenizer):
  batch = train(toy_source, tokenizer)[0]
  assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
    "image": ((4, 12, 12, 3), "uint8"),
    "text_ids": ((4, 10), "int32"),
    "text_mask": ((4, 10), "bool"),
    "concept": ((4,), "int32"),
  }


def test_seed_decides(toy_source, tokenizer):
  a, b = train(toy_source, tokenizer), train(toy_source, tokenizer)
  for i in (7, 0, 3):  # In any order.
    assert_equal(a[i], b[i])
  other = train(toy_source, tokenizer, seed=1)
  # Neighbouring seeds must not be the same stream one epoch apart.
  orders = {tuple(a[i]["concept"]) for i in range(6)}
  assert not orders & {tuple(other[i]["concept"]) for i in range(6)}


def test_epochs(toy_source, tokenizer):
  ds = train(toy_source, tokenizer, batch_size=5)
  epochs = [
    np.concatenate([ds[2 * e]["concept"], ds[2 * e + 1]["concept"]])
    for e in range(3)
  ]
  for epoch in epochs:
    assert sorted(epoch) == list(range(100, 110))
  assert not np.array_equal(epochs[0], epochs[1])
  assert not np.array_equal(epochs[1], epochs[2])


def test_remainder_is_left_out(toy_source, tokenizer):
  ds = train(toy_source, tokenizer)  # 10 examples: two batches of 4.
  for epoch in range(3):
    seen = [*ds[2 * epoch]["concept"], *ds[2 * epoch + 1]["concept"]]
    assert len(set(seen)) == 8


def test_draws_differ_between_epochs(toy_source, tokenizer):
  ds = train(toy_source[:1], tokenizer, batch_size=1)
  pictures = {ds[i]["image"].tobytes() for i in range(8)}
  assert len(pictures) == 8


def test_caption_choice_varies_and_is_right(toy_source, tokenizer):
  ds = train(toy_source, tokenizer, augment=None)
  chosen = set()
  for i in range(40):
    batch = ds[i]
    for ids, concept in zip(batch["text_ids"], batch["concept"], strict=True):
      text = tokenizer.decode(ids)
      assert text in toy_source[concept - 100]["captions"]
      chosen.add(text)
  assert len(chosen) == 30  # All three of all ten.


def test_without_augmentation_the_picture_is_plain(toy_source, tokenizer):
  batch = train(toy_source, tokenizer, augment=None)[0]
  for picture, concept in zip(batch["image"], batch["concept"], strict=True):
    expected = images.resize(toy_source[concept - 100]["image"], 12)
    np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize("threads", [0, 1, 5])
def test_resume_with_any_thread_count(toy_source, tokenizer, threads):
  ds = train(toy_source, tokenizer)
  whole = pipelines.stage_iterator(
    ds, start=0, steps_per_stage=3, num_threads=2
  )
  next(whole)
  resumed = pipelines.stage_iterator(
    train(toy_source, tokenizer),
    start=3,
    steps_per_stage=3,
    num_threads=threads,
  )
  for stage in range(1, 5):
    a, b = next(whole), next(resumed)
    assert a["image"].shape == (3, 4, 12, 12, 3)
    assert_equal(a, b)
    for step in range(3):
      assert_equal({k: v[step] for k, v in a.items()}, ds[3 * stage + step])
  whole.close()
  resumed.close()


def test_threads_end_with_the_iterator(toy_source, tokenizer):
  before = set(threading.enumerate())
  stages = pipelines.stage_iterator(
    train(toy_source, tokenizer), start=0, steps_per_stage=2, num_threads=3
  )
  next(stages)
  started = [
    t
    for t in threading.enumerate()
    if t not in before and "grain-prefetch" in t.name
  ]
  assert len(started) == 3
  stages.close()
  for thread in started:
    thread.join(timeout=20)
    assert not thread.is_alive()


@pytest.mark.parametrize(
  "kwargs, match",
  [
    ({"batch_size": 11}, "10 training examples"),
    ({"batch_size": 0}, "batch_size"),
    ({"seed": -1}, "seed"),
  ],
)
def test_bad_arguments(toy_source, tokenizer, kwargs, match):
  with pytest.raises(errors.UserError, match=match):
    train(toy_source, tokenizer, **kwargs)


def test_eval_padding(toy_source, tokenizer):
  batches = evaluate(toy_source, tokenizer, batch_size=4)
  assert len(batches) == 3 and batches.num_examples == 10
  got = list(batches)
  for batch in got:
    assert batch["image"].shape == (4, 12, 12, 3)
    assert batch["text_ids"].shape == batch["text_mask"].shape == (4, 3, 10)
    assert batch["concept"].dtype == np.int32
  masks = np.concatenate([b["_mask"] for b in got])
  assert masks.dtype == bool
  np.testing.assert_array_equal(masks, [True] * 10 + [False] * 2)
  concepts = np.concatenate([b["concept"] for b in got])
  np.testing.assert_array_equal(concepts, [*range(100, 110), -1, -1])
  assert got[-1]["text_mask"].any(-1).all()  # No row without a valid token.


def test_eval_is_repeatable(toy_source, tokenizer):
  batches = evaluate(toy_source, tokenizer, batch_size=3)
  for i, (a, b) in enumerate(zip(batches, batches, strict=True)):
    assert_equal(a, b)
    assert_equal(a, batches[i])
  with pytest.raises(IndexError):
    batches[len(batches)]


def test_eval_preprocessing_and_limit(toy_source, tokenizer):
  (batch,) = evaluate(toy_source, tokenizer, batch_size=6, limit=6)
  assert batch["_mask"].all()
  for i in range(6):
    expected = images.resize(toy_source[i]["image"], 12)
    np.testing.assert_array_equal(batch["image"][i], expected)
    found = [tokenizer.decode(ids) for ids in batch["text_ids"][i]]
    assert found == toy_source[i]["captions"]


def test_load_examples_equals_eval(toy_source, tokenizer):
  args = (toy_source, tokenizer)
  kwargs = {"image_size": 12, "text_length": 10}
  (whole,) = evaluate(*args, batch_size=10)
  assert_equal(pipelines.load_examples(*args, **kwargs), whole)
  some = pipelines.load_examples(*args, **kwargs, indices=[7, 2])
  assert_equal(some, {k: v[[7, 2]] for k, v in whole.items()})
  first = pipelines.load_examples(*args, **kwargs, limit=3)
  assert_equal(first, {k: v[:3] for k, v in whole.items()})


def test_captions_have_the_prompt(toy_source, tokenizer):
  layout = texts.Layout(prompt="photo of ", prompt_tokens=3)
  (batch,) = evaluate(toy_source, tokenizer, batch_size=10, layout=layout)
  plain = toy_source[3]["captions"]
  expected, mask = tokenizer.encode([f"photo of {x}" for x in plain], 10)
  np.testing.assert_array_equal(batch["text_ids"][3], expected)
  np.testing.assert_array_equal(batch["text_mask"][3], mask)


def test_answers_have_their_weights(toy_source, tokenizer):
  """Of each kind one; what is missing weighs nothing and is still a text."""
  given = ["thing 1", "photo", "thing 1", "of", "photo", "thing 1"]
  source = [
    {**example, "answers": given[: 1 + 5 * (i % 2)], "weight": 0.25}
    for i, example in enumerate(toy_source)
  ]
  layout = texts.Layout(answers=2, answer_length=5)
  batches = evaluate(source, tokenizer, batch_size=4, limit=6, layout=layout)
  for i, weights in ((0, [0.25, 0.0]), (1, [0.75, 0.5])):
    found = [tokenizer.decode(ids) for ids in batches[0]["answer_ids"][i]]
    assert found == ["thing 1", "photo" if i else "thing 1"]
    np.testing.assert_array_equal(batches[0]["answer_weight"][i], weights)
    assert np.all(batches[0]["answer_mask"][i].sum(axis=-1) >= 3)
  assert [x["id"] for x in batches.examples()] == [str(i) for i in range(6)]
  drawn = pipelines.train_batches(
    source,
    tokenizer,
    batch_size=4,
    image_size=12,
    text_length=10,
    seed=0,
    layout=layout,
  )[0]
  shapes = {key: drawn[key].shape for key in drawn if "answer" in key}
  assert shapes == {
    "answer_ids": (4, 2, 5),
    "answer_mask": (4, 2, 5),
    "answer_weight": (4, 2),
  }
  assert drawn["text_ids"].shape == (4, 10)


def test_real_emoji(emoji):
  captions = [emoji["train"][i]["captions"][0] for i in range(200)]
  tokenizer = tokenizers.train_wordpiece(captions, 400)
  batch = pipelines.train_batches(
    emoji["train"],
    tokenizer,
    batch_size=8,
    image_size=32,
    text_length=24,
    seed=3,
    augment=AUGMENT,
  )[5]
  assert batch["image"].std() > 10
  (dev,) = pipelines.eval_batches(
    emoji["test"],
    tokenizer,
    batch_size=8,
    image_size=32,
    text_length=24,
    limit=5,
  )
  assert dev["text_ids"].shape == (8, 1, 24) and dev["_mask"].sum() == 5


def test_real_flickr8k(flickr8k):
  captions = [c for i in range(50) for c in flickr8k["train"][i]["captions"]]
  tokenizer = tokenizers.train_wordpiece(captions, 400)
  example = pipelines.load_examples(
    flickr8k["dev"], tokenizer, image_size=112, text_length=24, limit=2
  )
  assert example["image"].shape == (2, 112, 112, 3)
  assert example["text_ids"].shape == (2, 5, 24)

"""What a run trains on, chooses on and reports."""

import pathlib

import hypothesis
import pytest
from hypothesis import strategies

from comp_jax import errors
from comp_jax.cli import configs
from comp_jax.data import sources
from comp_jax.train import inputs

ROOT = pathlib.Path(__file__).parents[2]


def _open(trained, reported=("select",)):
  config = configs.load(str(ROOT / "configs" / "emoji_tiny.py"))
  config.data.train_on, config.data.report_splits = trained, reported
  return inputs.open_data(config, None)


def test_several_splits_are_trained_on_as_one():
  alone, both = _open(("train",)), _open(("train", "test"))
  source, first = both.splits["train"], len(alone.splits["train"])
  assert len(source) == first + len(both.splits["test"])
  ids = [source[i]["id"] for i in (0, first - 1, first, len(source) - 1)]
  train, test = alone.splits["train"], both.splits["test"]
  ends = (train[0], train[first - 1], test[0], test[len(test) - 1])
  assert ids == [example["id"] for example in ends]


@hypothesis.given(strategies.lists(strategies.integers(0, 3), min_size=1))
def test_joined_sources_are_their_concatenation(sizes):
  parts = [
    [
      {"image": b"", "captions": [], "concept": j, "id": str(part)}
      for j in range(i)
    ]
    for part, i in enumerate(sizes)
  ]
  joined = sources.Joined(parts)
  flat = [example for part in parts for example in part]
  assert [joined[i] for i in range(len(joined))] == flat
  for index in (-1, len(flat)):
    with pytest.raises(IndexError):
      joined[index]


@pytest.mark.parametrize(
  ("trained", "reported", "message"),
  [
    (("train", "select"), ("test",), "train_on: select would be trained on"),
    (("train", "test"), ("test",), "train_on: test would be trained on"),
    (("train", "tset"), (), "emoji has no split 'tset'"),
    ((), ("test",), "train_on names no split"),
  ],
)
def test_what_is_trained_on_is_not_chosen_or_reported_on(
  trained, reported, message
):
  with pytest.raises(errors.UserError, match=message):
    _open(trained, reported)
  assert _open(("train",), ("train", "test"))


@pytest.mark.parametrize(
  ("trained", "reported", "message"),
  [
    (
      ("train",),
      ("test",),
      "report_splits: test of emoji has no answers, so nothing can be measured",
    ),
    (
      ("train", "test"),
      (),
      "train_on: test of emoji has no answers, so nothing can be learnt",
    ),
  ],
)
def test_a_split_without_answers_is_named_with_the_field_that_asks_for_it(
  monkeypatch, trained, reported, message
):
  told = {"image": b"", "captions": ["a"], "answers": ["b"]}
  splits = {
    "train": [told],
    "select": [told],
    "test": [{"image": b"", "captions": ["a"]}],
  }
  monkeypatch.setattr(sources, "open_source", lambda *_, **__: splits)
  with pytest.raises(errors.UserError, match=message):
    _open(trained, reported)

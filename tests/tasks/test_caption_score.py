"""Captions against what people wrote."""

import collections
import importlib.machinery
import importlib.util
import math
import shutil
import sys

import numpy as np
import pytest

from comp_jax import errors
from comp_jax.tasks import caption_score

WRITTEN = {
  "1": "A dog runs over the grass.",
  "2": "two men ride horses on a beach",
  "3": "a plate of food",
}
REFERENCES = {
  "1": ["A brown dog runs over grass", "a dog is running in the park"],
  "2": ["two men on horses", "two people ride horses along a beach"],
  "3": ["a cat sits on a sofa", "the cat is asleep"],
}


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("A dog, running.", "a dog running"),
    ("The man's hat isn't red!", "the man 's hat is n't red"),
    ("  Two\n dogs ", "two dogs"),
  ],
)
def test_texts_are_split_into_words(text, expected):
  assert caption_score.words(text) == expected


def _cider(written, references):
  """CIDEr-D from its definition: n-grams up to 4, clipped, sigma 6."""
  split = lambda text: caption_score.words(text).split()  # noqa: E731

  def grams(text, n):
    tokens = split(text)
    return collections.Counter(
      tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)
    )

  total = []
  for image, text in written.items():
    sums = []
    for n in range(1, 5):
      seen = collections.Counter()
      for texts in references.values():
        seen.update({g for each in texts for g in grams(each, n)})
      weigh = lambda counts, seen=seen: {  # noqa: E731
        g: c * (math.log(len(references)) - math.log(max(1, seen[g])))
        for g, c in counts.items()
      }
      norm = lambda v: math.sqrt(sum(x * x for x in v.values()))  # noqa: E731
      ours = weigh(grams(text, n))
      each = []
      for other in references[image]:
        theirs = weigh(grams(other, n))
        dot = sum(
          min(x, theirs.get(g, 0)) * theirs.get(g, 0) for g, x in ours.items()
        )
        scale = norm(ours) * norm(theirs)
        # Its lengths are counted in pairs of words.
        gap = len(split(text)) - len(split(other))
        cosine = dot / scale if scale else 0.0
        each.append(cosine * math.exp(-(gap**2) / (2 * 6.0**2)))
      sums.append(np.mean(each))
    total.append(10 * np.mean(sums))
  return float(np.mean(total))


def test_scores_follow_their_definitions():
  pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
  found = caption_score.scores(WRITTEN, REFERENCES, java=False)
  assert set(found) == {
    *(f"bleu_{n}" for n in range(1, 5)),
    "rouge_l",
    "cider",
  }
  assert found["cider"] == pytest.approx(_cider(WRITTEN, REFERENCES), abs=1e-6)
  same = caption_score.scores(
    {image: texts[0] for image, texts in REFERENCES.items()},
    REFERENCES,
    java=False,
  )
  assert same["bleu_4"] == pytest.approx(1.0, abs=1e-6)
  assert same["rouge_l"] == pytest.approx(1.0)
  assert same["cider"] > found["cider"]


# Meteor keeps the pipes of its Java process open.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings(
  "ignore:Exception ignored in. <_io:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.filterwarnings("ignore:subprocess .* is still running")
@pytest.mark.skipif(not shutil.which("java"), reason="Java is not installed")
def test_java_splits_the_words_and_adds_meteor():
  pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
  found = caption_score.scores(WRITTEN, REFERENCES, java=True)
  plain = caption_score.scores(WRITTEN, REFERENCES, java=False)
  assert set(found) == {*plain, "meteor"}
  assert 0.1 < found["meteor"] < 1
  # These texts are split alike by both.
  assert found["cider"] == pytest.approx(plain["cider"])


def test_spice_is_asked_only_where_its_parser_is(monkeypatch, tmp_path):
  pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
  package = importlib.machinery.ModuleSpec("spice", None, is_package=True)
  package.submodule_search_locations = [str(tmp_path)]
  monkeypatch.setattr(importlib.util, "find_spec", lambda _: package)
  (tmp_path / "lib").mkdir()
  for part in ("", "-models"):
    # One of the two alone is what a broken download leaves.
    assert not caption_score.has_parser()
    (tmp_path / "lib" / f"{caption_score.PARSER}{part}.jar").touch()
  assert caption_score.has_parser()
  monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
  assert not caption_score.has_parser()


def test_what_is_missing_is_said(monkeypatch):
  with pytest.raises(errors.UserError, match="2 images .* first 3, 4"):
    caption_score.scores(
      {"1": WRITTEN["1"], "2": WRITTEN["2"]}, {**REFERENCES, "4": ["a cat"]}
    )
  monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu", None)
  with pytest.raises(errors.UserError, match="pip install pycocoevalcap"):
    caption_score.scores(WRITTEN, REFERENCES, java=False)

"""Captions against what people wrote."""

import collections
import importlib.resources
import math
import shutil
import subprocess
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


def _with_java(test):
  """Runs a test where Java is; Meteor leaves the pipes of its process open."""
  for ignored in (
    "unclosed file:ResourceWarning",
    "Exception ignored in. <_io:pytest.PytestUnraisableExceptionWarning",
    "subprocess .* is still running",
  ):
    test = pytest.mark.filterwarnings(f"ignore:{ignored}")(test)
  missing = not shutil.which("java")
  return pytest.mark.skipif(missing, reason="Java is not installed")(test)


@_with_java
def test_java_splits_the_words_and_adds_meteor():
  pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
  found = caption_score.scores(WRITTEN, REFERENCES, java=True)
  plain = caption_score.scores(WRITTEN, REFERENCES, java=False)
  assert set(found) == {*plain, "meteor"}
  assert 0.1 < found["meteor"] < 1
  # These texts are split alike by both.
  assert found["cider"] == pytest.approx(plain["cider"])


@_with_java
def test_where_spice_fails_the_other_scores_stand(monkeypatch):
  pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
  from pycocoevalcap.spice import spice

  def fail(*_):
    raise subprocess.CalledProcessError(1, "java")

  # Its parser is not here.
  monkeypatch.setattr(caption_score, "has_parser", lambda: True)
  monkeypatch.setattr(spice.Spice, "__init__", lambda _: None)
  monkeypatch.setattr(spice.Spice, "compute_score", fail)
  with pytest.warns(UserWarning, match="SPICE is left out: Command 'java'"):
    found = caption_score.scores(WRITTEN, REFERENCES)
  assert "spice" not in found and found["meteor"] > 0
  monkeypatch.setattr(spice.Spice, "compute_score", lambda *_: (0.25, []))
  assert caption_score.scores(WRITTEN, REFERENCES)["spice"] == 0.25


def test_spice_is_asked_only_where_its_parser_is(monkeypatch, tmp_path):
  pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
  monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path)
  (tmp_path / "lib").mkdir()
  for part in ("", "-models"):
    # One of the two alone is what a broken download leaves.
    assert not caption_score.has_parser()
    (tmp_path / "lib" / f"{caption_score.PARSER}{part}.jar").touch()
  assert caption_score.has_parser()


def test_what_is_missing_is_said(monkeypatch):
  with pytest.raises(errors.UserError, match="2 images .* first 3, 4"):
    caption_score.scores(
      {"1": WRITTEN["1"], "2": WRITTEN["2"]}, {**REFERENCES, "4": ["a cat"]}
    )
  monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu", None)
  with pytest.raises(errors.UserError, match="pip install pycocoevalcap"):
    caption_score.scores(WRITTEN, REFERENCES, java=False)

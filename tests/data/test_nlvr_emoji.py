"""The generator of statements about emoji."""

import collections
import json

import numpy as np
import pytest

from comp_jax import errors
from comp_jax.cli import verbs
from comp_jax.data import nlvr_emoji, sources

DRAWINGS = [
  nlvr_emoji.Emoji(name=f"{group} {i}", group=group, file=f"{group}{i}.png")
  for group in ("food", "animals", "symbols")
  for i in range(12)
]


@pytest.fixture(scope="module")
def claims():
  return nlvr_emoji.Generator(DRAWINGS, seed=0).statements(4800)


def _true(claim) -> bool:
  """What the sentence says, read from its words."""
  left, right = (one.name for one in claim.pair)
  groups = [one.group for one in claim.pair]
  text = claim.sentence.removesuffix(".")
  if " and the right" in text or " or the right" in text:
    word = " and " if " and the right" in text else " or "
    first, second = text.split(f"{word}the right image shows ")
    parts = first.removeprefix("The left image shows ") == left, second == right
    return all(parts) if word == " and " else any(parts)
  if text.startswith("Neither"):
    return text.removeprefix("Neither image shows ") not in (left, right)
  if text.startswith("The "):
    side, name = text.removeprefix("The ").split(" image shows ")
    return name == (left if side == "left" else right)
  named = text.split(" belong")[1].split("to ")[1]
  inside = [group == named for group in groups]
  return all(inside) if text.startswith("Both") else sum(inside) == 1


def test_labels_say_whether_the_sentence_is_true(claims):
  for claim in claims:
    assert claim.label == _true(claim), claim


def test_every_form_is_as_often_true_as_false(claims):
  labels = collections.defaultdict(list)
  for claim in claims:
    labels[claim.form.removeprefix("left ").removeprefix("right ")].append(
      claim.label
    )
  assert len(labels) == 6
  assert all(np.mean(found) == 0.5 for found in labels.values())


def test_a_blind_reader_fails(claims):
  scores = nlvr_emoji.blind(claims)
  assert scores["text only"] < 0.52
  assert scores["left image only"] < 0.8
  assert scores["right image only"] < 0.8


def test_the_same_seed_gives_the_same_statements(claims):
  again = nlvr_emoji.Generator(DRAWINGS, seed=0).statements(4800)
  assert again == claims
  other = nlvr_emoji.Generator(DRAWINGS, seed=1).statements(4800)
  assert other != claims


def test_a_first_lesson_has_the_forms_that_it_names():
  lesson = nlvr_emoji.Generator(DRAWINGS, seed=0, forms=["side"])
  claims = lesson.statements(200)
  assert {claim.form for claim in claims} == {"left name", "right name"}
  assert sum(claim.label for claim in claims) == 100


def test_the_folder_is_read_by_the_loader_of_nlvr2(tmp_path, capsys):
  to = tmp_path / "nlvr"
  arguments = ["--to", str(to), "--train", "24", "--dev", "12"]
  assert verbs.main(["data", "nlvr_emoji", *arguments]) == 0
  assert "text only 0.5" in capsys.readouterr().out
  splits = sources.open_source("nlvr2", dir=str(to))
  assert len(splits["dev"]) == 12
  assert len(splits["train"]) + len(splits["select"]) == 24
  entry = json.loads((to / "nlvr_dev.json").read_text())[0]
  assert entry["images"][0].endswith("-fluent3d.webp")
  assert verbs.main(["data", "nlvr_emoji", *arguments]) == 2
  assert "not empty" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    verbs.main(["data", "nlvr_emoji", *arguments, "--forms", "nor"])
  assert "exactly_one" in capsys.readouterr().err
  with pytest.raises(errors.UserError, match="no emoji_64px.parquet"):
    nlvr_emoji.write(tmp_path / "gone", tmp_path / "x")

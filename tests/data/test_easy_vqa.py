"""easy-VQA's package, and its files in miniature."""

import collections
import json

import pytest

from comp_jax import errors
from comp_jax.data import easy_vqa, sources
from tests.data import conftest

IMAGES = {"train": 12, "test": 3}
COLOURS = ("red", "blue", "red")


def _questions(split):
  """Question, answer, image: two about each."""
  return [
    row
    for image in range(IMAGES[split])
    for row in (
      ["what color is it?", COLOURS[image % 3], image],
      [f"is there a {COLOURS[image % 2]} shape?", "yes", image],
    )
  ]


@pytest.fixture
def folder(tmp_path):
  for split, count in IMAGES.items():
    (tmp_path / split / "images").mkdir(parents=True)
    for image in range(count):
      path = tmp_path / split / "images" / f"{image}.png"
      path.write_bytes(conftest.jpeg(image))
    text = json.dumps(_questions(split))
    (tmp_path / split / "questions.json").write_text(text)
  return tmp_path


def _open(folder):
  return sources.open_source("easy_vqa", dir=str(folder))


def test_questions_stay_with_their_images(folder):
  splits = _open(folder)
  examples = {name: [s[i] for i in range(len(s))] for name, s in splits.items()}
  sizes = {name: len(split) for name, split in examples.items()}
  assert sizes == {"train": 20, "select": 4, "test": 6}
  concepts = {n: {e["concept"] for e in each} for n, each in examples.items()}
  assert not concepts["train"] & concepts["select"]
  assert len(concepts["select"]) == 2
  for name, each in examples.items():
    split = "test" if name == "test" else "train"
    for example in each:
      text, answer, image = _questions(split)[int(example["id"][-5:]) - 1]
      assert example["captions"] == [text]
      # As if ten annotators agreed.
      assert example["answers"] == [answer] * 10
      assert example["weight"] == pytest.approx(0.1)
      assert example["image"] == conftest.jpeg(image)


def test_train_tells_what_is_known_without_looking(folder):
  """The answer most often given to the same words, else to any."""
  questions = _questions("test")
  questions.append(["is it new?", "no", 0])
  (folder / "test" / "questions.json").write_text(json.dumps(questions))
  splits = _open(folder)
  assert splits["test"].answers == ("yes", "red", "blue")
  assert splits["test"].answers == _open(folder)["train"].answers
  test = [splits["test"][i] for i in range(len(splits["test"]))]
  blind = {example["captions"][0]: example["blind"] for example in test}
  assert blind == {
    "what color is it?": "red",
    "is there a red shape?": "yes",
    "is there a blue shape?": "yes",
    "is it new?": "yes",
  }


@pytest.mark.parametrize(
  ("entry", "message"),
  [
    (["what?", "red"], "entry 2 is not a question, an answer and the number"),
    (["what?", 3, 0], "entry 2 is not .* are texts"),
    (["what?", "red", "first"], "entry 2 is not"),
    (["what?", "red", 99], "1 photos .* missing, first test/images/99.png"),
  ],
)
def test_what_is_wrong_is_named(folder, entry, message):
  questions = _questions("test")
  questions[1] = entry
  (folder / "test" / "questions.json").write_text(json.dumps(questions))
  with pytest.raises(errors.UserError, match=message):
    _open(folder)


def test_missing_data_name_the_package(tmp_path, monkeypatch):
  monkeypatch.setattr(easy_vqa, "_PACKAGE", "no_such_package")
  with pytest.raises(errors.UserError, match="pip install --no-deps easy-vqa"):
    sources.open_source("easy_vqa", dir=str(tmp_path))
  with pytest.raises(errors.UserError, match="no folder was named"):
    sources.open_source("easy_vqa")


def test_the_package_is_found_and_read(tmp_path):
  """Of two thirds of the answers the question alone is enough."""
  source = easy_vqa.EasyVqa.own_source()
  builder = easy_vqa.EasyVqa(source=source, data_dir=str(tmp_path))
  train, test = (builder._read(split) for split in ("train", "test"))
  assert (len(train), len(test)) == (38575, 9673)
  assert len({answer for q in train for answer in q.answers}) == 13
  counts = collections.defaultdict(collections.Counter)
  for question in train:
    counts[question.text][question.answers[0]] += 1
  right = [
    counts[q.text].most_common(1)[0][0] == q.answers[0]
    for q in test
    if q.text in counts
  ]
  assert sum(right) / len(test) == pytest.approx(0.670, abs=5e-4)

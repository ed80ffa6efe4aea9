"""VQAv2's files and BLIP's lists of them, in miniature."""

import json

import pytest

from comp_jax import errors
from comp_jax.data import sources, vqa2
from tests.data import conftest

PHOTOS = {"train": range(1, 13), "val": range(20, 23)}
PER_PHOTO = 2


def _questions(split):
  """Number, photo's number, question, answers: ten, of two kinds."""
  return [
    (10 * photo + i, photo, f"Is {i} right?", ["yes"] * 7 + ["no"] * 3)
    for photo in PHOTOS[split]
    for i in range(PER_PHOTO)
  ]


def _place(split, photo, year=2014):
  return f"{split}{year}/COCO_{split}{year}_{photo:012d}.jpg"


def _photos(folder):
  for split, photos in PHOTOS.items():
    for photo in photos:
      path = folder / _place(split, photo)
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(conftest.jpeg(photo))


def _official(folder):
  for split in PHOTOS:
    questions, annotations = [], []
    for number, photo, text, answers in _questions(split):
      ids = {"question_id": number, "image_id": photo}
      questions.append({**ids, "question": text})
      annotations.append({**ids, "answers": [{"answer": a} for a in answers]})
    name = f"v2_OpenEnded_mscoco_{split}2014_questions.json"
    (folder / name).write_text(json.dumps({"questions": questions}))
    # In another order than the questions.
    text = json.dumps({"annotations": annotations[::-1]})
    (folder / f"v2_mscoco_{split}2014_annotations.json").write_text(text)


def _lists(folder):
  for split in PHOTOS:
    rows = [
      {
        "question_id": number,
        "image": _place(split, photo),
        "question": text,
        "answer": answers,
        "dataset": "vqa",
      }
      for number, photo, text, answers in _questions(split)
    ]
    (folder / f"vqa_{split}.json").write_text(json.dumps(rows))


def _genome(folder):
  path = folder / "visual_genome" / "VG_100K" / "7.jpg"
  path.parent.mkdir(parents=True)
  path.write_bytes(conftest.jpeg(7))
  row = {"question_id": 10, "image": "VG_100K/7.jpg", "dataset": "vg"}
  row |= {"question": "What is it?", "answer": "a cat"}
  (folder / "vg_qa.json").write_text(json.dumps([row]))


def test_listed_answers_are_those_that_are_ranked(tmp_path):
  _photos(tmp_path)
  _official(tmp_path)
  path = tmp_path / "answer_list.json"
  path.write_text(json.dumps(["maybe", "no", "no", "yes"]))
  splits = _open(tmp_path)
  assert splits["val"].answers == ("maybe", "no", "yes")
  # What train answers most often is not taken from the list.
  assert splits["val"][0]["blind"] == "yes"
  # Another list is another data set.
  path.write_text(json.dumps(["no"]))
  assert _open(tmp_path)["val"].answers == ("no",)
  path.write_text(json.dumps(["no", 3]))
  with pytest.raises(errors.UserError, match="answer_list.json is not a list"):
    _open(tmp_path)
  path.unlink()
  assert _open(tmp_path)["val"].answers == ("yes", "no")


def _open(folder):
  return sources.open_source("vqa2", dir=str(folder))


def _examples(source):
  every = (source[i] for i in range(len(source)))
  return {example["id"]: example for example in every}


def test_both_layouts_give_the_same_examples(tmp_path):
  found = []
  for write in (_official, _lists):
    folder = tmp_path / write.__name__
    _photos(folder)
    write(folder)
    splits = _open(folder)
    found.append({name: _examples(split) for name, split in splits.items()})
  assert found[0] == found[1]
  sizes = {name: len(split) for name, split in found[0].items()}
  assert sizes == {"train": 20, "select": 4, "val": 6}
  # All questions about a photo stay together.
  concepts = {
    name: {example["concept"] for example in split.values()}
    for name, split in found[0].items()
  }
  assert not concepts["train"] & concepts["select"]
  assert len(concepts["select"]) == 2
  one = found[0]["val"]["211"]
  assert one["captions"] == ["is 1 right?"]
  assert one["answers"] == ["yes"] * 7 + ["no"] * 3
  assert one["blind"] == "yes"
  assert one["weight"] == pytest.approx(0.1)
  assert one["image"] == conftest.jpeg(21)


def test_visual_genome_is_trained_on_alone(tmp_path):
  _photos(tmp_path)
  _official(tmp_path)
  _genome(tmp_path)
  splits = {name: _examples(split) for name, split in _open(tmp_path).items()}
  assert [name for name, s in splits.items() if "vg-10" in s] == ["train"]
  one = splits["train"]["vg-10"]
  assert one["answers"] == ["a cat"]
  assert one["weight"] == pytest.approx(0.2)


def _test(folder, name, row, photos=(31, 30)):
  """Test questions, two about each photo, and the photos."""
  rows = [
    {"question_id": 10 * photo + i, "question": "Who?", **row(photo)}
    for photo in photos
    for i in range(PER_PHOTO)
  ]
  content = {"questions": rows} if "mscoco" in name else rows
  (folder / name).write_text(json.dumps(content))
  for photo in photos:
    path = folder / _place("test", photo, 2015)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(conftest.jpeg(photo))


def test_test_questions_have_no_answers_and_are_not_prepared(tmp_path):
  _photos(tmp_path)
  _official(tmp_path)
  before = vqa2.Vqa2.source_fingerprint(tmp_path)
  assert set(_open(tmp_path)) == {"train", "select", "val"}
  official = "v2_OpenEnded_mscoco_{}2015_questions.json"
  _test(tmp_path, official.format("test"), lambda n: {"image_id": n})
  _test(tmp_path, official.format("test-dev"), lambda n: {"image_id": n}, [30])
  # What trains and chooses is the same, and nothing is stored anew.
  assert vqa2.Vqa2.source_fingerprint(tmp_path) == before
  splits = _open(tmp_path)
  found = {name: _examples(splits[name]) for name in ("test", "test-dev")}
  # In the order of the file; those of test-dev are among them.
  assert list(found["test"]) == ["310", "311", "300", "301"]
  assert found["test-dev"].keys() == {"300", "301"}
  one = found["test"]["311"]
  assert one["image"] == conftest.jpeg(31) and one["captions"] == ["who?"]
  assert "answers" not in one
  assert splits["test"].answers == splits["val"].answers != ()
  for file in tmp_path.glob("*2015*.json"):
    file.unlink()
  row = lambda n: {"image": _place("test", n, 2015)}  # noqa: E731
  _test(tmp_path, "vqa_test.json", row)
  assert list(_examples(_open(tmp_path)["test"])) == list(found["test"])
  (tmp_path / _place("test", 30, 2015)).unlink()
  with pytest.raises(errors.UserError, match="1 photos .* first test2015/COCO"):
    _open(tmp_path)


def test_questions_are_cleaned_as_blips_authors_do():
  """Spec `upop.md` 3.1."""
  assert vqa2.cleaned('Is it "A.M."? ') == "is it am?"
  assert vqa2.cleaned("word " * 60) == " ".join(["word"] * 50)


def test_what_is_wrong_is_named(tmp_path):
  with pytest.raises(errors.UserError, match="annotations.json and both"):
    _open(tmp_path)
  _photos(tmp_path)
  _lists(tmp_path)
  path = tmp_path / "vqa_train.json"
  good = path.read_text()
  photo = tmp_path / _place("val", 21)
  photo.rename(tmp_path / "elsewhere.jpg")
  with pytest.raises(errors.UserError, match="1 photos .* first val2014/COCO"):
    _open(tmp_path)
  (tmp_path / "elsewhere.jpg").rename(photo)
  for change, message in (
    (lambda rows: rows[1].pop("image"), "entry 2 is not one of VQAv2's ques"),
    (lambda rows: rows[2].update(answer=[]), "entry 3 .* answers are needed"),
    (lambda rows: rows.append(rows[0]), "the same question_id"),
    (lambda rows: rows.clear(), "neither a list"),
  ):
    rows = json.loads(good)
    change(rows)
    path.write_text(json.dumps(rows))
    with pytest.raises(errors.UserError, match=message):
      _open(tmp_path)

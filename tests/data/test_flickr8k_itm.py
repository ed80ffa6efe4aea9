"""Pairs of photos and sentences, beside either layout of Flickr8k."""

import json

import pytest

from comp_jax import errors
from comp_jax.data import flickr8k_itm, sources


@pytest.fixture
def pairs(official):
  """The official folder, each of its train and dev photos in two pairs."""
  rows = [
    {
      "image": f"{photo:04d}_abc.jpg",
      "sentence": f"thing {photo}" if label else "nothing",
      "label": label,
      "split": "train" if photo < 12 else "val",
    }
    for photo in range(15)
    for label in (1, 0)
  ]
  _write(official, rows)
  return official


def _write(folder, rows):
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / flickr8k_itm.FILE).write_text(lines)


def _open(folder):
  return sources.open_source("flickr8k_itm", dir=str(folder))


def _photos(split):
  examples = (split[i] for i in range(len(split)))
  return {example["concept"]: example["image"] for example in examples}


def test_the_official_photos_serve(pairs):
  splits = _open(pairs)
  photos = sources.open_source("flickr8k", dir=str(pairs))
  assert {name: len(split) for name, split in splits.items()} == {
    "train": 20,
    "select": 4,
    "val": 6,
  }
  for name, split in splits.items():
    assert _photos(split) == _photos(photos["dev" if name == "val" else name])
    for example in (split[i] for i in range(len(split))):
      text = f"thing {example['concept']}" if example["label"] else "nothing"
      assert example["captions"] == [text]


def test_new_photos_are_read_again(pairs):
  before = _photos(_open(pairs)["val"])
  photos = pairs / "Flicker8k_Dataset"
  changed = (photos / "0000_abc.jpg").read_bytes() + b"\0"
  (photos / "0012_abc.jpg").write_bytes(changed)
  assert _photos(_open(pairs)["val"]) == {**before, 12: changed}


def test_photos_that_are_not_there_are_named(pairs):
  (pairs / "Flicker8k_Dataset" / "0013_abc.jpg").unlink()
  with pytest.raises(errors.UserError, match=r"cannot read .*0013_abc\.jpg"):
    _open(pairs)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"label": 2}, "line 1: label is missing or wrong"),
    ({"image": 3}, "line 1: image is missing or wrong"),
    ({"image": "x.jpg"}, r"names 1 photos that .* lacks, first x\.jpg"),
    ({"split": "test"}, "line 1: split 'test'"),
  ],
)
def test_a_wrong_line_is_named(pairs, change, message):
  row = {"image": "0013_abc.jpg", "sentence": "x", "label": 1, "split": "val"}
  _write(pairs, [{**row, **change}])
  with pytest.raises(errors.UserError, match=message):
    _open(pairs)


def test_a_broken_photo_is_named(pairs):
  (pairs / "Flicker8k_Dataset" / "0013_abc.jpg").write_bytes(b"no picture")
  with pytest.raises(
    errors.UserError, match=r"0013_abc\.jpg is not a readable"
  ):
    _open(pairs)


def test_without_its_list_the_need_is_told(official):
  with pytest.raises(errors.UserError, match=r"flickr8k_itm\.jsonl \(lines"):
    _open(official)

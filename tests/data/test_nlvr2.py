"""NLVR2's formats, in miniature."""

import json

import numpy as np
import pytest
from PIL import Image

from comp_jax import errors
from comp_jax.data import pipelines, sources, tokenizers

SIZE = 16


def _statements(split: str) -> list[dict]:
  """Four statements about two pairs of images."""
  return [
    {
      "identifier": f"{split}-{pair}-0-{number}",
      "sentence": f'A "statement" {number}: about pair {pair}.',
      "label": "True" if number else "False",
      **({"directory": pair} if split == "train" else {}),
    }
    for pair in range(2)
    for number in range(2)
  ]


def _picture(path, shade):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(path)


@pytest.fixture
def official(tmp_path):
  for split, file in (
    ("train", "train.json"),
    ("dev", "dev.json"),
    ("test1", "test1.json"),
  ):
    rows = _statements(split)
    (tmp_path / file).write_text("\n".join(json.dumps(r) for r in rows))
    for pair in range(2):
      folder = tmp_path / "images" / split
      folder = folder / str(pair) if split == "train" else folder
      for image in (0, 1):
        name = f"{split}-{pair}-0-img{image}.png"
        _picture(folder / name, 100 * image + pair)
  return tmp_path


def _open(folder):
  return sources.open_source("nlvr2", dir=str(folder))


def test_the_official_files(official):
  splits = _open(official)
  assert {name: len(s) for name, s in splits.items()} == {
    "train": 2,
    "select": 2,
    "dev": 4,
    "test": 4,
  }
  # As BLIP's authors read them.
  captions = {splits["dev"][i]["captions"][0] for i in range(4)}
  assert captions == {
    f"a statement {number} about pair {pair}"
    for number in range(2)
    for pair in range(2)
  }
  # Both statements about a pair stay together.
  train = {splits["train"][i]["concept"] for i in range(2)}
  select = {splits["select"][i]["concept"] for i in range(2)}
  assert len(train) == len(select) == 1 and train != select
  assert {splits["dev"][i]["label"] for i in range(4)} == {0, 1}


def test_pairs_become_batches_in_their_order(official):
  tokenizer = tokenizers.train_wordpiece(["a statement about pair 0 1"], 60)
  batches = pipelines.eval_batches(
    _open(official)["dev"],
    tokenizer,
    batch_size=3,
    image_size=SIZE,
    text_length=12,
  )
  batch = batches[0]
  assert batch["image"].shape == (3, 2, SIZE, SIZE, 3)
  # The first image of a pair is dark, the second one light.
  assert np.all(batch["image"][:, 0] < 50) and np.all(batch["image"][:, 1] > 50)
  assert batch["label"].shape == (3,)
  train = pipelines.train_batches(
    _open(official)["train"],
    tokenizer,
    batch_size=2,
    image_size=SIZE,
    text_length=12,
    seed=0,
    augment=pipelines.AugmentSpec(),
  )
  assert train[0]["image"].shape == (2, 2, SIZE, SIZE, 3)


def test_the_lists_of_blips_authors(official):
  for split, file in (("train", "nlvr_train.json"), ("dev", "nlvr_dev.json")):
    rows = []
    for row in _statements(split):
      name = row["identifier"].rpartition("-")[0]
      folder = f"images/{split}"
      folder += f"/{row['directory']}" if split == "train" else ""
      images = [f"{folder}/{name}-img{i}.png" for i in (0, 1)]
      label = row["label"]
      rows.append(
        {"images": images, "sentence": row["sentence"], "label": label}
      )
    (official / file).write_text(json.dumps(rows))
  whole = _open(official)
  for name in ("train.json", "dev.json", "test1.json"):
    (official / name).unlink()
  lists = _open(official)
  assert set(lists) == {"train", "select", "dev"}
  for split in lists:
    assert len(lists[split]) == len(whole[split])
    for i in range(len(lists[split])):
      ours, theirs = lists[split][i], whole[split][i]
      assert ours["captions"] == theirs["captions"]
      assert ours["image2"] == theirs["image2"]
      assert ours["label"] == theirs["label"]


def test_missing_images_are_counted_and_named(official):
  for pair in range(2):
    (official / f"images/dev/dev-{pair}-0-img1.png").unlink()
  with pytest.raises(errors.UserError) as caught:
    _open(official)
  assert "2 images that the annotations name" in str(caught.value)
  assert "dev-0-0-img1.png" in str(caught.value)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{not json", "not JSON"),
    ('[{"images": ["a"], "sentence": "x", "label": "True"}]', "entry 1"),
    ('[{"images": ["a", "b"], "sentence": "x", "label": "Maybe"}]', "entry 1"),
    ("[]", "no statement"),
  ],
)
def test_what_is_no_statement_is_named(official, text, message):
  (official / "train.json").write_text(text)
  with pytest.raises(errors.UserError, match=message):
    _open(official)


def test_a_folder_without_the_files_says_which(tmp_path):
  with pytest.raises(errors.UserError, match="train.json and dev.json"):
    _open(tmp_path)


@pytest.mark.parametrize("swap", [0.0, 1.0])
def test_a_swapped_pair_is_told_of_the_other_way_round(official, swap):
  said = "the left image is darker than the right one, leftmost"
  file = official / "train.json"
  rows = [json.loads(x) for x in file.read_text().splitlines()]
  for row in rows:
    row["sentence"] = said
  file.write_text("\n".join(json.dumps(row) for row in rows))
  swapped = "the right image is darker than the left one, leftmost"
  tokenizer = tokenizers.train_wordpiece([said], 80)
  batch = pipelines.train_batches(
    _open(official)["train"],
    tokenizer,
    batch_size=2,
    image_size=SIZE,
    text_length=30,
    seed=0,
    augment=pipelines.AugmentSpec(swap=swap),
  )[0]
  ids, _ = tokenizer.encode([swapped if swap else said], 30)
  np.testing.assert_array_equal(batch["text_ids"], np.repeat(ids, 2, axis=0))
  brighter = batch["image"].astype(int).mean(axis=(2, 3, 4)).argmax(axis=1)
  np.testing.assert_array_equal(brighter, 0 if swap else 1)

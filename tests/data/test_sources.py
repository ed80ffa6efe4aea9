"""Builders and sources: splits, layouts, errors, killed builds."""

import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from comp_jax import errors
from comp_jax.data import emoji as emoji_module
from comp_jax.data import images, records, sources


def all_of(source):
  return [source[i] for i in range(len(source))]


def sha(text):
  return hashlib.sha256(text.encode()).hexdigest()


def test_emoji_splits(emoji):
  assert {name: len(s) for name, s in emoji.items()} == {
    "train": 2516,
    "select": 200,
    "test": 1321,
  }
  concepts = {n: {e["concept"] for e in all_of(s)} for n, s in emoji.items()}
  styles = {
    n: {e["id"].split("/")[1] for e in all_of(s)} for n, s in emoji.items()
  }
  assert len(concepts["select"]) == 100
  assert not concepts["train"] & concepts["select"]
  assert styles["train"] == styles["select"] == {"twitter", "google"}
  assert styles["test"] == {"fluent3d"}


def test_emoji_select_is_the_smallest_hashes(emoji):
  codes = {
    n: {e["id"].split("/")[0] for e in all_of(emoji[n])}
    for n in ("train", "select")
  }
  assert max(map(sha, codes["select"])) < min(map(sha, codes["train"]))


def test_emoji_examples(emoji):
  texts = {e["id"]: e["captions"] for e in all_of(emoji["test"])}
  assert texts["1f600/fluent3d"][0].startswith("grinning face: cheerful, ")
  assert all(len(captions) == 1 for captions in texts.values())
  for split in ("train", "select"):
    assert not any(
      "flag: france" in e["captions"][0].lower() for e in all_of(emoji[split])
    )


def test_no_country_flags(emoji):
  path = emoji_module.Emoji.own_source() / emoji_module.FILE
  rows = records.read_parquet(path, ("code", "subgroup"))
  flags = {r["code"] for r in rows if r["subgroup"] == "country flags"}
  seen = {
    e["id"].split("/")[0]
    for split in ("train", "select")
    for e in all_of(emoji[split])
  }
  assert flags and not flags & seen


def test_caption_without_keywords():
  assert emoji_module.caption("cat", ["pet", "tom"]) == "cat: pet, tom"
  assert emoji_module.caption("cat", []) == "cat"


def test_flickr8k_splits(flickr8k):
  assert {name: len(s) for name, s in flickr8k.items()} == {
    "train": 5000,
    "select": 1000,
    "dev": 1000,
  }
  ids = {n: {e["id"] for e in all_of(s)} for n, s in flickr8k.items()}
  assert len(ids["train"] | ids["select"] | ids["dev"]) == 7000
  assert max(map(sha, ids["select"])) < min(map(sha, ids["train"]))
  example = flickr8k["dev"][0]
  assert len(example["captions"]) == 5
  assert example["image"][:2] == b"\xff\xd8"  # Still the JPEG of the file.


def test_official_layout(official):
  splits = sources.open_source("flickr8k", dir=str(official))
  ids = {n: {e["id"] for e in all_of(s)} for n, s in splits.items()}
  train = [f"{i:04d}_abc.jpg" for i in range(12)]
  assert ids["select"] == set(sorted(train, key=sha)[:2])
  assert ids["train"] == set(train) - ids["select"]
  assert ids["dev"] == {"0012_abc.jpg", "0013_abc.jpg", "0014_abc.jpg"}
  assert ids["test"] == {"0015_abc.jpg", "0016_abc.jpg"}
  for example in all_of(splits["dev"]):
    name = example["id"]
    assert example["captions"] == [f"caption {c} of {name} ." for c in range(5)]
    photo = official / "Flicker8k_Dataset" / name
    assert example["image"] == photo.read_bytes()
    assert example["concept"] == int(name[:4])


def test_changed_source_is_built_again(official):
  sources.open_source("flickr8k", dir=str(official))
  path = official / "Flickr8k.token.txt"
  path.write_text(path.read_text().replace("caption 0", "words"))
  splits = sources.open_source("flickr8k", dir=str(official))
  assert splits["dev"][0]["captions"][0].startswith("words of")


def test_parquet_and_official_layout_hold_out_the_same(official, tmp_path):
  by_id = {}
  for name, source in sources.open_source(
    "flickr8k", dir=str(official)
  ).items():
    by_id |= {e["id"]: (name, e) for e in all_of(source)}
  rows = [
    {
      "image_id": key,
      "jpeg": e["image"],
      "captions": e["captions"],
      "split": "train" if name == "select" else name,
    }
    for key, (name, e) in sorted(by_id.items())
  ]
  pyarrow.parquet.write_table(
    pyarrow.Table.from_pylist(rows), tmp_path / "flickr8k_128px.parquet"
  )
  splits = sources.open_source("flickr8k", dir=str(tmp_path))
  assert {
    e["id"]: (name, e) for name, s in splits.items() for e in all_of(s)
  } == by_id


def test_out_of_range(official):
  source = sources.open_source("flickr8k", dir=str(official))["dev"]
  with pytest.raises(IndexError):
    source[3]


@pytest.mark.parametrize(
  "name, needs",
  [("flickr8k", "flickr8k_128px.parquet"), ("emoji", "emoji_64px.parquet")],
)
def test_missing_data_says_how_to_get_it(tmp_path, name, needs):
  with pytest.raises(errors.UserError) as e:
    sources.open_source(name, dir=str(tmp_path))
  message = str(e.value)
  assert "\n" not in message
  for part in (str(tmp_path), "--config.data.dir=", "COMP_JAX_DATA", needs):
    assert part in message


def test_no_folder_named():
  with pytest.raises(errors.UserError, match="Flickr8k.token.txt"):
    sources.open_source("flickr8k")


def test_environment_names_the_folder(official, monkeypatch):
  monkeypatch.setenv("COMP_JAX_DATA", str(official))
  assert len(sources.open_source("flickr8k")["dev"]) == 3
  # It holds no emoji: the repository's copy serves.
  assert len(sources.open_source("emoji")["test"]) == 1321


def test_unknown_name():
  with pytest.raises(errors.UserError, match="'imagenet'.*emoji, flickr30k"):
    sources.open_source("imagenet")


def built(cache_dir):
  return [
    p
    for p in pathlib.Path(cache_dir).rglob("*")
    if p.is_file() and p.name != "lock"
  ]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("COMP_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def test_corrupt_parquet(tmp_path, own_cache):
  (tmp_path / "flickr8k_128px.parquet").write_bytes(b"PAR1 not really PAR1")
  with pytest.raises(errors.UserError, match="not a readable Parquet"):
    sources.open_source("flickr8k", dir=str(tmp_path))
  assert not built(own_cache)


def test_parquet_of_something_else(tmp_path):
  table = pyarrow.table({"x": [1]})
  pyarrow.parquet.write_table(table, tmp_path / "emoji_64px.parquet")
  with pytest.raises(errors.UserError, match="no column code, keywords"):
    sources.open_source("emoji", dir=str(tmp_path))


def test_corrupt_photo(official, own_cache):
  photo = official / "Flicker8k_Dataset" / "0013_abc.jpg"
  photo.write_bytes(photo.read_bytes()[:200])
  with pytest.raises(errors.UserError, match="0013_abc.jpg is not a readable"):
    sources.open_source("flickr8k", dir=str(official))
  assert not built(own_cache)


def test_missing_photo(official):
  (official / "Flicker8k_Dataset" / "0013_abc.jpg").unlink()
  with pytest.raises(errors.UserError, match="cannot read the photo.*0013_abc"):
    sources.open_source("flickr8k", dir=str(official))


def test_missing_caption(official):
  path = official / "Flickr8k.token.txt"
  path.write_text(path.read_text().replace("0003_abc.jpg#4\t", "x.jpg#4\t"))
  with pytest.raises(errors.UserError, match="5 captions, first 0003_abc.jpg"):
    sources.open_source("flickr8k", dir=str(official))


def test_unwritable_cache(official, tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("COMP_JAX_CACHE", str(tmp_path / "file"))
  with pytest.raises(errors.UserError, match="COMP_JAX_CACHE"):
    sources.open_source("flickr8k", dir=str(official))


def test_damaged_cache_names_the_folder(official, own_cache):
  sources.open_source("flickr8k", dir=str(official))
  (path,) = own_cache.rglob("*dev.array_record*")
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(errors.UserError, match="Delete that folder"):
    sources.open_source("flickr8k", dir=str(official))
  shutil.rmtree(path.parent)
  assert len(sources.open_source("flickr8k", dir=str(official))["dev"]) == 3


class Counted(list):
  """A source that counts how often it is asked."""

  asked = 0

  def __getitem__(self, index):
    self.asked += 1
    return super().__getitem__(index)


@pytest.mark.parametrize("photos", [10, 3, 0])
def test_decoded_pictures_are_kept_up_to_the_budget(toy_source, photos):
  source = Counted(toy_source)
  # The photos are 20 x 16 pixels of three bytes.
  decoded = sources.Decoded(source, budget=photos * 20 * 16 * 3)
  for _ in range(2):
    for index, example in enumerate(toy_source):
      seen = decoded[index]
      np.testing.assert_array_equal(
        np.asarray(seen["image"]),
        np.asarray(images.decode(example["image"])),
      )
      assert seen["captions"] == example["captions"]
  assert source.asked == 10 + (10 - photos)
  assert isinstance(toy_source[0]["image"], bytes)  # Not changed in place.


def run(code, **env):
  return subprocess.run(
    [sys.executable, "-c", code],
    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **env},
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_killed_build_leaves_nothing_in_the_way(official, own_cache):
  killed = run(f"""
import os, signal
from comp_jax.data import images, records, sources
calls = []
def check(data, where):
  calls.append(where)
  if len(calls) == 13:
    os.kill(os.getpid(), signal.SIGKILL)
  return data
records.checked_image = check
sources.open_source("flickr8k", dir={str(official)!r})
""")
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  assert list(own_cache.rglob("incomplete.*"))
  splits = sources.open_source("flickr8k", dir=str(official))
  assert {n: len(s) for n, s in splits.items()} == {
    "train": 10,
    "select": 2,
    "dev": 3,
    "test": 2,
  }
  assert not list(own_cache.rglob("incomplete.*"))
  assert not list(own_cache.rglob("downloads"))


def test_silent_and_without_tensorflow(official, own_cache):
  done = run(f"""
import sys
from comp_jax.data import pipelines, sources, tokenizers
splits = sources.open_source("flickr8k", dir={str(official)!r})
tokenizer = tokenizers.train_wordpiece(["caption of a photo 0123456789"], 99)
ds = pipelines.train_batches(
  splits["train"], tokenizer, batch_size=2, image_size=8, text_length=8, seed=0
)
next(pipelines.stage_iterator(ds, start=0, steps_per_stage=2))
loaded = {{m.split(".")[0] for m in sys.modules}}
assert "tensorflow" not in loaded and "torch" not in loaded
""")
  assert done.returncode == 0, done.stderr
  assert done.stdout == ""
  assert "it/s" not in done.stderr and "splits" not in done.stderr

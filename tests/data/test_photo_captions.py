"""Karpathy's files and BLIP's lists of them, in miniature."""

import json

import pytest

from comp_jax import errors
from comp_jax.data import records, sources, texts
from tests.data import conftest

PHOTOS = {
  "train": [f"t{i}.jpg" for i in range(10)],
  "restval": ["r0.jpg", "r1.jpg"],
  "val": ["v0.jpg", "v1.jpg", "v2.jpg"],
  "test": ["e0.jpg", "e1.jpg"],
}
NAMES = {"coco": ("dataset_coco.json", "coco_karpathy_{}.json")}
NAMES["coco_caption"] = NAMES["coco"]
NAMES["flickr30k"] = ("dataset_flickr30k.json", "flickr30k_{}.json")


def _captions(name):
  # One photo has more than five, as some of COCO's.
  count = 6 if name == "v0.jpg" else 5
  return [f"Caption {i}: of {name[:2]}!" for i in range(count)]


def _place(data, split):
  """Where a photo lies, below the folder."""
  if data == "flickr30k":
    return "flickr30k-images"
  return "train2014" if split == "train" else "val2014"


def _photos(folder, data):
  number = 0
  for split, names in PHOTOS.items():
    (folder / _place(data, split)).mkdir(exist_ok=True)
    for name in names:
      path = folder / _place(data, split) / name
      path.write_bytes(conftest.jpeg(number := number + 1))


def _whole(folder, data):
  images = []
  for split, names in PHOTOS.items():
    for name in names:
      entry = {"filename": name, "split": split}
      entry["sentences"] = [{"raw": text} for text in _captions(name)]
      if data != "flickr30k":
        entry["filepath"] = _place(data, split)
      images.append(entry)
  text = json.dumps({"images": images, "dataset": data})
  (folder / NAMES[data][0]).write_text(text)


def _lists(folder, data):
  rows = {"train": [], "val": [], "test": []}
  for split, names in PHOTOS.items():
    for name in names:
      image = f"{_place(data, split)}/{name}"
      if split in ("train", "restval"):
        rows["train"] += [
          {"image": image, "caption": text, "image_id": name}
          for text in _captions(name)
        ]
      else:
        rows[split].append({"image": image, "caption": _captions(name)})
  for split, entries in rows.items():
    (folder / NAMES[data][1].format(split)).write_text(json.dumps(entries))


def _open(folder, data):
  return sources.open_source(data, dir=str(folder))


@pytest.mark.parametrize("data", list(NAMES))
def test_both_layouts_give_the_same_examples(tmp_path, data):
  found = []
  for write in (_whole, _lists):
    folder = tmp_path / write.__name__
    folder.mkdir()
    _photos(folder, data)
    write(folder, data)
    splits = _open(folder, data)
    found.append(
      {
        name: {
          (example := source[i])["id"]: example for i in range(len(source))
        }
        for name, source in splits.items()
      }
    )
  assert found[0] == found[1]
  assert {name: len(split) for name, split in found[0].items()} == {
    "train": 10,
    "select": 2,
    "val": 3,
    "test": 2,
  }
  every = [example for split in found[0].values() for example in split.values()]
  assert len({example["concept"] for example in every}) == len(every)
  val = found[0]["val"]["v0.jpg"]
  assert val["captions"] == [f"caption {i} of v0" for i in range(5)]
  assert val["image"] == conftest.jpeg(13)
  # Captioning alone is judged by all of them, as they were written.
  expected = _captions("v0.jpg") if data == "coco_caption" else None
  assert val.get("references") == expected


def test_captions_are_cleaned_as_blips_authors_do():
  """Spec `upop.md` 3.1."""
  text = 'A (red) bus: "No. 5"; it\'s ~fast~!\n'
  assert texts.cleaned(text, 30) == "a red bus no 5 it's fast"
  assert texts.cleaned("word " * 40, 30) == " ".join(["word"] * 30)


def test_one_missing_photo_does_not_hide_where_the_others_are(
  tmp_path, monkeypatch
):
  """Whichever it is; also where a stray copy lies beside the annotations."""
  _photos(tmp_path, "flickr30k")
  _whole(tmp_path, "flickr30k")
  folder = tmp_path / "flickr30k-images"
  # Every photo is looked at, then one in two.
  for sampled in (500, 8):
    monkeypatch.setattr(records, "_SAMPLED", sampled)
    for name in ("t0.jpg", "t1.jpg", "e1.jpg"):
      (folder / name).rename(tmp_path / name)
      with pytest.raises(errors.UserError, match=f" 1 photos .*first {name}"):
        _open(tmp_path, "flickr30k")
      (tmp_path / name).rename(folder / name)
  for path in folder.iterdir():
    path.unlink()
  with pytest.raises(errors.UserError, match="17 photos .* first t0.jpg, t1"):
    _open(tmp_path, "flickr30k")


def test_what_is_wrong_is_named(tmp_path):
  with pytest.raises(errors.UserError, match="dataset_coco.json, or coco_karp"):
    _open(tmp_path, "coco")
  _photos(tmp_path, "coco")
  _whole(tmp_path, "coco")
  path = tmp_path / "dataset_coco.json"
  good = path.read_text()
  for name in ("v1.jpg", "v2.jpg"):
    (tmp_path / "val2014" / name).rename(tmp_path / name)
  with pytest.raises(errors.UserError, match="2 photos .* val2014/v1.jpg"):
    _open(tmp_path, "coco")
  for name in ("v1.jpg", "v2.jpg"):
    (tmp_path / name).rename(tmp_path / "val2014" / name)
  for change, message in (
    (lambda images: images[0].pop("filename"), "entry 1 is not a photo"),
    (lambda images: images[1].update(split="dev"), "entry 2 is not a photo"),
    (lambda images: images[13]["sentences"].pop(), "1 photos .* first v1.jpg"),
    (lambda images: images.append(images[0] | {"split": "test"}), "more than"),
    (lambda images: images.clear(), "neither a list"),
  ):
    content = json.loads(good)
    change(content["images"])
    path.write_text(json.dumps(content))
    with pytest.raises(errors.UserError, match=message):
      _open(tmp_path, "coco")
  path.write_text("{")
  with pytest.raises(errors.UserError, match="not readable as JSON"):
    _open(tmp_path, "coco")

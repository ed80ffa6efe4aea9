"""NLVR2: a sentence about two images, true or false.

Read are the official files (JSON lines; images by identifier) and the lists
that BLIP's authors made of them (spec `upop.md` part 5).
"""

import json
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from comp_jax import errors
from comp_jax.data import records, texts

SELECT_PAIRS = 1000
_WORDS = 40
# Split -> official file, its image folder, BLIP's file.
_FILES = {
  "train": ("train.json", "train", "nlvr_train.json"),
  "dev": ("dev.json", "dev", "nlvr_dev.json"),
  "test": ("test1.json", "test1", "nlvr_test.json"),
}
_LABELS = {"true": 1, "false": 0}
_LISTED = 5


class Nlvr2(records.Builder):
  """Splits `train`, `select` and `dev`; `test` too where its file is there.

  `select` holds the train statements of the SELECT_PAIRS image pairs with the
  smallest SHA-256 of their names: no pair of it is trained on.
  """

  # 1.1.0: sentences are cleaned as BLIP's authors do.
  VERSION = tfds.core.Version("1.1.0")
  NEEDS = (
    "NLVR2's train.json and dev.json (test1.json too) beside the folder images/"
    " with train/, dev/ and test1/; or nlvr_train.json and nlvr_dev.json"
    " (nlvr_test.json too), whose image paths are relative to DIR"
  )

  @classmethod
  def source_fingerprint(cls, source: pathlib.Path) -> str | None:
    files = _annotations(source)
    if not {"train", "dev"} <= files.keys():
      return None
    # The folder stands for a hundred thousand images.
    return records.fingerprint(list(files.values()), str(source.resolve()))

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Sentences about pairs of images.",
      features=records.features(None, labelled=True, images=2),
      homepage="https://lil.nlp.cornell.edu/nlvr/",
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    splits = {
      split: _rows(path, split, self._source)
      for split, path in _annotations(self._source).items()
    }
    missing = sorted(
      {
        str(image)
        for rows in splits.values()
        for row in rows
        for image in row["images"]
        if not image.is_file()
      }
    )
    if missing:
      raise errors.UserError(
        f"{self._source}: {len(missing)} images that the annotations name are"
        f" missing, first {', '.join(missing[:_LISTED])}."
      )
    train = splits.pop("train")
    held_out = records.hold_out((row["pair"] for row in train), SELECT_PAIRS)
    splits["train"] = [r for r in train if r["pair"] not in held_out]
    splits["select"] = [r for r in train if r["pair"] in held_out]
    pairs = sorted({r["pair"] for rows in splits.values() for r in rows})
    concepts = {pair: index for index, pair in enumerate(pairs)}
    return {
      name: self._generate_examples(rows, concepts)
      for name, rows in splits.items()
    }

  def _generate_examples(
    self, rows: list[dict], concepts: dict[str, int]
  ) -> Iterator[tuple[str, dict]]:
    for row in rows:
      images = [
        records.checked_image(path.read_bytes(), str(path))
        for path in row["images"]
      ]
      yield (
        row["id"],
        {
          "image": images[0],
          "image2": images[1],
          "captions": [texts.cleaned(row["sentence"], _WORDS)],
          "concept": concepts[row["pair"]],
          "id": row["id"],
          "label": row["label"],
        },
      )


def _annotations(source: pathlib.Path) -> dict[str, pathlib.Path]:
  """The annotation file of each split that is there."""
  found = {}
  for split, (official, _, blip) in _FILES.items():
    for name in (official, blip):
      if (source / name).is_file():
        found[split] = source / name
        break
  return found


def _rows(path: pathlib.Path, split: str, source: pathlib.Path) -> list[dict]:
  """The statements of a file: id, pair, sentence, label, two image paths."""
  try:
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
      entries = json.loads(text)
    else:
      entries = [json.loads(x) for x in text.splitlines() if x.strip()]
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f"{path}: not JSON, neither a list nor one object per line ({error})."
    ) from error
  rows = []
  for number, entry in enumerate(entries, 1):
    try:
      label = _LABELS[str(entry["label"]).lower()]
      sentence = entry["sentence"]
      images = (
        [source / name for name in entry["images"]]
        if "images" in entry
        else _official_images(entry, split, source)
      )
      if len(images) != 2 or not isinstance(sentence, str):
        raise ValueError("two images and a sentence are needed")
    except (KeyError, TypeError, ValueError) as error:
      raise errors.UserError(
        f"{path}: entry {number} is not a statement of NLVR2 ({error!r}); it"
        " has a sentence, a label True or False, and an identifier or two"
        " images."
      ) from error
    rows.append(
      {
        "id": f"{split}-{number:06d}",
        "pair": f"{images[0]} {images[1]}".replace(f"{source}/", ""),
        "sentence": sentence,
        "label": label,
        "images": images,
      }
    )
  if not rows:
    raise errors.UserError(f"{path} has no statement.")
  return rows


def _official_images(
  entry: dict, split: str, source: pathlib.Path
) -> list[pathlib.Path]:
  """`dev-850-0-1` is a statement about `dev-850-0-img0.png` and `-img1.png`."""
  name = entry["identifier"].rpartition("-")[0]
  folder = source / "images" / _FILES[split][1]
  if "directory" in entry:
    folder = folder / str(entry["directory"])
  return [folder / f"{name}-img{index}.png" for index in (0, 1)]

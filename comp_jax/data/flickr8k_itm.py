"""Image-text matching on Flickr8k: a photo, a sentence, do they match?"""

import json
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from comp_jax import errors
from comp_jax.data import flickr8k, records

FILE = "flickr8k_itm.jsonl"
_KEYS = {"image": str, "sentence": str, "label": int, "split": str}


class Flickr8kItm(records.Builder):
  """Splits `train`, `select` and `val`, each balanced or nearly so.

  `select` holds the train pairs of the photos that `flickr8k.Flickr8k` holds
  out: no photo of it is trained on in either data set.
  """

  NEEDS = (
    f"{FILE} (lines with image, sentence, label 0 or 1, and split train or val)"
    f" beside {flickr8k.Flickr8k.NEEDS}"
  )

  @classmethod
  def source_fingerprint(cls, source: pathlib.Path) -> str | None:
    photos = flickr8k.Flickr8k.source_fingerprint(source)
    if photos is None or not (source / FILE).is_file():
      return None
    return records.fingerprint([source / FILE], extra=photos)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Photos and sentences that match or do not.",
      features=records.features("jpeg", labelled=True),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    pairs = _pairs(self._source / FILE)
    photos, where = flickr8k.photos(self._source)
    by_id = {row["image_id"]: row for row in photos}
    missing = sorted({p["image"] for p in pairs} - by_id.keys())
    if missing:
      raise errors.UserError(
        f"{self._source / FILE} names {len(missing)} photos that {where} lacks,"
        f" first {', '.join(missing[:5])}."
      )
    held_out = records.hold_out(
      (row["image_id"] for row in photos if row["split"] == "train"),
      flickr8k.SELECT_IMAGES,
    )
    concepts = {image_id: i for i, image_id in enumerate(sorted(by_id))}
    splits: dict[str, list[dict]] = {"train": [], "select": [], "val": []}
    for number, pair in enumerate(pairs):
      split = pair["split"]
      if split == "train" and pair["image"] in held_out:
        split = "select"
      if split not in splits:
        raise errors.UserError(
          f"{self._source / FILE}: line {number + 1}: split {split!r}; it is"
          " train or val."
        )
      splits[split].append({"number": number, **pair})
    return {
      name: self._generate_examples(rows, by_id, concepts, where)
      for name, rows in splits.items()
    }

  def _generate_examples(
    self,
    rows: list[dict],
    photos: dict[str, dict],
    concepts: dict[str, int],
    where: str,
  ) -> Iterator[tuple[str, dict]]:
    for row in rows:
      key = f"{row['number']:06d}"
      yield (
        key,
        {
          "image": records.checked_image(
            flickr8k.picture(photos[row["image"]]), f"{where}: {row['image']}"
          ),
          "captions": [row["sentence"]],
          "concept": concepts[row["image"]],
          "id": key,
          "label": row["label"],
        },
      )


def _pairs(path: pathlib.Path) -> list[dict]:
  """The rows of the file, each checked."""
  rows = []
  for number, line in enumerate(
    path.read_text(encoding="utf-8").splitlines(), 1
  ):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:
      raise errors.UserError(f"{path}: line {number} is not JSON.") from error
    bad = [
      key
      for key, kind in _KEYS.items()
      if not isinstance(row, dict) or not isinstance(row.get(key), kind)
    ]
    if bad or row["label"] not in (0, 1):
      raise errors.UserError(
        f"{path}: line {number}: {', '.join(bad) or 'label'} is missing or"
        " wrong; a line holds image, sentence, label (0 or 1) and split."
      )
    rows.append({key: row[key] for key in _KEYS})
  return rows

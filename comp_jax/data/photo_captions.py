"""COCO and Flickr30K: photos with their captions."""

import pathlib
from collections.abc import Iterator
from typing import ClassVar

import tensorflow_datasets as tfds

from comp_jax import errors
from comp_jax.data import karpathy, records, texts

SELECT_PHOTOS = 1000
# Of a photo that is evaluated; a few of COCO's have more.
CAPTIONS = 5
_WORDS = 30


class _PhotoCaptions(records.Builder, skip_registration=True):
  """Splits `train`, `select` and `val`; `test` too where its list is there.

  `select` is the SELECT_PHOTOS train photos with the smallest SHA-256 of
  their file's name, taken out of `train`. Training photos keep all of their
  captions, the others the first CAPTIONS.
  """

  LAYOUT: ClassVar[karpathy.Layout]
  # Whether photos bring all of their captions as people wrote them too.
  REFERENCES: ClassVar[bool] = False

  @classmethod
  def source_fingerprint(cls, source: pathlib.Path) -> str | None:
    files = cls.LAYOUT.files(source)
    if not files:
      return None
    # The folder stands for a hundred thousand photos.
    return records.fingerprint(list(files.values()), str(source.resolve()))

  def _info(self) -> tfds.core.DatasetInfo:
    more = {"references": records.texts()} if self.REFERENCES else {}
    return tfds.core.DatasetInfo(
      builder=self,
      description="Photos with captions, in Karpathy's splits.",
      features=records.features("jpeg", **more),
      homepage="https://cs.stanford.edu/people/karpathy/deepimagesent/",
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    splits = karpathy.read(self._source, self.LAYOUT)
    absent = [name for name in ("train", "val") if name not in splits]
    if absent:
      raise errors.UserError(
        f"{self._source}: no photo in the split {' and '.join(absent)}."
      )
    names = sorted({p.name for photos in splits.values() for p in photos})
    count = sum(len(photos) for photos in splits.values())
    if len(names) != count:
      raise errors.UserError(
        f"{self._source}: {count - len(names)} photos are in more than one"
        " split, or under more than one path."
      )
    held_out = records.hold_out(
      (photo.name for photo in splits["train"]), SELECT_PHOTOS
    )
    train = splits.pop("train")
    splits["select"] = [p for p in train if p.name in held_out]
    short = [
      p.name
      for photos in splits.values()
      for p in photos
      if len(p.captions) < CAPTIONS
    ]
    if short:
      raise errors.UserError(
        f"{self._source}: {len(short)} photos to evaluate have fewer than"
        f" {CAPTIONS} captions, first {short[0]}."
      )
    splits["train"] = [p for p in train if p.name not in held_out]
    concepts = {name: index for index, name in enumerate(names)}
    return {
      name: self._generate_examples(
        photos, concepts, None if name == "train" else CAPTIONS
      )
      for name, photos in splits.items()
    }

  def _generate_examples(
    self,
    photos: list[karpathy.Photo],
    concepts: dict[str, int],
    limit: int | None,
  ) -> Iterator[tuple[str, dict]]:
    for photo in photos:
      image = records.checked_image(photo.path.read_bytes(), str(photo.path))
      more = {"references": photo.captions} if self.REFERENCES else {}
      yield (
        photo.name,
        {
          "image": image,
          "captions": [
            texts.cleaned(text, _WORDS) for text in photo.captions[:limit]
          ],
          "concept": concepts[photo.name],
          "id": photo.name,
          **more,
        },
      )


class Coco(_PhotoCaptions):
  """COCO in Karpathy's splits."""

  LAYOUT = karpathy.COCO
  NEEDS = f"COCO: {karpathy.COCO.needs}"


class CocoCaption(Coco):
  """COCO for captioning: what is written is held against all captions."""

  REFERENCES = True


class Flickr30k(_PhotoCaptions):
  """Flickr30K in Karpathy's splits."""

  LAYOUT = karpathy.FLICKR30K
  NEEDS = f"Flickr30K: {karpathy.FLICKR30K.needs}"

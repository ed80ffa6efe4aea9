"""Karpathy's splits of COCO and Flickr30K: photos with their captions.

Read are his own files and the lists that BLIP's authors made of them (spec
`upop.md` part 5).
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from comp_jax import errors
from comp_jax.data import records

# His split -> ours: BLIP's train list has the photos that COCO left over.
_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Where a data set keeps its annotations and photos.

  Attributes:
    whole: Karpathy's file.
    lists: pattern of BLIP's files, `{}` for the split.
    roots: folders of the photos; the first one that has the first photo
      counts.
  """

  whole: str
  lists: str
  roots: Sequence[str]

  def files(self, source: pathlib.Path) -> dict[str, pathlib.Path]:
    """The annotation files that are there: `whole`, or one per split.

    Empty where the splits for training and choosing are not complete.
    """
    if (source / self.whole).is_file():
      return {"whole": source / self.whole}
    lists = {s: source / self.lists.format(s) for s in ("train", "val", "test")}
    found = {split: path for split, path in lists.items() if path.is_file()}
    return found if {"train", "val"} <= found.keys() else {}

  @property
  def needs(self) -> str:
    """What a folder must hold."""
    return (
      f"{self.whole}, or {self.lists.format('train')} and"
      f" {self.lists.format('val')} ({self.lists.format('test')} too), and the"
      f" photos below it or {', '.join(r for r in self.roots if r != '.')}/"
    )


COCO = Layout(
  whole="dataset_coco.json",
  lists="coco_karpathy_{}.json",
  roots=(".", "images"),
)
FLICKR30K = Layout(
  whole="dataset_flickr30k.json",
  lists="flickr30k_{}.json",
  roots=(".", "flickr30k-images", "images"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photo:
  """A photo and what people wrote about it.

  Attributes:
    name: of the file, which tells photos apart.
    path: of the file.
    captions: as they were written.
  """

  name: str
  path: pathlib.Path
  captions: tuple[str, ...]


def read(source: pathlib.Path, layout: Layout) -> dict[str, list[Photo]]:
  """The photos of each split, in the order of the files.

  Raises:
    UserError: files of another format, or photos that are missing.
  """
  found: dict[str, dict[str, list[str]]] = {}
  for split, path in layout.files(source).items():
    for number, entry in enumerate(records.read_entries(path, "images"), 1):
      try:
        part, image, captions = _row(entry, split)
      except (KeyError, TypeError, ValueError) as error:
        raise errors.UserError(
          f"{path}: entry {number} is not a photo with captions ({error!r})."
        ) from error
      # BLIP's train list has one entry per caption.
      found.setdefault(part, {}).setdefault(image, []).extend(captions)
  images = [image for photos in found.values() for image in photos]
  folder = records.photo_folder(source, layout.roots, images)
  return {
    split: [
      Photo(
        name=pathlib.PurePosixPath(image).name,
        path=folder / image,
        captions=tuple(captions),
      )
      for image, captions in photos.items()
    ]
    for split, photos in found.items()
  }


def _row(entry: Mapping[str, Any], split: str) -> tuple[str, str, list[str]]:
  """The split, the image's path and the captions of an entry."""
  if split == "whole":
    image = entry["filename"]
    if "filepath" in entry:
      image = f"{entry['filepath']}/{image}"
    captions = [sentence["raw"] for sentence in entry["sentences"]]
    split = _SPLITS[entry["split"]]
  else:
    image, captions = entry["image"], entry["caption"]
    captions = [captions] if isinstance(captions, str) else list(captions)
  texts = [image, *captions]
  if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
    raise ValueError("an image and at least one caption are needed")
  return split, image, captions

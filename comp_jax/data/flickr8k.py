"""Flickr8k: photos with five captions each."""

import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from comp_jax import errors
from comp_jax.data import records

FILE = "flickr8k_128px.parquet"
SELECT_IMAGES = 1000
CAPTIONS = 5
_COLUMNS = ("image_id", "jpeg", "captions", "split")
# The archives unpack to these names, with and without their own top folder.
_IMAGE_FOLDERS = (
  "Flicker8k_Dataset",
  "Images",
  "Flickr8k_Dataset/Flicker8k_Dataset",
)
_TEXT_FOLDERS = (".", "Flickr8k_text")
_TOKENS = "Flickr8k.token.txt"
_SPLIT_FILE = "Flickr_8k.{}Images.txt"


class Flickr8k(records.Builder):
  """Splits `train`, `select` and `dev`; `test` too where its list is there.

  `select` is the SELECT_IMAGES train photos with the smallest SHA-256 of
  their image id, taken out of `train`. The ids are the same in both layouts,
  and so is the choice.
  """

  NEEDS = (
    f"{FILE}, or the official Flickr8k: the photos in {_IMAGE_FOLDERS[0]}/ or"
    f" {_IMAGE_FOLDERS[1]}/, {_TOKENS}, {_SPLIT_FILE.format('train')} and"
    f" {_SPLIT_FILE.format('dev')}"
  )

  @classmethod
  def source_fingerprint(cls, source: pathlib.Path) -> str | None:
    if (source / FILE).is_file():
      return records.fingerprint([source / FILE])
    layout = _official_layout(source)
    if layout is None:
      return None
    images, text = layout
    # Names and sizes stand for a gigabyte of photos.
    listing = "\n".join(
      f"{path.name} {path.stat().st_size}" for path in sorted(images.iterdir())
    )
    files = [text / _TOKENS] + [
      path
      for split in ("train", "dev", "test")
      if (path := text / _SPLIT_FILE.format(split)).is_file()
    ]
    return records.fingerprint(files, extra=listing)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Photos from Flickr with five captions each.",
      features=records.features("jpeg"),
      homepage="https://hockenmaier.cs.illinois.edu/8k-pictures.html",
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    rows, where = photos(self._source)
    by_id = {row["image_id"]: row for row in rows}
    if len(by_id) != len(rows):
      raise errors.UserError(
        f"{where} lists {len(rows) - len(by_id)} image ids more than once."
      )
    bad = [r["image_id"] for r in rows if len(r["captions"]) != CAPTIONS]
    if bad:
      raise errors.UserError(
        f"{where}: {len(bad)} images do not have {CAPTIONS} captions, first"
        f" {bad[0]}."
      )
    splits: dict[str, list[dict]] = {}
    for row in rows:
      splits.setdefault(row["split"], []).append(row)
    for name in ("train", "dev"):
      if name not in splits:
        raise errors.UserError(f"{where} has no image in the split {name}.")
    held_out = records.hold_out(
      (row["image_id"] for row in splits["train"]), SELECT_IMAGES
    )
    train = splits.pop("train")
    splits["train"] = [r for r in train if r["image_id"] not in held_out]
    splits["select"] = [r for r in train if r["image_id"] in held_out]
    concepts = {image_id: i for i, image_id in enumerate(sorted(by_id))}
    return {
      name: self._generate_examples(split, concepts, where)
      for name, split in splits.items()
    }

  def _generate_examples(
    self, rows: list[dict], concepts: dict[str, int], where: str
  ) -> Iterator[tuple[str, dict]]:
    for row in rows:
      key = row["image_id"]
      yield (
        key,
        {
          "image": records.checked_image(picture(row), f"{where}: {key}"),
          "captions": row["captions"],
          "concept": concepts[key],
          "id": key,
        },
      )


def photos(source: pathlib.Path) -> tuple[list[dict], str]:
  """What a folder says of its photos, and where it says so.

  Returns:
    Rows with `image_id`, `captions` and `split`, of which `picture` reads the
    photo; and the file or folder that messages name.

  Raises:
    UserError: a file that cannot be read, or a list that does not fit.
  """
  path = source / FILE
  if path.is_file():
    return records.read_parquet(path, _COLUMNS), str(path)
  return _official_rows(source), str(source)


def picture(row: dict) -> bytes:
  """The file of a row's photo.

  Raises:
    UserError: it cannot be read.
  """
  return row["jpeg"] if "jpeg" in row else _read_photo(row["path"])


def _official_layout(
  source: pathlib.Path,
) -> tuple[pathlib.Path, pathlib.Path] | None:
  """The image folder and the text folder; None if either is missing."""
  images = [p for f in _IMAGE_FOLDERS if (p := source / f).is_dir()]
  texts = [
    p
    for f in _TEXT_FOLDERS
    if (p := source / f).is_dir()
    and all(
      (p / name).is_file()
      for name in (
        _TOKENS,
        _SPLIT_FILE.format("train"),
        _SPLIT_FILE.format("dev"),
      )
    )
  ]
  return (images[0], texts[0]) if images and texts else None


def _official_rows(source: pathlib.Path) -> list[dict]:
  """Rows of the official layout, photos by path, in the order of its lists."""
  images, text = _official_layout(source)
  captions: dict[str, list[str]] = {}
  for line in _lines(text / _TOKENS):
    # `1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress ...`
    key, _, caption = line.partition("\t")
    captions.setdefault(key.rpartition("#")[0], []).append(caption.strip())
  rows = []
  for split in ("train", "dev", "test"):
    path = text / _SPLIT_FILE.format(split)
    for image_id in _lines(path) if path.is_file() else ():
      if image_id not in captions:
        raise errors.UserError(
          f"{path} lists {image_id}, which has no caption in {text / _TOKENS}."
        )
      rows.append(
        {
          "image_id": image_id,
          "path": images / image_id,
          "captions": captions[image_id],
          "split": split,
        }
      )
  return rows


def _lines(path: pathlib.Path) -> list[str]:
  try:
    text = path.read_text(encoding="utf-8")
  except UnicodeDecodeError as e:
    raise errors.UserError(f"{path} is not a text file in UTF-8.") from e
  return [line.strip() for line in text.splitlines() if line.strip()]


def _read_photo(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as e:
    raise errors.UserError(
      f"cannot read the photo {path} ({e.strerror}); unpack the Flickr8k"
      " image archive there."
    ) from e

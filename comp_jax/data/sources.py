"""Data sets by name, prepared on first use and read by index.

A data set is found in `config.data.dir`, else in the folder that the variable
COMP_JAX_DATA names. Its prepared form lies under ~/.cache/comp_jax (or
COMP_JAX_CACHE), in a folder named by a digest of the source, so two sources
never share one.
"""

import bisect
import contextlib
import fcntl
import itertools
import os
import pathlib
import shutil
import typing
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds
from PIL import Image

from comp_jax import errors
from comp_jax.data import (
  easy_vqa,
  emoji,
  flickr8k,
  flickr8k_itm,
  images,
  nlvr2,
  photo_captions,
  records,
  vqa2,
)

BUILDERS: dict[str, type[records.Builder]] = {
  "coco": photo_captions.Coco,
  "coco_caption": photo_captions.CocoCaption,
  "easy_vqa": easy_vqa.EasyVqa,
  "emoji": emoji.Emoji,
  "flickr30k": photo_captions.Flickr30k,
  "flickr8k": flickr8k.Flickr8k,
  "flickr8k_itm": flickr8k_itm.Flickr8kItm,
  "nlvr2": nlvr2.Nlvr2,
  "vqa2": vqa2.Vqa2,
}


class Example(typing.TypedDict):
  """One picture, or a pair, with its texts."""

  image: bytes | Image.Image  # Encoded (JPEG, PNG or WebP), or decoded.
  captions: list[str]
  concept: int  # Equal numbers belong together.
  id: str
  label: typing.NotRequired[int]  # What is to be predicted.
  # The second picture of a pair.
  image2: typing.NotRequired[bytes | Image.Image]
  # All captions of the picture, as they were written.
  references: typing.NotRequired[list[str]]
  # To the question that is the caption, one by each annotator, and what each
  # of them weighs in the loss.
  answers: typing.NotRequired[list[str]]
  weight: typing.NotRequired[float]
  # What train answers most often to the same words.
  blind: typing.NotRequired[str]


def _texts(values) -> list[str]:
  return [value.decode() for value in values]


# What only some data sets have, and how it is read from a record.
_OPTIONAL = {
  "label": int,
  "image2": bytes,
  "references": _texts,
  "answers": _texts,
  "weight": float,
  "blind": bytes.decode,
}


@typing.runtime_checkable
class RandomAccessSource(typing.Protocol):
  """What the pipelines read: a list of examples will do."""

  def __len__(self) -> int:
    """The number of examples."""

  def __getitem__(self, index: int) -> Example:
    """Example `index`, from any thread."""


class PreparedSource:
  """One split of a prepared data set.

  Attributes:
    answers: to train's questions, the most frequent first; empty where there
      are no questions.
  """

  def __init__(self, data_source, answers: Sequence[str] = ()):
    self._data_source = data_source
    self.answers = tuple(answers)

  def __len__(self) -> int:
    return len(self._data_source)

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(index)
    record = self._data_source[int(index)]
    more = {
      name: read(record[name])
      for name, read in _OPTIONAL.items()
      if name in record
    }
    return {
      **more,
      "image": record["image"],
      "captions": _texts(record["captions"]),
      "concept": int(record["concept"]),
      "id": record["id"].decode(),
    }


class Joined:
  """Several sources as one, in their order.

  Attributes:
    answers: of the first one; see `PreparedSource`.
  """

  def __init__(self, parts: Sequence[RandomAccessSource]):
    self._parts = tuple(parts)
    self.answers = getattr(self._parts[0], "answers", ())
    self._starts = tuple(itertools.accumulate(map(len, self._parts), initial=0))

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(index)
    part = bisect.bisect_right(self._starts, index) - 1
    return self._parts[part][index - self._starts[part]]


class Decoded:
  """A source whose pictures are decoded once, for all who read it.

  Args:
    source: with encoded pictures.
    budget: bytes of pictures to keep; those beyond it are decoded each time.
  """

  def __init__(self, source: RandomAccessSource, budget: int = 2**30):
    self._source = source
    self._left = budget
    self._kept = {}

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> Example:
    if index in self._kept:
      return self._kept[index]
    example = dict(self._source[index])
    size = 0
    for name in example.keys() & {"image", "image2"}:
      example[name] = images.decode(example[name])
      size += 3 * example[name].width * example[name].height
    # Two threads may both keep an example: it is the same one.
    if size <= self._left:
      self._left -= size
      self._kept[index] = example
    return example


def open_source(
  name: str, *, dir: str | None = None
) -> dict[str, RandomAccessSource]:
  """The splits of data set `name`, built on first use.

  Args:
    name: a key of `BUILDERS`.
    dir: folder of the source files; None for COMP_JAX_DATA, and after that for
      the repository's own copy (emoji) or the installed package (easy_vqa).

  Returns:
    Split name -> source. `emoji` and `easy_vqa` have train, select, test;
    `flickr8k` has train, select, dev, and test if the official list of it is
    there; `flickr8k_itm` and `vqa2` have train, select, val, `vqa2` also test
    and test-dev, without answers, if their files are there; `nlvr2` has train,
    select, dev, and test if its file is there; `coco`, `coco_caption` and
    `flickr30k` have train, select, val, and test if their files have it.
  """
  if name not in BUILDERS:
    raise errors.UserError(
      f"config.data.name: no data set {name!r}; there are"
      f" {', '.join(sorted(BUILDERS))}."
    )
  source, digest = _find(name, dir)
  root = cache_dir() / digest
  try:
    builder = _prepared(BUILDERS[name], source, root)
  except OSError as e:
    raise errors.UserError(
      f"cannot prepare {name} in {root} ({e.strerror or e}). Make room or set"
      " COMP_JAX_CACHE to a folder that can be written."
    ) from e
  try:
    splits = {
      split: PreparedSource(
        builder.as_data_source(
          split=split,
          decoders={
            name: tfds.decode.SkipDecoding()
            for name in builder.info.features
            if name in ("image", "image2")
          },
        ),
        (builder.info.metadata or {}).get("answers", ()),
      )
      for split in builder.info.splits
    }
    for split in splits.values():
      split[len(split) - 1]
  except Exception as e:  # The readers raise bare RuntimeErrors.
    raise errors.UserError(
      f"the prepared data in {builder.data_path} cannot be read. Delete that"
      " folder; the next run builds it again."
    ) from e
  return splits | builder.unprepared()


def cache_dir() -> pathlib.Path:
  """The folder of the prepared data sets: COMP_JAX_CACHE or the default."""
  named = os.environ.get("COMP_JAX_CACHE")
  return pathlib.Path(named or "~/.cache/comp_jax").expanduser()


def _find(name: str, dir: str | None) -> tuple[pathlib.Path, str]:
  """The source folder and its digest; UserError that says how to get it."""
  if dir:
    folders = [dir]
  else:
    folders = [os.environ.get("COMP_JAX_DATA"), BUILDERS[name].own_source()]
  paths = [pathlib.Path(f).expanduser() for f in folders if f]
  for path in paths:
    try:
      digest = BUILDERS[name].source_fingerprint(path)
    except OSError as e:
      raise errors.UserError(
        f"cannot read the {name} data in {path} ({e.strerror or e})."
      ) from e
    if digest is not None:
      return path, digest
  looked = ", ".join(str(p) for p in paths) or "no folder was named"
  raise errors.UserError(
    f"no {name} data found ({looked}). Pass --config.data.dir=DIR or set"
    f" COMP_JAX_DATA=DIR; DIR holds {BUILDERS[name].NEEDS}."
  )


def _prepared(
  cls: type[records.Builder], source: pathlib.Path, root: pathlib.Path
) -> records.Builder:
  """A builder whose data are on disk, whoever else is building them."""
  builder = cls(source=source, data_dir=str(root))
  if builder.data_path.exists():
    return builder
  parent = pathlib.Path(builder.data_path).parent
  parent.mkdir(parents=True, exist_ok=True)
  with _lock(parent / "lock"):
    # Under the lock nobody else builds: what lies here beside whole versions
    # was left by a build that was killed.
    for leftover in (*parent.glob("incomplete.*"), parent / "downloads"):
      shutil.rmtree(leftover, ignore_errors=True)
    if builder.data_path.exists():  # Another process built it meanwhile.
      builder = cls(source=source, data_dir=str(root))
    else:
      builder.prepare()
    shutil.rmtree(parent / "downloads", ignore_errors=True)
  return builder


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
  """Holds the file's lock; the kernel frees it if the process dies."""
  with open(path, "w") as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    yield

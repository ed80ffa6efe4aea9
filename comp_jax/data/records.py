"""What the data set builders share: reading, checking, holding out."""

import abc
import contextlib
import hashlib
import io
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow
import pyarrow.parquet
import tensorflow_datasets as tfds

from comp_jax import errors
from comp_jax.data import images

_LISTED = 5
# Photos that tell where the photos are: one alone may be what is missing, and
# all of them would be looked for under every root.
_SAMPLED = 500


def hold_out(ids: Iterable[str], count: int) -> set[str]:
  """The `count` ids with the smallest SHA-256; a sixth of them at most.

  A hash instead of a random draw: the choice depends on no seed, library or
  order of files. The cap keeps most of a miniature data set in training.
  """
  unique = sorted(set(ids), key=_sha256)
  return set(unique[: max(1, min(count, len(unique) // 6))])


def _sha256(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(files: Sequence[pathlib.Path], extra: str = "") -> str:
  """16 hex digits that change when the files' bytes or `extra` change."""
  digest = hashlib.sha256(extra.encode())
  for path in files:
    with open(path, "rb") as f:
      digest.update(hashlib.file_digest(f, "sha256").digest())
  return digest.hexdigest()[:16]


def read_parquet(path: pathlib.Path, columns: Sequence[str]) -> list[dict]:
  """The rows of a Parquet file as dicts; UserError if it cannot be read."""
  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      missing = sorted(set(columns) - set(file.schema_arrow.names))
      rows = [] if missing else file.read(list(columns)).to_pylist()
  except (pyarrow.ArrowException, OSError) as e:
    raise errors.UserError(
      f"{path} is not a readable Parquet file ({_first_line(e)}). Copy it"
      " anew from where it came from."
    ) from e
  if missing:
    raise errors.UserError(
      f"{path} has no column {', '.join(missing)}; expected the columns"
      f" {', '.join(columns)}."
    )
  if not rows:
    raise errors.UserError(f"{path} has no rows.")
  return rows


def read_entries(path: pathlib.Path, key: str) -> list:
  """The entries of a JSON file: a list, or an object with one in `key`."""
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f"{path}: not readable as JSON ({error})."
    ) from error
  entries = content.get(key) if isinstance(content, dict) else content
  if not isinstance(entries, list) or not entries:
    raise errors.UserError(
      f"{path}: neither a list of entries nor an object with one in `{key}`."
    )
  return entries


def photo_folder(
  source: pathlib.Path, roots: Sequence[str], photos: Sequence[str]
) -> pathlib.Path:
  """The folder that has all photos: of `roots`, the one that has most.

  Args:
    source: the data set's folder.
    roots: folders below it; the folder itself is looked at last.
    photos: paths below one of them.

  Raises:
    UserError: photos that are missing.
  """
  sample = photos[:: max(1, len(photos) // _SAMPLED)]
  there = {
    root: sum((source / root / photo).is_file() for photo in sample)
    for root in (*roots, ".")
  }
  root = max(there, key=there.get)
  missing = [photo for photo in photos if not (source / root / photo).is_file()]
  if missing:
    raise errors.UserError(
      f"{source}: {len(missing)} photos that the annotations name are missing,"
      f" first {', '.join(missing[:_LISTED])}."
    )
  return source / root


def checked_image(data: bytes, where: str) -> bytes:
  """`data` unchanged, after decoding it once; UserError if that fails.

  Paid once, when the data set is built: a broken picture shows up there and
  not hours into a run.
  """
  try:
    images.decode(data)
  except Exception as e:  # Pillow raises whatever its decoders raise.
    raise errors.UserError(
      f"{where} is not a readable image ({_first_line(e)}). Replace the file."
    ) from e
  return data


def _first_line(e: Exception) -> str:
  lines = str(e).splitlines()
  # Pillow names the object in memory that it read.
  return lines[0].split(" <")[0][:120] if lines else type(e).__name__


def texts() -> tfds.features.Sequence:
  """The feature of any number of texts."""
  return tfds.features.Sequence(tfds.features.Text())


def features(
  encoding: str | None,
  labelled: bool = False,
  images: int = 1,
  **more: tfds.features.FeatureConnector,
) -> tfds.features.FeaturesDict:
  """The features of every data set here: pictures and their captions.

  Args:
    encoding: `jpeg`, or None for a format TFDS has no name for (WebP). The
      encoded bytes are stored as they are either way.
    labelled: whether each example has a `label` to predict.
    images: 1, or 2 for a pair.
    **more: what the data set has beside them.
  """
  label = {"label": tfds.features.Scalar(dtype=np.int32)} if labelled else {}
  names = ("image", "image2")[:images]
  return tfds.features.FeaturesDict(
    {
      **label,
      **{
        name: tfds.features.Image(
          shape=(None, None, 3), encoding_format=encoding
        )
        for name in names
      },
      "captions": texts(),
      # Equal numbers belong together: the positives of a contrastive loss.
      "concept": tfds.features.Scalar(dtype=np.int32),
      "id": tfds.features.Text(),
      **more,
    }
  )


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS builder that reads a local folder and writes ArrayRecord.

  Subclasses say where their files are (`source_fingerprint`) and yield the
  examples of each split. ArrayRecord and encoded image bytes are what keeps
  TensorFlow out.
  """

  VERSION = tfds.core.Version("1.0.0")
  # Named in the error of a folder that holds nothing of ours.
  NEEDS: str

  def __init__(self, *, source: pathlib.Path, data_dir: str):
    self._source = pathlib.Path(source)
    super().__init__(data_dir=data_dir, file_format="array_record")

  @classmethod
  def own_source(cls) -> pathlib.Path | None:
    """The folder that needs no naming; None where there is none."""

  @classmethod
  @abc.abstractmethod
  def source_fingerprint(cls, source: pathlib.Path) -> str | None:
    """A digest of what `source` holds; None if the data are not there."""

  def unprepared(self) -> dict[str, Sequence]:
    """More splits, of examples that are read where they lie; by their names.

    They are not part of the prepared data, so they may come and go.
    """
    return {}

  def prepare(self) -> None:
    """Writes the data set, silently; TFDS renames it into place when whole."""
    tfds.disable_progress_bar()
    # Without this TFDS announces a download on stdout.
    with contextlib.redirect_stdout(io.StringIO()):
      self.download_and_prepare(
        download_dir=str(self.data_path.parent / "downloads"),
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
      )

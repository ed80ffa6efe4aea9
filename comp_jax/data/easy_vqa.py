"""easy-VQA: questions about one coloured shape, from a package of PyPI.

4,000 train and 1,000 test images of 64 pixels, 13 answers. The package's files
are read, its code is not run.
"""

import importlib.util
import pathlib

from comp_jax import errors
from comp_jax.data import questions, records

SELECT_IMAGES = 500
# A question has one answer: it stands for ten annotators who agree.
_ANNOTATORS = 10
_PACKAGE = "easy_vqa"


class EasyVqa(questions.Builder):
  """Splits `train`, `select` and `test`; an example is one question.

  `select` has the questions about the SELECT_IMAGES train images with the
  smallest SHA-256 of their paths, taken out of `train`; `test` is the
  package's own.
  """

  NEEDS = (
    "train/ and test/, each with questions.json and images/; they come with a"
    " package: pip install --no-deps easy-vqa==1.0"
  )
  HOMEPAGE = "https://github.com/vzhou842/easy-VQA"

  @classmethod
  def own_source(cls) -> pathlib.Path | None:
    # Only looked up: nothing of it is imported.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
      return None
    return pathlib.Path(spec.submodule_search_locations[0]) / "data"

  @classmethod
  def source_fingerprint(cls, source: pathlib.Path) -> str | None:
    files = [_file(source, split) for split in ("train", "test")]
    if not all(file.is_file() for file in files):
      return None
    # The folder stands for its images.
    return records.fingerprint(files, str(source.resolve()))

  def _split_generators(self, dl_manager):
    del dl_manager
    train, select = questions.held_out(self._read("train"), SELECT_IMAGES)
    splits = {"train": train, "select": select, "test": self._read("test")}
    return self._generators(splits)

  def _read(self, split: str) -> list[questions.Question]:
    """The questions of a split, in the order of its file."""
    path, found = _file(self._source, split), []
    for number, entry in enumerate(records.read_entries(path, "questions"), 1):
      try:
        text, answer, image = entry
        if not isinstance(text, str) or not isinstance(answer, str):
          raise ValueError("a question and its answer are texts")
        image = f"{split}/images/{int(image)}.png"
      except (TypeError, ValueError) as error:
        raise errors.UserError(
          f"{path}: entry {number} is not a question, an answer and the number"
          f" of an image ({error!r})."
        ) from error
      found.append(
        questions.Question(
          id=f"{split}-{number:05d}",
          image=image,
          text=text,
          answers=(answer,) * _ANNOTATORS,
          weight=1 / _ANNOTATORS,
          root=self._source,
        )
      )
    images = list(dict.fromkeys(question.image for question in found))
    records.photo_folder(self._source, ["."], images)
    return found


def _file(source: pathlib.Path, split: str) -> pathlib.Path:
  return source / split / "questions.json"

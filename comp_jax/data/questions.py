"""What data sets of questions about images share."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from comp_jax.data import records

# Of the answers to train's questions, those that may be ranked: as many as
# the list of BLIP's authors has.
_LISTED = 3128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """A question about an image.

  Attributes:
    id: unlike any other question's.
    image: path below `root`; questions of one image belong together.
    text: as the model reads it.
    answers: one by each annotator; none where others keep them.
    weight: of each answer in the loss.
    root: folder of the images.
  """

  id: str
  image: str
  text: str
  answers: tuple[str, ...] = ()
  weight: float = 0.0
  root: pathlib.Path = pathlib.Path()


class Builder(records.Builder, skip_registration=True):
  """Stores questions, each with its image and its answers.

  Beside them lies what is known without looking: with each question the answer
  that train gives most often to the same words, and in the metadata the
  answers that train gives most often to any.
  """

  ENCODING: ClassVar[str | None] = None
  HOMEPAGE: ClassVar[str]

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Questions about images, with the answers of annotators.",
      features=records.features(
        self.ENCODING,
        answers=records.texts(),
        weight=tfds.features.Scalar(dtype=np.float32),
        blind=tfds.features.Text(),
      ),
      homepage=self.HOMEPAGE,
      metadata=tfds.core.MetadataDict(),
    )

  def _generators(
    self,
    splits: Mapping[str, Sequence[Question]],
    answers: Sequence[str] = (),
  ) -> dict[str, Iterator[tuple[str, dict]]]:
    """The examples of each split.

    Args:
      splits: their questions.
      answers: that may be ranked, the first ones first; train's by default.
    """
    images = sorted({q.image for split in splits.values() for q in split})
    concepts = {image: index for index, image in enumerate(images)}
    usual, best = _most_frequent(splits["train"])
    self._best = best[0]
    self.info.metadata["answers"] = list(answers) or best
    return {
      name: self._generate_examples(split, concepts, usual)
      for name, split in splits.items()
    }

  def _generate_examples(
    self,
    questions: Iterable[Question],
    concepts: Mapping[str, int],
    usual: Mapping[str, str],
  ) -> Iterator[tuple[str, dict]]:
    for question in questions:
      path = question.root / question.image
      yield (
        question.id,
        {
          "image": records.checked_image(path.read_bytes(), str(path)),
          "captions": [question.text],
          "concept": concepts[question.image],
          "id": question.id,
          "answers": question.answers,
          "weight": question.weight,
          "blind": usual.get(question.text, self._best),
        },
      )


class Unanswered(Sequence):
  """Examples of questions whose answers others keep: no `answers`, no score.

  Attributes:
    answers: to train's questions, the most frequent first.
  """

  def __init__(self, questions: Sequence[Question], answers: Sequence[str]):
    self._questions = questions
    images = dict.fromkeys(question.image for question in questions)
    self._concepts = {image: index for index, image in enumerate(images)}
    self.answers = tuple(answers)

  def __len__(self) -> int:
    return len(self._questions)

  def __getitem__(self, index: int) -> dict[str, Any]:
    question = self._questions[index]
    return {
      "image": (question.root / question.image).read_bytes(),
      "captions": [question.text],
      "concept": self._concepts[question.image],
      "id": question.id,
    }


def held_out(
  train: Sequence[Question], count: int
) -> tuple[list[Question], list[Question]]:
  """Questions to train on, and those of `count` images (`hold_out`)."""
  images = records.hold_out((q.image for q in train), count)
  return (
    [q for q in train if q.image not in images],
    [q for q in train if q.image in images],
  )


def _most_frequent(
  questions: Iterable[Question],
) -> tuple[dict[str, str], list[str]]:
  """The answer to each question, and the answers to all, in that order."""
  counts = collections.defaultdict(collections.Counter)
  for question in questions:
    counts[question.text].update(question.answers)
  every = collections.Counter()
  for each in counts.values():
    every.update(each)
  usual = {text: c.most_common(1)[0][0] for text, c in counts.items()}
  return usual, [answer for answer, _ in every.most_common(_LISTED)]

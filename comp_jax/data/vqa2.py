"""VQAv2: questions about photos of COCO, each answered by ten people.

Read are the official files and the lists that BLIP's authors made of them,
with theirs of Visual Genome for training (spec `upop.md` 3.6 and part 5). The
answers to the questions of test are with VQA's server alone.
"""

import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from comp_jax import errors
from comp_jax.data import questions, records

SELECT_PHOTOS = 1000
_YEARS = {"train": 2014, "val": 2014, "test": 2015, "test-dev": 2015}
# Questions without answers; test-dev's are some of test's.
_TEST = ("test", "test-dev")
_QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
_ANNOTATIONS = "v2_mscoco_{}_annotations.json"
_LIST = "vqa_{}.json"
_GENOME = "vg_qa.json"
# Of BLIP's authors: the answers that are ranked.
_ANSWERS = "answer_list.json"
_ROOTS = (".", "images")
_GENOME_ROOTS = (".", "images", "visual_genome")
# What the one answer to a question of Visual Genome weighs.
_GENOME_WEIGHT = 0.2
_WORDS = 50


class Vqa2(questions.Builder):
  """Splits `train`, `select` and `val`; an example is one question.

  `select` has the questions about the SELECT_PHOTOS train photos with the
  smallest SHA-256 of their paths, taken out of `train`. Visual Genome, where
  its list is there, is trained on whole, though it has photos of COCO too. A
  photo is stored with each of its questions (about 110 GB without Visual
  Genome).

  The answers that are ranked are those of answer_list.json where it is there,
  else train's most frequent ones.

  `test` and `test-dev`, where their files are there, have questions alone.
  They are read where they lie.
  """

  NEEDS = (
    f"VQAv2's {_QUESTIONS.format('train2014')},"
    f" {_ANNOTATIONS.format('train2014')} and both of val2014; or"
    f" {_LIST.format('train')} and {_LIST.format('val')}; {_GENOME} and"
    f" {_ANSWERS} (what is ranked) too; and"
    " the photos as train2014/ and val2014/ below it or images/ (Visual"
    " Genome's below it, images/ or visual_genome/); for the splits test and"
    f" test-dev {_QUESTIONS.format('test2015')} (or {_LIST.format('test')}) and"
    f" {_QUESTIONS.format('test-dev2015')}, and test2015/ beside the photos"
  )
  ENCODING = "jpeg"
  HOMEPAGE = "https://visualqa.org/"

  @classmethod
  def source_fingerprint(cls, source: pathlib.Path) -> str | None:
    files = _files(source, ("train", "val", "genome", "answers"))
    if not {"train", "val"} <= files.keys():
      return None
    paths = [path for group in files.values() for path in group]
    # The folder stands for a hundred thousand photos.
    return records.fingerprint(paths, str(source.resolve()))

  def _split_generators(self, dl_manager):
    del dl_manager
    files = _files(self._source, ("train", "val", "genome"))
    splits = {name: self._read(paths, name) for name, paths in files.items()}
    self._check_ids(q for split in splits.values() for q in split)
    train, select = questions.held_out(splits["train"], SELECT_PHOTOS)
    return self._generators(
      {
        "train": train + splits.get("genome", []),
        "select": select,
        "val": splits["val"],
      },
      _listed(self._source / _ANSWERS),
    )

  def unprepared(self) -> dict[str, questions.Unanswered]:
    splits = {}
    for name, paths in _files(self._source, _TEST).items():
      found = self._read(paths, name)
      self._check_ids(found)
      answers = self.info.metadata["answers"]
      splits[name] = questions.Unanswered(found, answers)
    return splits

  def _check_ids(self, found: Iterable[questions.Question]) -> None:
    ids = collections.Counter(question.id for question in found)
    if max(ids.values()) > 1:
      raise errors.UserError(
        f"{self._source}: two questions have the same question_id."
      )

  def _read(
    self, paths: Sequence[pathlib.Path], split: str
  ) -> list[questions.Question]:
    """The questions of a split, in the order of its file."""
    answers = {}
    if len(paths) == 2:
      answers = dict(_parsed(paths[1], "annotations", _annotation))
    found = _parsed(
      paths[0], "questions", lambda entry: _question(entry, split, answers)
    )
    root = records.photo_folder(
      self._source,
      _GENOME_ROOTS if split == "genome" else _ROOTS,
      list(dict.fromkeys(question.image for question in found)),
    )
    return [dataclasses.replace(question, root=root) for question in found]


def cleaned(question: str) -> str:
  """The question as BLIP reads it: lower case, some marks out, 50 words."""
  words = re.sub(r'[.!"()*#:;~]', "", question.lower()).split()
  return " ".join(words[:_WORDS])


def _choices(split: str) -> Sequence[Sequence[str]]:
  """Names of the files that a split may come in."""
  if split in ("genome", "answers"):
    return [[_GENOME if split == "genome" else _ANSWERS]]
  part = f"{split}{_YEARS[split]}"
  official = [_QUESTIONS.format(part), _ANNOTATIONS.format(part)]
  return [official[:1] if split in _TEST else official, [_LIST.format(split)]]


def _files(
  source: pathlib.Path, splits: Iterable[str]
) -> dict[str, tuple[pathlib.Path, ...]]:
  """The files of those splits that are there, official ones first."""
  found = {}
  for split in splits:
    for names in _choices(split):
      paths = tuple(source / name for name in names)
      if all(path.is_file() for path in paths):
        found[split] = paths
        break
  return found


def _listed(path: pathlib.Path) -> list[str]:
  """The answers of a list, nothing where it is not there."""
  if not path.is_file():
    return []
  answers = records.read_entries(path, "answers")
  if not all(isinstance(a, str) and a for a in answers):
    raise errors.UserError(f"{path} is not a list of answers, each a text.")
  return list(dict.fromkeys(answers))


def _parsed(
  path: pathlib.Path, key: str, parse: Callable[[Mapping[str, Any]], Any]
) -> list:
  """The entries of a file, each parsed; UserError that names a wrong one."""
  found = []
  for number, entry in enumerate(records.read_entries(path, key), 1):
    try:
      found.append(parse(entry))
    except (KeyError, TypeError, ValueError) as error:
      raise errors.UserError(
        f"{path}: entry {number} is not one of VQAv2's {key} ({error!r})."
      ) from error
  return found


def _annotation(entry: Mapping[str, Any]) -> tuple[int, list[str]]:
  """The question's number and what the annotators answered."""
  return entry["question_id"], [each["answer"] for each in entry["answers"]]


def _question(
  entry: Mapping[str, Any], split: str, annotated: Mapping[int, list[str]]
) -> questions.Question:
  """The question of an entry, its answers here or in the other file."""
  number = entry["question_id"]
  if "image" in entry:
    photo = entry["image"]
  else:
    folder = f"{split.removesuffix('-dev')}{_YEARS[split]}"
    photo = f"{folder}/COCO_{folder}_{int(entry['image_id']):012d}.jpg"
  if split in _TEST:
    answers = []
  elif annotated:
    answers = annotated[number]
  else:
    answers = entry["answer"]
    answers = [answers] if isinstance(answers, str) else list(answers)
  texts = [photo, entry["question"], *answers]
  if not all(isinstance(text, str) for text in texts):
    raise ValueError("image, question and answers are texts")
  if not answers and split not in _TEST:
    raise ValueError("its answers are needed")
  genome = split == "genome"
  return questions.Question(
    id=f"vg-{number}" if genome else str(number),
    image=photo,
    text=cleaned(entry["question"]),
    answers=tuple(answers),
    weight=_GENOME_WEIGHT if genome else 1 / max(1, len(answers)),
  )

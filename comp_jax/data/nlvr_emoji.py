"""Statements about pairs of emoji, in NLVR2's own format.

A small stand-in for NLVR2, made of drawings: names, groups, left and right,
and, or, both, neither, exactly one. The generator is seeded. Every form of
statement is as often true as false, whatever it names, so the text alone says
nothing; and a false statement often differs from the pictures in one of them
only, so that one picture alone says little: `blind` tells how much.
"""

import collections
import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from comp_jax import errors
from comp_jax.data import emoji, records

_COLUMNS = ("code", "style", "name", "group", "webp")
_TRAIN_STYLES = ("google", "twitter")
_DEV_STYLE = "fluent3d"
# Too many alike, or drawn as the same flag by all.
_LEFT_OUT = ("flags", "components")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Emoji:
  """One drawing: its concept's name and group, and its file."""

  name: str
  group: str
  file: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """What a statement is about.

  Attributes:
    form: kind of statement.
    sentence: its text.
    label: whether it is true.
    pair: the two drawings.
    parts: whether the left and the right drawing fit what is said of one of
      them: what a reader of one picture could know at best.
  """

  form: str
  sentence: str
  label: bool
  pair: tuple[Emoji, Emoji]
  parts: tuple[str, str]


class Generator:
  """Draws statements about drawings of one set.

  Args:
    drawings: what may be shown.
    seed: of all choices.
    forms: names of FORMS; none for all of them.
  """

  def __init__(
    self, drawings: Sequence[Emoji], seed: int, forms: Sequence[str] = ()
  ):
    self._all = list(drawings)
    self._forms = [FORMS[name] for name in forms or FORMS]
    self._rng = np.random.default_rng(seed)
    self._of_group = collections.defaultdict(list)
    for drawing in self._all:
      self._of_group[drawing.group].append(drawing)
    self._groups = sorted(self._of_group)
    if len(self._groups) < 2:
      raise ValueError("drawings of at least two groups are needed")

  def statements(self, count: int) -> list[Claim]:
    """`count` statements, all forms and both labels in turn, shuffled."""
    claims = []
    for index in range(count):
      form = self._forms[index // 2 % len(self._forms)]
      claims.append(form(self, index % 2 == 1))
    self._rng.shuffle(claims)
    return claims

  def drawing(self, unlike: Iterable[Emoji] = ()) -> Emoji:
    """A drawing of no name that is taken."""
    taken = {other.name for other in unlike}
    while True:
      found = self._all[self._rng.integers(len(self._all))]
      if found.name not in taken:
        return found

  def member(self, group: str, inside: bool) -> Emoji:
    """A drawing of a group, or of any other one."""
    if not inside:
      others = [other for other in self._groups if other != group]
      group = others[self._rng.integers(len(others))]
    members = self._of_group[group]
    return members[self._rng.integers(len(members))]

  def group(self) -> str:
    return self._groups[self._rng.integers(len(self._groups))]

  def one_of(self, *choices):
    return choices[self._rng.integers(len(choices))]


def _side(generator: Generator, label: bool) -> Claim:
  named = generator.drawing()
  left = generator.one_of(True, False)
  other = generator.drawing([named])
  # A false statement is true of the other side half of the time.
  wrong = generator.one_of(
    (other, named), (other, generator.drawing([named, other]))
  )
  first, second = (named, other) if label else wrong
  pair = (first, second) if left else (second, first)
  where = "left" if left else "right"
  return Claim(
    form=f"{where} name",
    sentence=f"The {where} image shows {named.name}.",
    label=label,
    pair=pair,
    parts=_named(pair, named),
  )


def _and(generator: Generator, label: bool) -> Claim:
  a = generator.drawing()
  b = generator.drawing([a])
  other = generator.drawing([a, b])
  wrong = generator.one_of((a, other), (other, b), (b, a))
  pair = (a, b) if label else wrong
  return Claim(
    form="and",
    sentence=(
      f"The left image shows {a.name} and the right image shows {b.name}."
    ),
    label=label,
    pair=pair,
    parts=_two(pair, a, b),
  )


def _or(generator: Generator, label: bool) -> Claim:
  a = generator.drawing()
  b = generator.drawing([a])
  other = generator.drawing([a, b])
  another = generator.drawing([a, b, other])
  right = generator.one_of((a, b), (a, other), (other, b))
  wrong = generator.one_of((b, a), (other, another), (b, other), (other, a))
  pair = right if label else wrong
  return Claim(
    form="or",
    sentence=(
      f"The left image shows {a.name} or the right image shows {b.name}."
    ),
    label=label,
    pair=pair,
    parts=_two(pair, a, b),
  )


def _neither(generator: Generator, label: bool) -> Claim:
  named = generator.drawing()
  other = generator.drawing([named])
  another = generator.drawing([named, other])
  wrong = generator.one_of((named, other), (other, named))
  pair = (other, another) if label else wrong
  return Claim(
    form="neither",
    sentence=f"Neither image shows {named.name}.",
    label=label,
    pair=pair,
    parts=_named(pair, named),
  )


def _both(generator: Generator, label: bool) -> Claim:
  group = generator.group()
  wrong = generator.one_of((True, False), (False, True), (False, False))
  return _grouped(
    generator,
    "both",
    "Both images belong to {}.",
    group,
    label,
    (True, True) if label else wrong,
  )


def _exactly_one(generator: Generator, label: bool) -> Claim:
  group = generator.group()
  same = generator.one_of(True, False)
  return _grouped(
    generator,
    "exactly one",
    "Exactly one image belongs to {}.",
    group,
    label,
    (same, not same) if label else (same, same),
  )


def _grouped(generator, form, sentence, group, label, inside) -> Claim:
  pair = tuple(generator.member(group, one) for one in inside)
  return Claim(
    form=form,
    sentence=sentence.format(group.replace("-", " and ")),
    label=label,
    pair=pair,
    parts=tuple("in" if one else "out" for one in inside),
  )


def _named(pair, named) -> tuple[str, str]:
  return tuple("named" if one.name == named.name else "" for one in pair)


def _two(pair, a, b) -> tuple[str, str]:
  roles = {a.name: "first", b.name: "second"}
  return tuple(roles.get(one.name, "") for one in pair)


FORMS: Mapping[str, Callable[[Generator, bool], Claim]] = {
  "side": _side,
  "and": _and,
  "or": _or,
  "neither": _neither,
  "both": _both,
  "exactly_one": _exactly_one,
}


def blind(claims: Sequence[Claim]) -> dict[str, float]:
  """The best accuracy without the text's pictures, or with one of them.

  A reader who recognises everything in what it may see answers each form of
  statement, for each thing that it sees, by what is more often right.
  """
  views = {
    "text only": lambda claim: claim.form,
    "left image only": lambda claim: (claim.form, claim.parts[0]),
    "right image only": lambda claim: (claim.form, claim.parts[1]),
  }
  found = {}
  for name, view in views.items():
    votes = collections.defaultdict(collections.Counter)
    for claim in claims:
      votes[view(claim)][claim.label] += 1
    right = sum(max(counter.values()) for counter in votes.values())
    found[name] = right / len(claims)
  return found


def write(
  source: pathlib.Path,
  to: pathlib.Path,
  *,
  train: int = 48000,
  dev: int = 2000,
  seed: int = 0,
  forms: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
  """Writes `nlvr_train.json`, `nlvr_dev.json` and the images; blind scores.

  Train statements show the styles google and twitter, dev statements the
  unseen style fluent3d.

  Args:
    source: folder of the emoji file.
    to: folder to make.
    train: statements for training.
    dev: statements to report on.
    seed: of the generator.
    forms: names of FORMS; none for all of them.

  Raises:
    UserError: no emoji data, or a folder that is not empty.
  """
  file = source / emoji.FILE
  if not file.is_file():
    raise errors.UserError(f"{source}: no {emoji.FILE} there")
  if to.exists() and any(to.iterdir()):
    raise errors.UserError(f"{to}: is not empty; give a new folder")
  rows = [
    row
    for row in records.read_parquet(file, _COLUMNS)
    if row["group"] not in _LEFT_OUT
  ]
  to.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix=f".{to.name}.", dir=to.parent
  ) as folder:
    made = pathlib.Path(folder) / "made"
    found = _write(rows, made, train, dev, seed, forms)
    # Whole or not at all.
    os.replace(made, to)
  return found


def _write(rows, to, train, dev, seed, forms) -> dict[str, dict[str, float]]:
  (to / "images").mkdir(parents=True)
  found = {}
  for split, styles, count, offset in (
    ("train", _TRAIN_STYLES, train, 0),
    ("dev", (_DEV_STYLE,), dev, 1),
  ):
    drawings = []
    for row in rows:
      if row["style"] in styles:
        name = f"images/{row['code']}-{row['style']}.webp"
        (to / name).write_bytes(records.checked_image(row["webp"], name))
        drawings.append(Emoji(name=row["name"], group=row["group"], file=name))
    claims = Generator(drawings, seed * 2 + offset, forms).statements(count)
    entries = [
      {
        "images": [one.file for one in claim.pair],
        "sentence": claim.sentence,
        "label": str(claim.label),
      }
      for claim in claims
    ]
    text = json.dumps(entries, indent=0, ensure_ascii=False)
    (to / f"nlvr_{split}.json").write_text(text, encoding="utf-8")
    found[split] = blind(claims)
  return found

"""Emoji drawings in three styles, with names and keywords as text."""

import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from comp_jax.data import records

FILE = "emoji_64px.parquet"
SELECT_CONCEPTS = 100
_COLUMNS = ("code", "style", "name", "keywords", "subgroup", "webp")
_TEST_STYLE = "fluent3d"


class Emoji(records.Builder):
  """Splits `train`, `select` (unseen concepts) and `test` (unseen style).

  `train` and `select` are the styles other than `fluent3d`; `select` is the
  SELECT_CONCEPTS concepts with the smallest SHA-256 of their code. Country
  flags are in neither: the styles draw the same flag, so they would reward
  pixel matching. `test` is every `fluent3d` drawing.
  """

  NEEDS = f"{FILE} (the repository has it in assets/emoji)"

  @classmethod
  def own_source(cls) -> pathlib.Path:
    return pathlib.Path(__file__).parents[2] / "assets" / "emoji"

  @classmethod
  def source_fingerprint(cls, source: pathlib.Path) -> str | None:
    path = source / FILE
    return records.fingerprint([path]) if path.is_file() else None

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Emoji in three drawing styles.",
      features=records.features(None),
      homepage="https://emojibase.dev",
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    path = self._source / FILE
    rows = records.read_parquet(path, _COLUMNS)
    concepts = {
      code: i for i, code in enumerate(sorted({row["code"] for row in rows}))
    }
    tests = [row for row in rows if row["style"] == _TEST_STYLE]
    rest = [
      row
      for row in rows
      if row["style"] != _TEST_STYLE and row["subgroup"] != "country flags"
    ]
    held_out = records.hold_out((r["code"] for r in rest), SELECT_CONCEPTS)
    splits = {
      "train": [row for row in rest if row["code"] not in held_out],
      "select": [row for row in rest if row["code"] in held_out],
      "test": tests,
    }
    return {
      name: self._generate_examples(split, concepts, path)
      for name, split in splits.items()
    }

  def _generate_examples(
    self, rows: list[dict], concepts: dict[str, int], path: pathlib.Path
  ) -> Iterator[tuple[str, dict]]:
    for row in rows:
      key = f"{row['code']}/{row['style']}"
      yield (
        key,
        {
          "image": records.checked_image(row["webp"], f"{path}: {key}"),
          "captions": [caption(row["name"], row["keywords"])],
          "concept": concepts[row["code"]],
          "id": key,
        },
      )


def caption(name: str, keywords: list[str] | None) -> str:
  """The text of one emoji: `name: keyword, keyword`."""
  return f"{name}: {', '.join(keywords)}" if keywords else name

"""What the docs say of recorded runs is what `compare` makes of them."""

import pathlib

import pytest

from comp_jax.report import comparable, compared, comparison, tables

DOCS = pathlib.Path(__file__).parents[2] / "docs"
# The page of each folder of records, and the metrics that it shows.
PAGES = {"flickr8k": ("flickr8k_retrieval.md", ("t2i_r10", "i2t_r10"))}


def test_every_folder_of_records_has_its_page():
  assert {path.name for path in (DOCS / "records").iterdir()} == PAGES.keys()


@pytest.mark.parametrize("folder", PAGES)
def test_a_page_has_the_tables_of_its_records(folder):
  name, metrics = PAGES[folder]
  page = (DOCS / "results" / name).read_text(encoding="utf-8")
  models, left_out = comparable.gather([DOCS / "records" / folder])
  (members,) = models.values()
  assert not left_out
  for metric in metrics:
    result, lacking = comparison.compare(members, split="dev", metric=metric)
    assert not lacking
    for grid in compared.grids(result):
      assert tables.markdown(grid) in page, f"{metric}, {grid.title}"
  # Every interval is over examples: their outcomes lie beside the reports.
  assert all(run.outcomes("dev") for run in members)

"""What the docs say of recorded runs is what `compare` makes of them."""

import dataclasses
import importlib.util
import json
import pathlib
import sys

import jax.numpy as jnp
import pytest

from comp_jax.core import pace
from comp_jax.recipes import library
from comp_jax.report import comparable
from comp_jax.train import settings as settings_lib

DOCS = pathlib.Path(__file__).parents[2] / "docs"
# What `make demo` reported; README shows it.
DEMO = DOCS / "records" / "emoji_tiny"


def _module():
  """The script that writes the tables of the docs."""
  spec = importlib.util.spec_from_file_location("tables", DOCS / "tables.py")
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  return module


written = _module()


def test_every_record_is_in_a_table():
  shown = {path for table in written.TABLES for path in table.paths}
  for run in (DOCS / "records").glob("*/*"):
    assert {run, run.parent} & (shown | {DEMO}), run


@pytest.mark.parametrize(("page", "name"), written.EVERY)
def test_a_page_has_the_tables_of_its_records(page, name):
  text = (DOCS.parent / page).read_text(encoding="utf-8")
  assert written.place(text, name).group(1) == written.EVERY[page, name]()


def test_every_interval_is_over_examples():
  """Their outcomes lie beside the reports."""
  for table in written.TABLES:
    (members,) = comparable.gather(table.paths)[0].values()
    assert all(run.outcomes(table.split) for run in members)


_COARSER = (
  "flickr8k/comp_0.5",
  "flickr8k/comp_0.7",
  "flickr8k_ablations/twenty",
)


@pytest.mark.parametrize(
  "name",
  [
    "flickr8k/comp_0.5",
    "flickr8k/comp_0.7",
    "flickr8k_ablations/twenty",
    "flickr8k_ablations/nopace_0.5",
    "flickr8k_ablations/nopace_0.85",
    "flickr8k_itm_ablations/eighteen",
    "flickr8k_itm_ablations/twentytwo",
    "flickr8k_itm_ablations/scarce",
  ],
)
def test_searches_that_took_their_time_are_those_of_a_pace(name):
  """Those that kept one kept a coarser one; the others needed none."""
  paths = sorted((DOCS / "records").glob(f"{name}_*/report.json"))
  assert paths
  for path in paths:
    report = json.loads(path.read_text(encoding="utf-8"))
    for row in report["stages"]:
      if row["mode"] == "warmup":
        continue
      where = f"{path.parent.name}, stage {row['index']}"
      rests = _resting(report, row)
      if name not in _COARSER or row["index"] > 3:
        assert rests == list(row["exhausted"].values()), where
      else:
        # The text tower rested then; now its prices alone speak against it.
        assert not any(rests), where


@pytest.mark.parametrize(
  ("name", "above"),
  [
    ("flickr8k/comp_0.85", 0.0),
    ("flickr8k_ablations/mergeeleven", 0.0),
    ("flickr8k_itm/comp_0.85", 0.0),
    # Five small steps of cross-attention, and stages of 0.07 that no share
    # makes larger.
    ("flickr8k_itm/comp_0.7", 0.013),
  ],
)
def test_searches_that_hurried_would_let_the_same_modes_rest(name, above):
  paths = sorted((DOCS / "records").glob(f"{name}_*/report.json"))
  assert paths
  for path in paths:
    report = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in report["stages"] if row["mode"] != "warmup"]
    for row in rows:
      where = f"{path.parent.name}, stage {row['index']}"
      rests = _resting(report, row, hurries=True)
      assert rests == list(row["exhausted"].values()), where
    left = rows[-1]["macs_fraction"] - (1.0 - report["ratio"])
    assert left < max(0.005, above)


def test_recorded_searches_of_several_modes_at_once_had_stages_enough():
  """None of their steps would grow today."""
  paths = sorted((DOCS / "records").glob("flickr8k*/*/report.json"))
  seen = 0
  for path in paths:
    report = json.loads(path.read_text(encoding="utf-8"))
    recipe = library.RECIPES[report["recipe"]]
    if recipe.schedule != "together" or recipe.fade == "search":
      continue
    usual = dataclasses.replace(_pace(report), joint=recipe.prunes == "all")
    for row in report["stages"][1:]:
      by_mode = row["removable"].items()
      rooms = jnp.array(
        [
          sum(v for mode, v in by_mode if mode.endswith("_tokens") == tokens)
          for tokens in (False, True)
        ]
      )
      macs = jnp.float32(row["macs_before"] / report["macs"]["dense"])
      ahead = report["config"]["prune"]["max_stages"] + 1 - row["index"]
      now = pace.hurried(usual, macs, rooms, ahead)
      where = f"{path.parent.name}, stage {row['index']}"
      assert now.share == jnp.float32(usual.share), where
    seen += 1
  assert seen > 20


def test_no_recorded_search_was_faster_than_was_foretold():
  """From the dense model alone; half of them took two more or less."""
  paths = [DEMO, *sorted((DOCS / "records").glob("flickr8k*/*"))]
  more = []
  for path in paths:
    report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    rows = [row for row in report["stages"] if row["mode"] != "warmup"]
    arrived = (
      rows[-1]["macs"] / report["macs"]["dense"] < 1.005 - report["ratio"]
    )
    alone = report["recipe"].startswith("comp")
    if not (arrived and alone):
      continue
    dense = jnp.array(list(rows[0]["removable"].values()))
    few = pace.fewest_stages(_pace(report), dense, 100)
    if few > report["config"]["prune"]["max_stages"]:
      # Steps had to grow, and that was said.
      assert "they take a larger part" in report["warnings"][0], path.name
      continue
    assert few <= len(rows), path.name
    more.append(len(rows) - int(few))
  assert len(more) > 10 and sorted(more)[len(more) // 2] <= 2


def _pace(report):
  """What a stage may remove where nothing hurries it."""
  return pace.Pace(
    target=1 - report["ratio"],
    stage_macs=report["ratio"] / report["config"]["prune"]["num_stages"],
    share=settings_lib.STAGE_SHARE,
  )


def _resting(report, row, hurries=False):
  """Which modes would rest in a stage today; few of these hurry."""
  prune, usual = report["config"]["prune"], _pace(report)
  removable = jnp.array(list(row["removable"].values()))
  macs = jnp.float32(row["macs_before"] / report["macs"]["dense"])
  ahead = prune["max_stages"] + 1 - row["index"]
  now = pace.hurried(usual, macs, removable, ahead)
  assert hurries or now.share == jnp.float32(usual.share), row["index"]
  small = now.share * removable < prune["least_step"] * now.stage_macs
  able = jnp.where(small, 0.0, removable)
  return (small | pace.late(now, macs, able, ahead)).tolist()


def _readme():
  return (DOCS.parent / "README.md").read_text(encoding="utf-8")


_WAYS = ("t2i", "i2t")
_RECALLS = [f"{way}_r{k}" for way in _WAYS for k in (1, 5, 10)]
# Row of the report, MACs of the report, name in README, whether it is bold.
_DEMO_ROWS = (
  ("dense", "dense", "dense", False),
  ("masked", "masked", "end of pruning (masked)", False),
  ("compacted", "compacted", "compacted", False),
  ("finetuned", "final", "fine-tuned", True),
  (
    "finetuned_threshold",
    "finetuned_threshold",
    "fine-tuned, thresholds instead of fixed counts",
    False,
  ),
)


def test_the_readme_has_the_rows_of_the_demo():
  report = json.loads((DEMO / "report.json").read_text(encoding="utf-8"))
  lines = []
  for row, macs, name, bold in _DEMO_ROWS:
    whole = row in ("dense", "masked")
    params = report["params"]["dense" if whole else "final"]
    metrics = report["metrics"][row]["test"]
    strong = (lambda x: f"**{x}**") if bold else str
    cells = [f"{report['macs'][macs] / 1e6:.2f} M", f"{params / 1e6:.2f} M"]
    cells = [strong(name), *map(strong, cells)]
    for key in _RECALLS:
      found = f"{metrics[key]:.3f}"
      cells.append(strong(found) if key.endswith("r10") else found)
    lines.append(f"| {' | '.join(cells)} |")
  assert "\n".join(lines) in _readme()
  # It keeps most of what it knew.
  dense, tuned = (
    report["metrics"][row]["test"] for row in ("dense", "finetuned")
  )
  assert all(tuned[f"{way}_r10"] > 0.8 * dense[f"{way}_r10"] for way in _WAYS)
  assert report["macs"]["final"] <= report["macs"]["target"]

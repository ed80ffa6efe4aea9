"""What the docs say of recorded runs is what `compare` makes of them."""

import json
import pathlib

import jax.numpy as jnp
import pytest

from comp_jax.core import pace
from comp_jax.report import (
  comparable,
  compared,
  comparison,
  over_tasks,
  tables,
)
from comp_jax.train import settings as settings_lib

DOCS = pathlib.Path(__file__).parents[2] / "docs"
# The page of each folder of records, and the split and metrics that it shows.
PAGES = {
  "flickr8k": ("flickr8k_retrieval.md", "dev", ("t2i_r10", "i2t_r10")),
  "flickr8k_itm": ("flickr8k_pairs.md", "val", ("accuracy", "auc")),
  "nlvr_emoji_grid": ("nlvr_grid.md", "dev", ("accuracy",)),
  "nlvr_emoji_short": ("nlvr_grid.md", "dev", ("accuracy",)),
}


# What `make demo` reported; README shows it.
DEMO = DOCS / "records" / "emoji_tiny"


def test_every_folder_of_records_has_its_page():
  folders = {path.name for path in (DOCS / "records").iterdir()}
  assert folders == PAGES.keys() | {DEMO.name}


@pytest.mark.parametrize("folder", PAGES)
def test_a_page_has_the_tables_of_its_records(folder):
  name, split, metrics = PAGES[folder]
  page = (DOCS / "results" / name).read_text(encoding="utf-8")
  models, left_out = comparable.gather([DOCS / "records" / folder])
  (members,) = models.values()
  assert not left_out
  for metric in metrics:
    result, lacking = comparison.compare(members, split=split, metric=metric)
    assert not lacking
    for grid in compared.grids(result):
      assert tables.markdown(grid) in page, f"{metric}, {grid.title}"
  # Every interval is over examples: their outcomes lie beside the reports.
  assert all(run.outcomes(split) for run in members)


_README = {
  "comp": "**CoMP**",
  "uniform": "`uniform`",
  "magnitude": "`magnitude`",
  "random": "`random`",
}
_WAYS = ("t2i", "i2t")
_RECALLS = [f"{way}_r{k}" for way in _WAYS for k in (1, 5, 10)]


def _readme_rows():
  """README's Flickr8k rows: means over seeds, as the reports have them."""
  runs = {}
  for path in sorted((DOCS / "records" / "flickr8k").iterdir()):
    recipe, ratio, _ = path.name.split("_")
    report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    runs.setdefault((float(ratio), recipe), []).append(report)
  (first, *_) = runs[0.7, "comp"]
  yield _row("dense", "", "", [first], "dense")
  for ratio in (0.5, 0.7, 0.85):
    for recipe, shown in _README.items():
      if reports := runs.get((ratio, recipe)):
        seeds = ", ".join(str(report["seed"]) for report in reports)
        yield _row(shown, ratio, seeds, reports, "finetuned")


def _row(recipe, ratio, seeds, reports, row):
  mean = lambda values: sum(values) / len(reports)  # noqa: E731
  which = "dense" if row == "dense" else "final"
  macs = mean(report["macs"][which] for report in reports)
  params = mean(report["params"][which] for report in reports)
  recalls = (
    mean(report["metrics"][row]["dev"][name] for report in reports)
    for name in _RECALLS
  )
  minutes = mean(report["seconds"]["total"] for report in reports) / 60
  cells = [recipe, ratio, seeds, f"{macs / 1e9:.2f} G", f"{params / 1e6:.1f} M"]
  cells += [f"{recall:.3f}" for recall in recalls]
  cells.append("" if row == "dense" else f"{minutes:.0f}")
  return f"| {' | '.join(map(str, cells))} |"


_COARSER = ("flickr8k/comp_0.5", "flickr8k/comp_0.7", "flickr8k/twenty_0.85")


@pytest.mark.parametrize(
  "name",
  [
    "flickr8k/comp_0.5",
    "flickr8k/comp_0.7",
    "flickr8k/twenty_0.85",
    "flickr8k/nopace_0.5",
    "flickr8k/nopace_0.85",
    "flickr8k_itm/comp_0.7",
    "flickr8k_itm/twentytwo_0.85",
    "flickr8k_itm/scarce",
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
  "name",
  ["flickr8k/comp_0.85", "flickr8k/mergeeleven", "flickr8k_itm/comp_0.85"],
)
def test_searches_that_hurried_would_let_the_same_modes_rest(name):
  paths = sorted((DOCS / "records").glob(f"{name}_*/report.json"))
  assert paths
  for path in paths:
    report = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in report["stages"] if row["mode"] != "warmup"]
    for row in rows:
      where = f"{path.parent.name}, stage {row['index']}"
      rests = _resting(report, row, hurries=True)
      assert rests == list(row["exhausted"].values()), where
    assert rows[-1]["macs_fraction"] < 1.005 - report["ratio"]


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


def test_the_readme_has_the_rows_of_the_records():
  assert "\n".join(_readme_rows()) in _readme()


# Searches of fewer, larger stages, as each task's methods are called.
_FEWER = [f"comp_wanda (max_stages={most})" for most in (11, 14, 12)]


@pytest.mark.parametrize(
  ("statements", "reference", "ratios", "pages"),
  [
    ("nlvr_emoji_grid", None, (0.7, 0.85), ("docs/results.md",)),
    ("nlvr_emoji_short", None, (0.85,), ("docs/results.md",)),
    ("nlvr_emoji_grid", None, (0.7,), ("README.md",)),
    ("nlvr_emoji_grid", _FEWER, (0.85,), ("docs/results.md", "README.md")),
  ],
)
def test_the_mean_of_the_tasks_is_that_of_the_records(
  statements, reference, ratios, pages
):
  folders = ("flickr8k", "flickr8k_itm", statements)
  models, _ = comparable.gather([DOCS / "records" / f for f in folders])
  results = [
    comparison.compare(members, reference=reference)[0]
    for members in models.values()
  ]
  found = {
    mean.ratio: mean
    for mean in over_tasks.means(results)
    if mean.method == "uniform" and len(mean.tasks) == len(folders)
  }
  for ratio in ratios:
    mean = found[ratio]
    low, high = -mean.interval.high, -mean.interval.low
    said = f"{-mean.difference:+.3f} ({low:+.3f} to {high:+.3f})"
    for page in pages:
      text = (DOCS.parent / page).read_text(encoding="utf-8")
      assert said in text, (page, ratio, said)


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

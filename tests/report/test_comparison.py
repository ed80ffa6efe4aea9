"""Comparison of runs: what is averaged, what is left out, what is written."""

import csv
import dataclasses

import numpy as np
import pytest

from comp_jax import errors
from comp_jax.cli import configs, verbs
from comp_jax.report import (
  bootstrap,
  comparable,
  compared,
  comparison,
  paper,
)
from comp_jax.train import examples
from tests.report import kit


def test_means_intervals_and_paired_differences(folder):
  (members,) = comparable.gather([folder])[0].values()
  result, lacking = comparison.compare(members, split="test")
  assert not lacking and result.metric == "t2i_r10"
  cells = {(cell.method, cell.ratio): cell for cell in result.cells}
  assert [c.method for c in result.cells if c.ratio == 0.7] == [
    "comp (score=wanda, explore=0.1)",
    "comp",
    "uniform",
  ]
  comp, uniform = cells["comp", 0.7], cells["uniform", 0.7]
  assert comp.seeds == (0, 1, 2, 3) and comp.difference is None
  assert comp.mean == pytest.approx(0.33)
  # A resample of four draws: its percentiles are known from all 256.
  grid = np.stack(np.meshgrid(*[comp.values] * 4), axis=-1).reshape(-1, 4)
  exact = np.quantile(grid.mean(axis=1), [0.025, 0.975])
  found = comp.interval.low, comp.interval.high
  np.testing.assert_allclose(found, exact, atol=2.6e-3)
  assert comp.interval.over == bootstrap.SEEDS
  # Paired by seed, the seeds' own spread is gone.
  assert uniform.paired == 3
  assert uniform.difference == pytest.approx(-0.051)
  gap = uniform.difference_interval
  assert -0.0521 <= gap.low < -0.051 < gap.high <= -0.0499
  assert cells["comp", 0.5].interval is None
  assert "nothing to differ from" not in " ".join(compared.notes(result))
  other, _ = comparison.compare(members, split="test", reference="random")
  assert "No run of random" in " ".join(compared.notes(other))
  wanda = cells["comp (score=wanda, explore=0.1)", 0.7]
  assert wanda.difference == pytest.approx(0.06)
  assert wanda.difference_interval is None


def test_what_nobody_ran_is_said(folder):
  (members,) = comparable.gather([folder])[0].values()
  result, _ = comparison.compare(members, split="test")
  *_, grid = compared.grids(result)
  assert grid.columns == ("Recipe", "0.5", "0.7")
  assert grid.rows == (
    ("comp", "1", "4"),
    ("comp (score=wanda, explore=0.1)", "not run", "1"),
    ("uniform", "not run", "3"),
  )


def test_a_ratio_may_have_a_budget_of_its_own(tmp_path, make):
  """As the paper's epochs do; at one ratio all runs have the same."""
  for ratio, stages in ((0.5, 11), (0.85, 20), (0.85, 21)):
    for recipe in ("comp", "uniform"):
      report = make(0, recipe)
      report["ratio"] = ratio
      report["macs"]["target"] = (1 - ratio) * report["macs"]["dense"]
      report["macs"]["compacted"] = report["macs"]["target"]
      path = tmp_path / f"{recipe}_{ratio}_{stages}"
      kit.save(path, report, prune={"max_stages": stages})
  models, left_out = comparable.gather([tmp_path])
  (members,) = models.values()
  assert {run.path.name for run in left_out} == {
    "comp_0.85_21",
    "uniform_0.85_21",
  }
  result, _ = comparison.compare(members)
  assert len(result.cells) == 4
  said = "From ratio to ratio these differ: prune.max_stages."
  assert said in compared.notes(result)
  assert not comparable.between_ratios(members[:1])


EXAMPLES = 200


@pytest.fixture
def kept(tmp_path, make):
  """Runs that kept ranks: uniform misses 20 of the texts that comp finds."""
  rng = np.random.default_rng(3)
  # What is hard is hard for all of them.
  hard = rng.integers(0, 30, (EXAMPLES, 2))
  for seed in range(3):
    ranks = np.maximum(hard + rng.integers(-2, 3, hard.shape), 0)
    others = ranks.copy()
    found = np.argwhere(ranks < 10)[:20]
    others[tuple(found.T)] = 25
    for recipe, each in (("comp", ranks), ("uniform", others)):
      path = tmp_path / f"{recipe}{seed}"
      kit.save(
        path, kit.with_recall(make(seed, recipe), float(np.mean(each < 10)))
      )
      kit.keep(path, "t2i_rank", each)
  return tmp_path


def test_a_planted_difference_is_found_over_seeds_and_examples(kept):
  cells, result = kit.cells(kept)
  comp, uniform = cells["comp"], cells["uniform"]
  assert uniform.difference == pytest.approx(-20 / (2 * EXAMPLES))
  gap = uniform.difference_interval
  assert gap.low < uniform.difference < gap.high < 0
  assert comp.interval.over == gap.over == bootstrap.BOTH
  # Apart, the two could not be told from each other.
  assert comp.interval.low < uniform.interval.high
  # An interval over three seeds alone says nothing of other examples.
  alone = np.array([[value] for value in comp.values])
  seeds = bootstrap.interval(alone)
  assert comp.interval.high - comp.interval.low > 2 * (seeds.high - seeds.low)
  # Student's over the paired seeds: 4.303 standard errors of three.
  gaps = np.subtract(uniform.values, comp.values)
  half = 4.303 * gaps.std(ddof=1) / np.sqrt(3)
  assert uniform.difference_student == pytest.approx(half, rel=1e-3)
  assert comp.difference_student is None
  lines = " ".join(compared.notes(result))
  assert "Interval of the mean: over seeds and examples." in lines
  assert "Interval of the difference: over seeds and examples." in lines
  assert "Over seeds alone" not in lines and "Student" in lines
  (grid,) = compared.grids(result)
  place = grid.columns.index("seeds alone")
  assert {row[place] for row in grid.rows} == {"–", f"± {half:.3f}"}


def test_texts_of_an_image_are_drawn_together(tmp_path, make):
  """Twice the same text to each image is no second example."""
  ranks = np.random.default_rng(1).integers(0, 20, 80)
  spans = []
  for texts in (1, 2):
    path = tmp_path / str(texts)
    kit.save(path, kit.with_recall(make(0), float(np.mean(ranks < 10))))
    kit.keep(path, "t2i_rank", np.tile(ranks[:, None], (1, texts)))
    spans.append(kit.cells(path)[0]["comp"].interval)
  assert spans[0] == spans[1] and spans[0].over == bootstrap.EXAMPLES


def test_an_old_run_is_compared_over_seeds(kept):
  (kept / "uniform1" / examples.NAME).unlink()
  cells, result = kit.cells(kept)
  assert cells["comp"].interval.over == bootstrap.BOTH
  assert cells["uniform"].interval.over == bootstrap.SEEDS
  assert cells["uniform"].difference_interval.over == bootstrap.SEEDS
  lines = " ".join(compared.notes(result))
  assert "over seeds and examples; over seeds: uniform at 0.7." in lines
  assert "Over seeds alone: a metric that is no mean" in lines


def test_other_examples_are_compared_over_seeds(kept):
  """The reference has as many in each of its runs, and others than these."""
  for seed in range(3):
    path = kept / f"uniform{seed}"
    ranks = examples.read(path, "test")["t2i_rank"]
    kit.keep(path, "t2i_rank", np.concatenate([ranks, ranks]))
  cells, _ = kit.cells(kept)
  uniform = cells["uniform"]
  assert uniform.interval.over == bootstrap.BOTH
  assert uniform.difference_interval.over == bootstrap.SEEDS
  assert uniform.difference == pytest.approx(-20 / (2 * EXAMPLES))


def test_a_metric_that_is_no_mean_is_compared_over_seeds(kept):
  cells, result = kit.cells(kept, metric="loss")
  assert {cell.interval.over for cell in cells.values()} == {bootstrap.SEEDS}
  assert "Interval of the mean: over seeds." in compared.notes(result)


def test_one_seed_has_an_interval_over_examples(kept):
  cells, result = kit.cells(kept / "comp0")
  assert cells["comp"].interval.over == bootstrap.EXAMPLES
  line = "Interval of the mean: over examples, one seed."
  assert line in compared.notes(result)
  rows = list(csv.DictReader(compared.to_csv([result]).splitlines()))
  assert rows[0]["over"] == bootstrap.EXAMPLES
  assert float(rows[0]["low"]) == cells["comp"].interval.low
  assert rows[0]["difference_over"] == rows[0]["difference_student"] == ""
  (grid,) = compared.grids(result)
  assert "seeds alone" not in grid.columns


def test_outcomes_that_do_not_fit_leave_their_run_out(kept, capsys):
  found = (kept / "comp0" / examples.NAME).read_bytes()
  (kept / "uniform0" / examples.NAME).write_bytes(found)
  (kept / "uniform1" / examples.NAME).write_bytes(found[: len(found) // 2])
  assert verbs.main(["compare", str(kept), "--split", "test"]) == 0
  said = " ".join(capsys.readouterr().out.split())
  assert "uniform0: its outcomes make a t2i_r10" in said
  assert "uniform1: cannot read the outcomes" in said
  (members,) = comparable.gather([kept])[0].values()
  result, left_out = comparison.compare(members, split="test")
  assert [run.path.name for run in left_out] == ["uniform0", "uniform1"]
  (uniform,) = [cell for cell in result.cells if cell.method == "uniform"]
  assert uniform.seeds == (2,)


def test_a_metric_that_no_run_has_is_refused(folder):
  (members,) = comparable.gather([folder])[0].values()
  with pytest.raises(errors.UserError, match="no run has a fine-tuned cider"):
    comparison.compare(members, metric="cider")
  del members[0].report["metrics"]["finetuned"]
  _, lacking = comparison.compare(members, split="test")
  assert [run.path for run in lacking] == [members[0].path]


def test_a_split_that_no_run_has_is_named_with_those_there_are(tmp_path, make):
  kit.save(tmp_path / "comp", make(0))
  (members,) = comparable.gather([tmp_path])[0].values()
  with pytest.raises(errors.UserError, match="no run has a fine-tuned metric"):
    comparison.compare(members, split="nowhere")


def test_lower_losses_come_first(folder):
  (members,) = comparable.gather([folder])[0].values()
  members[0].report["metrics"]["finetuned"]["test"]["loss"] = 9.0
  result, _ = comparison.compare(members, split="test", metric="loss")
  assert result.lower_is_better
  means = [cell.mean for cell in result.cells if cell.ratio == 0.7]
  assert means == sorted(means)


@pytest.mark.parametrize(
  ("name", "metric", "method", "ratio", "value"),
  [
    ("nlvr2_blip", "accuracy", "comp", 0.7, 0.8137),
    ("nlvr2_blip", "accuracy", "comp_no_history", 0.8, 0.7902),
    ("nlvr2_blip", "accuracy", "comp_greedy", 0.8, 0.7824),
    ("flickr30k_blip_retrieval", "i2t_r1", "comp_wanda", 0.7, 0.944),
    ("coco_blip_retrieval", "i2t_r1", "madtp", 0.7, 0.739),
    ("coco_clip_retrieval", "i2t_r1", "comp", 0.75, 0.687),
    ("coco_blip_caption", "cider", "comp", 0.7, 1.268),
    # MADTP, then UPop: not what our recipe does.
    ("nlvr2_blip", "accuracy", "sjp_tokens_first", 0.8, None),
    ("coco_clip_retrieval", "i2t_r1", "comp", 0.7, None),
    ("coco_blip_retrieval", "t2i_r1", "comp", 0.7, None),
    # Data of its form, but not its data.
    ("nlvr_emoji", "accuracy", "comp", 0.7, None),
  ],
)
def test_published_numbers_are_of_one_model(name, metric, method, ratio, value):
  assert paper.published(name, "test", metric, method, ratio) == value
  assert paper.published(name, "dev", metric, method, ratio) is None
  # They stand beside runs of this config alone.
  if value is not None:
    config = configs.load(f"configs/{name}.py")
    assert config.name == name and "test" in config.data.report_splits


def test_published_numbers_stand_where_the_task_matches(folder):
  (members,) = comparable.gather([folder])[0].values()
  result, _ = comparison.compare(members, split="test")
  assert "paper" not in compared.grids(result)[0].columns
  assert "paper" not in compared.notes(result)[0]
  for run in members:
    run.report["name"] = "nlvr2_blip"
    values = run.report["metrics"]["finetuned"]["test"]
    values["accuracy"] = values["t2i_r10"]
  result, _ = comparison.compare(members, split="test", metric="accuracy")
  assert "(the paper's: 0.831)" in compared.notes(result)[0]
  grid = compared.grids(result)[1]
  assert [(row[0], row[-1]) for row in grid.rows] == [
    ("comp (score=wanda, explore=0.1)", "–"),
    ("comp", "0.814"),
    ("uniform", "–"),
  ]
  lacks = "The paper's MADTP has its alignment loss, ours does not."
  assert lacks not in compared.notes(result)
  members = [
    dataclasses.replace(run, method=run.method.replace("uniform", "madtp"))
    for run in members
  ]
  result, _ = comparison.compare(members, split="test", metric="accuracy")
  assert lacks in compared.notes(result)


def test_the_verb_prints_and_writes_three_files(folder, tmp_path, capsys):
  out = tmp_path / "out"
  command = ["compare", str(folder), "--split", "test", "--out", str(out)]
  assert verbs.main(command) == 0
  printed = capsys.readouterr().out
  assert "uniform" in printed and "left out" in printed
  lines = (out / "compare.csv").read_text().splitlines()
  rows = list(csv.DictReader(lines))
  (row,) = [r for r in rows if r["recipe"] == "uniform"]
  assert float(row["difference"]) == pytest.approx(-0.051)
  assert row["seeds"] == "0 1 2" and row["paper"] == ""
  page = (out / "compare.html").read_text()
  assert page.count("data:image/svg+xml") == 2 and "short" in page
  words = (out / "compare.md").read_text()
  assert "## Left out" in words and "| uniform | 0, 1, 2 |" in words
  before = {p.name: p.read_bytes() for p in out.iterdir()}
  assert verbs.main(command) == 0
  assert before == {p.name: p.read_bytes() for p in out.iterdir()}


def test_a_run_of_another_task_hides_no_tables(tmp_path, make, capsys):
  kit.save(tmp_path / "emoji", make(0))
  other = make(0, name="nlvr")
  for splits in other["metrics"].values():
    splits["test"] = {"accuracy": 0.7}
  kit.save(tmp_path / "nlvr", other)
  command = ["compare", str(tmp_path), "--split", "test", "--metric"]
  assert verbs.main([*command, "t2i_r5"]) == 0
  said = capsys.readouterr().out
  assert "T2I R@5 on test" in said
  assert "nlvr: nlvr: no run has a fine-tuned t2i_r5 on test" in said
  assert verbs.main([*command, "cider"]) == 2
  assert "no run can be compared" in capsys.readouterr().err


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
  assert verbs.main(["compare", str(tmp_path / "gone")]) == 2
  assert verbs.main(["compare", str(tmp_path)]) == 2
  assert "holds no run" in capsys.readouterr().err

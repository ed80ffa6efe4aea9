"""Runs are gathered; what takes no part is named, with its reason."""

import json

import pytest

from comp_jax import errors
from comp_jax.report import bootstrap, comparable, compared, comparison, runs
from comp_jax.train import workdir
from tests.report import kit


def test_runs_are_gathered_and_the_rest_is_explained(folder):
  models, left_out = comparable.gather([folder, folder / "comp0"])
  (members,) = models.values()
  assert len(members) == 9
  reasons = {run.path.name: run.reason for run in left_out}
  assert reasons.keys() == {"running", "broken", "short", "high"}
  assert "unfinished" in reasons["running"]
  assert "macs.final is missing" in reasons["broken"]
  assert "prune.stage_steps is 2, not 5" in reasons["short"]
  assert "save_every" not in reasons["short"]
  assert "madtp did not reach the ratio 0.7" in reasons["high"]


def test_one_model_has_one_table_whatever_its_texts_cost(tmp_path, make):
  for seed in range(2):
    kit.save(tmp_path / str(seed), make(seed))
  other = make(2)
  for name in ("dense", "target", "compacted"):
    other["macs"][name] *= 1.003
  kit.save(
    tmp_path / "texts", other, prune={"validation": 32, "stage_steps": 5}
  )
  sized = kit.save(tmp_path / "sized", make(3), model={"image_size": 32})
  models, left_out = comparable.gather([tmp_path])
  assert sorted(len(members) for members in models.values()) == [1, 2]
  (texts,) = left_out
  assert "prune.validation is 32, not (absent)" in texts.reason
  (members,) = comparable.gather([sized])[0].values()
  result, _ = comparison.compare(members)
  assert result.title.startswith("emoji_tiny, 1.44 G MACs: T2I R@10")


def test_a_run_far_below_its_target_is_named(tmp_path, make):
  low = make(0)
  low["macs"]["compacted"] = 0.96 * low["macs"]["target"]
  kit.save(tmp_path / "low", low)
  # Half a per cent is what compaction may land below.
  just = make(1)
  just["macs"]["compacted"] = 0.9951 * just["macs"]["target"]
  kit.save(tmp_path / "just", just)
  models, (left_out,) = comparable.gather([tmp_path])
  assert [len(members) for members in models.values()] == [1]
  assert left_out.reason == (
    "comp went beyond the ratio 0.7: 71.2 % of the MACs are gone"
  )


def test_which_splits_a_run_reports_changes_no_result(tmp_path, make):
  for seed, splits in enumerate((["val"], ["select", "val"])):
    data = {"name": "emoji", "report_splits": splits}
    kit.save(tmp_path / str(seed), make(seed), data=data)
  models, left_out = comparable.gather([tmp_path])
  assert [len(members) for members in models.values()] == [2]
  assert not left_out


def test_runs_that_learn_another_cost_have_names_of_their_own(tmp_path, make):
  steps = {"stage_steps": 5, "least_step": 0.1}
  for index, (recipe, cost) in enumerate(
    [("comp", "eq8"), ("comp", "paired"), ("uniform", "eq8")]
  ):
    report = make(0, recipe)
    kit.save(tmp_path / str(index), report, prune={**steps, "cost": cost})
  (members,) = comparable.gather([tmp_path])[0].values()
  assert {run.method for run in members} == {
    "comp (cost=eq8)",
    "comp (cost=paired)",
    # It weighs no costs.
    "uniform",
  }
  (members,) = comparable.gather([tmp_path / "0", tmp_path / "2"])[0].values()
  assert {run.method for run in members} == {"comp", "uniform"}
  # Modes rest where one of them is raised per stage, and nowhere else.
  rests = {**steps, "least_step": 0.5, "cost": "eq8"}
  kit.save(tmp_path / "3", make(1, "uniform"), prune=rests)
  kit.save(tmp_path / "4", make(0, "round_robin"), prune=rests)
  kit.save(tmp_path / "5", make(1, "round_robin"), prune={**rests, **steps})
  # Runs from before there was a pace kept none.
  for index, pace in ((6, True), (7, False)):
    report = make(2 + pace, "round_robin")
    kit.save(tmp_path / f"{index}", report, prune={**rests, "keep_pace": pace})
  paths = [tmp_path / f"{i}" for i in range(2, 8)]
  (members,) = comparable.gather(paths)[0].values()
  assert {run.method for run in members} == {
    "uniform",
    "round_robin (least_step=0.5)",
    "round_robin (least_step=0.5, keep_pace=False)",
    # What a config has anyway is not named.
    "round_robin (keep_pace=False)",
  }


def test_a_value_that_a_recipe_has_anyway_does_not_name_it(tmp_path, make):
  """As the axes of a sweep set it in the points that change nothing."""
  for index, (recipe, explore) in enumerate(
    [("comp", 0.2), ("comp", 0.0), ("comp_greedy", 0.0), ("comp_greedy", 0.2)]
  ):
    named = {"name": recipe, "strategy": {"explore": explore, "scarcity": 0.0}}
    kit.save(tmp_path / str(index), make(0, recipe), recipe=named)
  (members,) = comparable.gather([tmp_path])[0].values()
  assert [run.method for run in members] == [
    "comp",
    "comp (explore=0.0)",
    "comp_greedy",
    "comp_greedy (explore=0.2)",
  ]


def test_the_estimator_is_part_of_a_method_that_has_no_score_alone(
  tmp_path, make
):
  """Reports from before there was one say what they say by their recipes."""
  for index, (recipe, estimator) in enumerate(
    [("comp", None), ("comp", "wanda"), ("uniform", None), ("uniform", "wanda")]
  ):
    chosen = {"name": recipe, "estimator": estimator, "strategy": {}}
    kit.save(tmp_path / str(index), make(index, recipe), recipe=chosen)
  (members,) = comparable.gather([tmp_path])[0].values()
  assert [run.method for run in members] == [
    "comp",
    "comp (score=wanda)",
    "uniform",
    "uniform",
  ]
  (members,) = comparable.gather([tmp_path / "1", tmp_path / "2"])[0].values()
  assert [run.method for run in members] == ["comp", "uniform"]


def test_what_is_of_something_else_hides_no_run(tmp_path, make):
  kit.save(tmp_path / "run", make(0))
  (tmp_path / "list").mkdir()
  (tmp_path / "list" / "config.json").write_text("[1, 2]")
  (group := tmp_path / "sweep" / "group_0").mkdir(parents=True)
  points = {"config": {}, "points": [{"seed": 0}, {"seed": 1}]}
  (group / "config.json").write_text(json.dumps(points))
  (group / "results.jsonl").write_text('{"a": 1}\n[]\n')
  models, left_out = comparable.gather([tmp_path])
  assert sum(map(len, models.values())) == 1
  assert [run.reason for run in left_out] == [
    "unfinished: no report.json; the same command goes on with it",
    "failed: line 1 of results.jsonl: it is no point of a sweep",
    "failed: line 2 of results.jsonl: it is no point of a sweep",
  ]


def test_a_search_may_be_cut_into_stages_of_its_own(tmp_path, make):
  """At equal steps in all: UPop marks anew in every step."""
  stages = {"num_stages": 8, "max_stages": 11, "warmup_stages": 1}
  every = {"num_stages": 32, "max_stages": 44, "warmup_stages": 4}
  for index, (recipe, prune) in enumerate(
    [
      ("comp", {**stages, "stage_steps": 4}),
      ("upop", {**every, "stage_steps": 1}),
      ("uniform", {**stages, "stage_steps": 5}),
    ]
  ):
    kit.save(tmp_path / str(index), make(index, recipe), prune=prune)
  models, (out,) = comparable.gather([tmp_path])
  (members,) = models.values()
  assert {run.report["recipe"] for run in members} == {"comp", "upop"}
  assert {run.method: run.cut for run in members} == {
    "comp": "",
    "upop": "(num_stages=32, max_stages=44, warmup_stages=4, stage_steps=1)",
  }
  result, _ = comparison.compare(members)
  said = "upop at 0.7: stages of its own (num_stages=32, max_stages=44, "
  assert any(line.startswith(said) for line in compared.notes(result))
  assert "prune.steps in all is 60, not 48" in out.reason


def test_a_shorter_search_may_be_tuned_for_longer(tmp_path, make):
  stages = {"num_stages": 8, "warmup_stages": 1, "stage_steps": 4}
  for index, (most, tuned) in enumerate(((20, 60), (20, 60), (12, 92))):
    prune, finetune = {**stages, "max_stages": most}, {"steps": tuned}
    kit.save(tmp_path / str(index), make(index), prune=prune, finetune=finetune)
  prune = {**stages, "max_stages": 12}
  kit.save(tmp_path / "3", make(3), prune=prune, finetune={"steps": 60})
  models, (out,) = comparable.gather([tmp_path])
  (members,) = models.values()
  methods = [run.method for run in members]
  assert methods == ["comp", "comp", "comp (max_stages=12)"]
  assert not any(run.cut for run in members)
  assert "steps in all is 112, not 144" in out.reason


def test_rates_are_in_the_name_of_a_method(tmp_path, make):
  rates = (1e-4, 1e-4, 3e-4)
  for index, rate in enumerate(rates):
    tuned = {"learning_rate": rate}
    kit.save(tmp_path / str(index), make(index), finetune=tuned)
  models, left_out = comparable.gather([tmp_path])
  assert not left_out
  (members,) = models.values()
  methods = [run.method for run in members]
  assert methods == ["comp", "comp", "comp (finetune.learning_rate=0.0003)"]


def test_the_usual_stages_are_those_of_a_ratio(tmp_path, make):
  """A higher ratio may need more of them, whatever the recipe."""
  for index, (ratio, most) in enumerate(
    [(0.7, 11), (0.7, 11), (0.7, 11), (0.85, 20), (0.85, 20)]
  ):
    report = {
      **make(index, "uniform" if index == 1 else "comp"),
      "ratio": ratio,
    }
    kit.save(tmp_path / str(index), report, prune={"max_stages": most})
  models, left_out = comparable.gather([tmp_path])
  (members,) = models.values()
  assert not left_out
  found = {(run.ratio, run.method) for run in members}
  assert found == {(0.7, "comp"), (0.7, "uniform"), (0.85, "comp")}


def test_runs_of_another_dense_model_are_left_out(tmp_path, make):
  """A dense model that was trained again has the same path."""
  models = [("aa", 0), ("aa", 0), ("bb", 0.02), (None, 0.02), ("cc", 0.001)]
  for index, (digest, more) in enumerate([*models, ("cc", 0.001)]):
    report = make(0, "uniform") if index == len(models) else make(index)
    for row in report["metrics"]["dense"].values():
      row["t2i_r10"] += more
    if digest:
      report["dense_digest"] = digest
    kit.save(tmp_path / str(index), report)
  models, (out,) = comparable.gather([tmp_path])
  (members,) = models.values()
  assert out.path.name == "2" and "another dense model" in out.reason
  # The same training on another machine differs by rounding, and is told.
  assert len(members) == 5
  result, _ = comparison.compare(members)
  (remark,) = [said for said in result.remarks if "from 2 trainings" in said]
  assert remark.endswith("these differences pair runs of two: uniform at 0.7.")


def test_why_a_folder_has_no_report(tmp_path, make):
  kit.save(tmp_path / "0", make(0))
  programs = {"1": "prune.py", "2": "prune.py", "3": "train.py"}
  for name, program in programs.items():
    (tmp_path / name).mkdir()
    workdir.write(tmp_path / name, {"name": "x"}, program)
  with pytest.raises(errors.UserError, match="diverged"):
    with workdir.claim(tmp_path / "2", {"name": "x"}, "prune.py"):
      raise errors.UserError("the model diverged")
  reasons = {run.path.name: run.reason for run in runs.read([tmp_path])[1]}
  assert reasons["1"].startswith("unfinished")
  assert reasons["2"] == "failed: the model diverged"
  assert "train.py" in reasons["3"]
  # Begun again, it has not failed yet.
  with workdir.claim(tmp_path / "2", {"name": "x"}, "prune.py"):
    reasons = {run.path.name: run.reason for run in runs.read([tmp_path])[1]}
  assert reasons["2"].startswith("unfinished")


def test_one_run_of_each_kind_counts(folder, make):
  kit.save(folder / "again", make(0))
  _, left_out = comparable.gather([folder])
  (again,) = [run for run in left_out if "same recipe" in run.reason]
  assert str(folder / "again") in again.reason


def test_points_of_a_sweep_are_runs_of_their_own_kind(tmp_path):
  """As `train.sweep_group` writes them: a group, its points, a line each."""
  sweep = tmp_path / "sweep"
  group = sweep / "group_0"
  group.mkdir(parents=True)
  points = [
    {"ratio": ratio, "seed": seed, "recipe.strategy.explore": 0.0}
    for ratio in (0.5, 0.7)
    for seed in (0, 1)
  ]
  groups = [
    {"fixed": {"recipe.name": name}, "points": points[:most]}
    for name, most in (("comp", 4), ("tome", 1), ("evit", 1))
  ]
  (sweep / "config.json").write_text(
    json.dumps({"config": "configs/x.py", "groups": groups})
  )
  index = [
    {"group": "group_1", "status": "failed", "reason": "no such recipe"},
    {"group": "group_2", "status": "waiting", "reason": ""},
  ]
  (sweep / runs.INDEX).write_text(json.dumps({"points": index}))
  config = {"ratio": 0.5, "seed": 0, "recipe": {"name": "comp"}}
  config |= {"data": {"name": "emoji"}}
  (group / "config.json").write_text(
    json.dumps({"config": config, "points": points})
  )
  lines = []
  for point in points[:3]:
    line = {
      "name": "x",
      "recipe": "comp",
      "ratio": point["ratio"],
      "seed": point["seed"],
      "status": "done" if len(lines) != 1 else "failed",
      "reason": ("", "a loss is not finite", "it ended above")[len(lines)],
      "how": "masked",
      "macs": {"dense": 10.0, "target": 5.0, "final": 4.99},
      "metrics": {"finetuned_masked": {"test": {"accuracy": 0.6}}},
    }
    lines.append(json.dumps(line))
  (group / runs.RESULTS).write_text("\n".join(lines) + "\n")
  kit.keep(
    workdir.point(group, 0), "accuracy", [True, True, False, False, True]
  )
  # A group that is named beside its sweep counts once.
  models, left_out = comparable.gather([sweep, group])
  (members,) = models.values()
  assert [run.key for run in members] == [
    # What all runs changed is not named.
    ("comp", 0.5, 0),
    ("comp", 0.7, 0),
  ]
  # What all points share does not name them.
  assert [run.reason for run in left_out] == [
    "failed: a loss is not finite (recipe.name=comp ratio=0.5 seed=1)",
    "unfinished: not in results.jsonl; the same command goes on with it "
    "(recipe.name=comp ratio=0.7 seed=1)",
    "failed: no such recipe (recipe.name=tome ratio=0.5 seed=0)",
    "not run; the same command goes on with it "
    "(recipe.name=evit ratio=0.5 seed=0)",
  ]
  result, _ = comparison.compare(members)
  assert result.dense is None and result.cells[0].mean == 0.6
  assert compared.notes(result)[-2:] == [
    "Points of a sweep: masked.",
    "comp at 0.7, seed 0: it ended above.",
  ]
  known = json.loads(lines[0])
  known["metrics"]["dense"] = {"test": {"accuracy": 0.7}}
  (group / runs.RESULTS).write_text("\n".join([json.dumps(known), *lines[1:]]))
  (of_dense,) = comparable.gather([sweep])[0].values()
  assert comparison.compare(of_dense)[0].dense == 0.7
  spans = {cell.ratio: cell.interval for cell in result.cells}
  assert spans[0.5].over == bootstrap.EXAMPLES and spans[0.7] is None
  missed = [lines[0], lines[1], lines[2].replace("4.99", "4.0")]
  (group / runs.RESULTS).write_text("\n".join(missed))
  assert comparable.gather([sweep])[1][-1].reason == (
    "comp went beyond the ratio 0.7: 60.0 % of the MACs are gone; it ended "
    "above"
  )
  # A copy that was cut short.
  (group / runs.RESULTS).write_text("\n".join(lines)[:-20])
  models, left_out = comparable.gather([sweep])
  assert [len(members) for members in models.values()] == [1]
  assert "failed: line 3 of results.jsonl" in left_out[1].reason

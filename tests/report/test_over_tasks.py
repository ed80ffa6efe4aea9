"""Differences on several tasks, and their mean."""

import csv

import numpy as np
import pytest

from comp_jax.cli import verbs
from comp_jax.report import comparable, compared, comparison, over_tasks
from tests.report import kit


def _run(folder, make, task, method, found, *, seed=0, **config):
  """A run whose texts were found, or not, as `found` says."""
  report = kit.with_recall(make(seed, method), float(np.mean(found)))
  report["name"] = task
  data = {"name": task}
  path = kit.save(
    folder / task / f"{method}{seed}", report, data=data, **config
  )
  kit.keep(path, "t2i_rank", np.where(found, 0, 50)[:, None])


@pytest.fixture
def tasks(tmp_path, make):
  """Photos: uniform misses 8 of 100 more than comp; birds: 2 of 50 less."""
  photos, birds = np.arange(100) < 60, np.arange(50) < 30
  _run(tmp_path, make, "photos", "comp", photos)
  _run(tmp_path, make, "photos", "uniform", np.arange(100) < 52)
  _run(tmp_path, make, "photos", "random", np.arange(100) < 10)
  _run(tmp_path, make, "birds", "comp", birds)
  _run(tmp_path, make, "birds", "uniform", np.arange(50) < 32)
  return tmp_path


def _comparisons(folder, **options):
  models, left_out = comparable.gather([folder])
  assert not left_out
  return [
    comparison.compare(members, split="test", **options)[0]
    for members in models.values()
  ]


def test_tasks_have_equal_weight(tasks):
  (mean,) = over_tasks.means(_comparisons(tasks))
  assert (mean.method, mean.ratio) == ("uniform", 0.7)
  assert set(mean.tasks) == {"photos", "birds"}
  assert mean.difference == pytest.approx((-0.08 + 0.04) / 2)
  # Of each task p (1 - p) / n, of their mean a quarter of the sum.
  spread = np.sqrt((0.08 * 0.92 / 100 + 0.04 * 0.96 / 50) / 4)
  width = mean.interval.high - mean.interval.low
  assert width == pytest.approx(2 * 1.96 * spread, rel=0.1)


def test_one_task_alone_has_no_mean_and_a_loss_takes_no_part(tasks):
  photos, birds = _comparisons(tasks)
  assert not over_tasks.means([photos]) and compared.across([birds]) is None
  losses = _comparisons(tasks, metric="loss")
  assert not over_tasks.means([photos, *losses])


def test_constants_of_one_task_are_no_other_method(tasks, make):
  """UPop by magnitude here and by Taylor there; but two forms are two."""
  changed = {"name": "upop", "score": "magnitude", "strategy": {}}
  _run(tasks, make, "photos", "upop", np.arange(100) < 20, recipe=changed)
  _run(tasks, make, "birds", "upop", np.arange(50) < 10)
  by_name = {m.method: m for m in over_tasks.means(_comparisons(tasks))}
  assert by_name["upop"].difference == pytest.approx(-0.4)
  _run(tasks, make, "birds", "upop", np.arange(50) < 5, seed=1, recipe=changed)
  by_name = {m.method: m for m in over_tasks.means(_comparisons(tasks))}
  assert set(by_name) == {"uniform"}


def test_the_mean_is_printed_and_written(tasks, tmp_path, capsys):
  out = tmp_path / "out"
  command = ["compare", str(tasks), "--split", "test", "--out", str(out)]
  assert verbs.main(command) == 0
  assert "Mean over tasks" in capsys.readouterr().out
  assert "## Mean over tasks" in (out / "compare.md").read_text()
  assert "Mean over tasks</h2>" in (out / "compare.html").read_text()
  with (out / "compare.csv").open() as stream:
    *_, last = csv.DictReader(stream)
  assert last["metric"] == "mean over tasks" and last["recipe"] == "uniform"
  assert float(last["difference"]) == pytest.approx(-0.02)
  assert float(last["difference_low"]) < -0.02 < float(last["difference_high"])

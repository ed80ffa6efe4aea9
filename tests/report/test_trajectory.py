"""Searches side by side: what each mode removed, and how it is shown."""

import json
import xml.etree.ElementTree

import hypothesis
import hypothesis.strategies as st
import pytest

from comp_jax import errors
from comp_jax.cli import verbs
from comp_jax.report import trajectory

FEW = hypothesis.settings(max_examples=60)
_MODES = st.sampled_from(
  ["warmup", "none", "vision_tokens", "vision_params", "all", "a+b"]
)


@pytest.fixture
def folder(tmp_path, make):
  """CoMP, CoMP without exploration, and a run that pruned nothing."""
  plain = make(recipe="comp_no_exploration")
  for stage in plain["stages"]:
    stage["explored"] = False
  plain["stages"][3]["mode"] = "vision_params+language_params"
  warmup = {**make()["stages"][0], "mode": "warmup"}
  unpruned = make(stages=[warmup])
  reports = {"comp": make(), "plain": plain, "unpruned": unpruned}
  for name, report in reports.items():
    (tmp_path / name).mkdir()
    (tmp_path / name / "report.json").write_text(json.dumps(report))
  (tmp_path / "running").mkdir()
  (tmp_path / "running" / "config.json").write_text("{}")
  return tmp_path


def test_each_mode_gets_what_its_stages_removed():
  stages = [
    {"mode": "warmup", "macs_before": 10.0, "macs": 10.5},
    {"mode": "vision_tokens", "macs_before": 10.5, "macs": 8.0},
    {"mode": "vision_params", "macs_before": 8.0, "macs": 6.0},
    {"mode": "vision_tokens", "macs_before": 6.0, "macs": 6.5},
  ]
  assert trajectory.removed(stages, 10.0, 6.0) == pytest.approx(
    {"vision_params": 0.2, "vision_tokens": 0.2, trajectory.REST: 0.0}
  )


@FEW
@hypothesis.given(
  st.lists(st.tuples(_MODES, st.floats(0.1, 1.0)), min_size=1, max_size=8),
  st.floats(0.1, 1.0),
)
def test_all_shares_sum_to_what_is_gone(steps, final):
  before, stages = 1.0, []
  for mode, macs in steps:
    stages.append({"mode": mode, "macs_before": before, "macs": macs})
    before = macs
  shares = trajectory.removed(stages, 1.0, final)
  assert sum(shares.values()) == pytest.approx(1.0 - final)
  pruned = {mode for mode, _ in steps} - {"warmup", "none"}
  assert shares.keys() == pruned | {trajectory.REST}


def test_runs_are_named_by_what_tells_them_apart(folder, make):
  members, left_out = trajectory.read([str(folder)])
  assert trajectory.labels(members) == ["comp", "comp_no_exploration"]
  reasons = {run.path.name: run.reason for run in left_out}
  assert reasons["unpruned"] == "it pruned nothing"
  assert "unfinished" in reasons["running"]
  (folder / "seed").mkdir()
  (folder / "seed" / "report.json").write_text(json.dumps(make(seed=1)))
  members, _ = trajectory.read([str(folder)])
  assert trajectory.labels(members)[0] == "comp, seed 0"
  (folder / "twin").mkdir()
  (folder / "twin" / "report.json").write_text(json.dumps(make(seed=1)))
  members, _ = trajectory.read([str(folder)])
  names = trajectory.labels(members)
  assert len(set(names)) == len(names) == 4
  with pytest.raises(errors.UserError, match="it pruned nothing"):
    trajectory.read([str(folder / "unpruned")])


@pytest.mark.parametrize("draw", [trajectory.strips, trajectory.bars])
def test_figures_show_every_mode(folder, draw):
  rows = trajectory.data(trajectory.read([str(folder)])[0])
  svg = draw(rows)
  assert svg == draw(rows) != draw(rows, dark=True)
  assert xml.etree.ElementTree.fromstring(svg).tag.endswith("svg")
  for mode in ("vision_tokens", "language_tokens", "language_params"):
    assert trajectory.style.colour(mode).lower().encode() in svg.lower()
  # Two modes at once are two bands, not a colour of their own.
  assert trajectory.style.FALLBACK_COLOUR.lower().encode() not in svg.lower()


def test_the_verb_prints_and_writes(folder, tmp_path, capsys):
  out = tmp_path / "out"
  assert verbs.main(["inspect", "stages", str(folder), "--out", str(out)]) == 0
  printed = " ".join(capsys.readouterr().out.split())
  assert "left out" in printed and "language tokens *" in printed
  names = {"stages.html", "stages.json", "stages.svg", "removed.svg"}
  assert {path.name for path in out.iterdir()} == names
  rows = json.loads((out / "stages.json").read_text())
  assert [row["name"] for row in rows] == ["comp", "comp_no_exploration"]
  assert rows[0]["stages"][4]["explored"]
  assert sum(rows[0]["removed"].values()) == pytest.approx(1 - 0.3 * 0.997)
  page = (out / "stages.html").read_text()
  assert page.count("data:image/svg+xml") == 4
  assert verbs.main(["inspect", "stages", str(folder / "running")]) == 2
  assert "unfinished" in capsys.readouterr().err

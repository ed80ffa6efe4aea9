"""Where a sweep says that its points are."""

import io
import json

import pytest
import rich.console

from comp_jax.cli import configs, points, standing
from comp_jax.report import runs
from comp_jax.train import sweep_group


@pytest.fixture(scope="module")
def groups():
  """Two groups of two points: one beyond reach, one within."""
  config = configs.load("configs/emoji_tiny.py")
  axes = ["recipes=comp,uniform", "ratios=0.99,0.5", "seeds=3"]
  return points.split(points.axes(config, axes))


@pytest.fixture
def searching(groups, tmp_path):
  """A sweep's folder whose first group is in its search."""
  (folder := tmp_path / groups[0].name).mkdir()
  row = {"mode": "text_tokens", "macs_fraction": 0.7, "metric": -1.25}
  # No stage of the first ran, ever.
  told = {"phase": "search", "members": [{}, row]}
  (folder / sweep_group.PROGRESS).write_text(json.dumps(told))
  return tmp_path


def test_the_live_table_says_where_each_point_is(groups, searching):
  console = rich.console.Console(width=100, record=True, file=io.StringIO())
  found = standing.read(groups, searching, running=["group_0", "group_1"])
  console.print(standing.table(found))
  lines = console.export_text().splitlines()[-5:-1]
  assert [line.split() for line in lines] == [
    ["recipe.name=comp", "ratio=0.99", "search"],
    "recipe.name=comp ratio=0.5 search text_tokens 70.0% -1.250".split(),
    ["recipe.name=uniform", "ratio=0.99", "starting"],
    ["recipe.name=uniform", "ratio=0.5", "starting"],
  ]


@pytest.mark.parametrize(
  ("running", "failed", "status", "reason"),
  [
    (["group_0"], {}, "search", ""),
    ([], {}, "waiting", ""),
    ([], {"group_0": "no such data"}, "failed", "no such data"),
  ],
)
def test_the_index_tells_a_group_that_runs_from_one_that_does_not(
  groups, searching, running, failed, status, reason
):
  found = standing.read(groups, searching, running, failed)
  standing.write(groups, found, searching)
  index = json.loads((searching / runs.INDEX).read_text())["points"]
  assert [p["status"] for p in index] == [status] * 2 + ["waiting"] * 2
  assert [p["reason"] for p in index] == [reason] * 2 + [""] * 2
  assert (searching / runs.RESULTS).read_text() == ""

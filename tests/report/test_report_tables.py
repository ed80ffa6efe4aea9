"""The tables say what the report says."""

import io
import re

import pytest
import rich.console

from comp_jax import errors
from comp_jax.report import tables, text


def _rows(markdown: str) -> list[list[str]]:
  lines = [line for line in markdown.splitlines() if line.startswith("|")]
  return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def test_summary_numbers_match_the_report(report):
  first, second = tables.summary(report)
  assert (first.title, second.title) == ("Split test", "Split select")
  assert first.columns[:4] == ("Model", "MACs", "removed", "params")
  assert [row[0] for row in first.rows] == list(tables.ROW_NAMES.values())
  keys = ("dense", "masked", "compacted", "final")
  for row, key in zip(first.rows, keys, strict=False):
    assert float(row[1].split()[0]) == pytest.approx(
      report["macs"][key] / 1e9, abs=0.005
    )
  assert first.rows[3][2] == "70.1 %"
  assert [row[3].split()[0] for row in first.rows] == [
    "1.05",
    "1.05",
    "0.61",
    "0.61",
    "0.61",
  ]
  for grid, split in ((first, "test"), (second, "select")):
    for row, key in zip(grid.rows, tables.ROW_NAMES, strict=True):
      metrics = report["metrics"][key][split]
      names = [text.metric_name(name) for name in metrics]
      assert list(grid.columns[4:]) == names
      assert row[4:] == tuple(f"{value:.3f}" for value in metrics.values())


def test_thresholds_have_no_macs_unless_measured(report):
  assert tables.summary(report)[0].rows[-1][1:3] == ("–", "–")
  report["macs"]["finetuned_threshold"] = 0.5 * report["macs"]["dense"]
  assert tables.summary(report)[0].rows[-1][2] == "50.0 %"


def test_notes_tell_the_cost_of_static_counts(report):
  notes = " ".join(tables.notes(report))
  assert "T2I R@10 0.287 against 0.290 (−0.003)" in notes
  assert "convention “inference”" in notes
  assert "stage_step 1" in notes
  assert "Time on 1 x cpu: prune 151.2 s" in notes


def test_stages_match_the_report(report):
  grid = tables.stages(report)
  assert len(grid.rows) == 13 and grid.modes[0] == "warmup"
  at = grid.columns.index("trained")
  for row, stage in zip(grid.rows, report["stages"], strict=True):
    assert row[at] == f"{stage['metric']:.3f}".replace("-", "−")
    assert row[2] == ("yes" if stage["explored"] else "")
  assert grid.rows[0][grid.columns.index("Cost (Eq.\u00a08)")] == "–"


def test_dense_only(dense_only):
  grid = tables.summary(dense_only)[0]
  assert [row[0] for row in grid.rows] == ["dense"]
  assert tables.stages(dense_only).rows == ()


def test_terminal_table_fits_80_columns(report):
  stream = io.StringIO()
  console = rich.console.Console(file=stream, width=80)
  report["name"] = "run [bold]x[/bold]"
  tables.print_summary(report, console)
  out = stream.getvalue()
  assert "…" not in out
  assert "run [bold]x[/bold]" in out
  assert re.search(r"fine-tuned +0\.43 G +70\.1 % +0\.61 M +0\.115", out)
  assert max(len(line) for line in out.splitlines()) <= 80


def test_numbers():
  assert text.number(-0.0001) == "0.000"
  assert text.number(-1.5, 1) == "−1.5"
  assert text.number(None) == text.number(float("nan")) == "–"
  assert text.quantity(5.6e6, 8e6) == "5.60 M"
  assert text.quantity(22.1e9, 132.5e9) == "22.1 G"
  assert text.significant(0.01234) == "0.0123"
  assert text.significant(-12.34) == "−12.3"
  assert text.significant(0.0) == "0.00"
  assert text.metric_name("i2t_r5") == "I2T R@5"
  assert text.metric_name("loss") == "loss"


def test_markdown_escapes_the_bar():
  grid = tables.Grid(title="", columns=("a",), rows=(("x|y",),))
  assert "x\\|y" in tables.markdown(grid)


def test_comparison_groups_and_averages(make):
  # make() adds 0.01 per seed to the fine-tuned R@10.
  reports = [make(seed=s) for s in (2, 0, 1)]
  reports += [make(seed=7, recipe="uniform")]
  reports += [make(seed=0, ratio=0.5)]
  rows = _rows(tables.comparison(reports, "t2i_r10", "test"))[2:]
  assert [row[:3] for row in rows] == [
    ["comp", "0.5", "0"],
    ["uniform", "0.7", "7"],
    ["comp", "0.7", "0, 1, 2"],
  ]
  assert rows[0][-1] == "**0.287**"
  assert rows[1][-1] == "**0.357**"  # 0.287 + 0.07, best at 0.7.
  assert rows[2][-1] == "0.297 ± 0.010"  # Sample deviation of .287, .297, .307.
  assert rows[2][5] == "0.312 ± 0.000"
  assert rows[2][3:5] == ["0.43 G", "70.1 %"]


def test_comparison_prefers_the_lower_loss(make):
  worse = make(recipe="a")
  worse["metrics"]["finetuned"]["test"]["loss"] = 9.0
  absent = make(recipe="b")
  del absent["metrics"]["finetuned"]
  out = tables.comparison([worse, absent, make()], "loss", "test")
  assert [row[0] for row in _rows(out)[2:]] == ["comp", "a", "b"]
  assert "lower is better" in out and "**1.660**" in out
  assert "**9.000**" not in out and _rows(out)[-1][-1] == "–"


def test_comparison_says_when_a_seed_is_unmeasured(make):
  reports = [make(seed=s) for s in range(3)]
  reports[0]["metrics"]["finetuned"]["test"]["t2i_r10"] = None
  out = tables.comparison(reports, "t2i_r10", "test")
  assert "0.302 ± 0.007 (2 of 3)" in out


def test_comparison_refuses_what_cannot_be_averaged(make):
  with pytest.raises(errors.UserError, match="no reports"):
    tables.comparison([], "t2i_r10", "test")
  with pytest.raises(errors.UserError, match="no split dev; it has select"):
    tables.comparison([make()], "t2i_r10", "dev")
  with pytest.raises(errors.UserError, match="no metric accuracy on test"):
    tables.comparison([make()], "accuracy", "test")
  other = make(seed=1)
  other["macs"]["dense"] *= 2
  with pytest.raises(errors.UserError, match="different models"):
    tables.comparison([make(), other], "t2i_r10", "test")

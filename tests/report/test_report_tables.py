"""The tables say what the report says."""

import io
import re

import pytest
import rich.console

from comp_jax.report import tables, text


def _rows(markdown: str) -> list[list[str]]:
  lines = [line for line in markdown.splitlines() if line.startswith("|")]
  return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def test_summary_numbers_match_the_report(report):
  first, second = tables.summary(report)
  assert (first.title, second.title) == ("Split test", "Split select")
  assert first.columns[:4] == ("Model", "MACs", "removed", "params")
  assert [row[0] for row in first.rows] == list(tables.ROW_NAMES.values())
  report["macs"]["final"] *= 1.3
  keys = ("dense", "masked", "compacted", "compacted")
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
  assert "Training alone, in the warm-up, took the selection metric" in notes
  assert "stage_step 1" in notes
  assert "Time on 1 x cpu: prune 151.2 s" in notes
  assert "did not reach" not in notes and "saved model" not in notes
  report["macs"]["final"] = 1.02 * report["macs"]["target"]
  assert "The saved model costs 0.44 G, 2.00% above the target" in " ".join(
    tables.notes(report)
  )
  report["macs"]["final"] = 0.98 * report["macs"]["target"]
  said = " ".join(tables.notes(report))
  assert "2.00% below the target: no thresholds of its token rule" in said
  report["macs"]["final"] = 1.02 * report["macs"]["target"]
  report["warnings"] = ["the search ended 5.0% above its target"]
  assert tables.notes(report)[1] == "The search ended 5.0% above its target."
  report["macs"]["masked"] *= 1.1
  assert "The search did not reach the target: 0.47 G were left" in " ".join(
    tables.notes(report)
  )


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


def test_a_wide_table_comes_in_parts_that_fit():
  columns = ("Stage", *(f"comp, seed {i}" for i in range(30)))
  rows = tuple(
    (f"{i}", *(f"vision tokens {i}.{j}" for j in range(30))) for i in range(3)
  )
  grid = tables.Grid(title="Stages", columns=columns, rows=rows)
  parts = tables.fitting(grid, 100)
  assert parts[0].title == "Stages" and parts[1].title == "Stages, continued"
  # Every column once, the first in each part, in order.
  assert [c for part in parts for c in part.columns[1:]] == list(columns[1:])
  for place in range(3):
    cells = [c for part in parts for c in part.rows[place][1:]]
    assert cells == list(rows[place][1:])
  console = rich.console.Console(width=100, record=True, file=io.StringIO())
  tables.print_part(console, "Title", [grid], [])
  said = console.export_text()
  assert "…" not in said and said.count("vision tokens") == 90
  assert tables.fitting(parts[0], 100) == [parts[0]]


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

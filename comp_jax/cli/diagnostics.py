"""`inspect stages`: the paper's figures about a method, not its results."""

import argparse
import json
import pathlib
from typing import Any

import rich.console
import rich.text

from comp_jax.report import html, section, tables, trajectory, write

_WIDTH = 110  # Characters that the names of runs need.


def add(what: argparse._SubParsersAction) -> None:
  """Declares what `inspect` can look into beside costs."""
  stages = what.add_parser(
    "stages", help="modes over stages, and what each removed (Figures 6, C)"
  )
  stages.add_argument(
    "runs",
    nargs="+",
    metavar="RUNS",
    help="folders of finished runs, or folders of such folders",
  )
  _add_out(stages)
  stages.set_defaults(run=_stages)


def _add_out(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--out", help="folder for the numbers (JSON), figures (SVG) and a page"
  )


def _stages(arguments: argparse.Namespace) -> None:
  """Prints the stages of finished runs side by side."""
  members, left_out = trajectory.read(arguments.runs)
  rows = trajectory.data(members)
  part = trajectory.show(rows)
  console = rich.console.Console()
  for run in left_out:
    line = f"left out: {run.path}: {run.reason}"
    console.print(rich.text.Text(line), soft_wrap=True)
  _show(console, arguments, ", ".join(r["name"] for r in rows), part, rows)


def _show(
  console: rich.console.Console,
  arguments: argparse.Namespace,
  subtitle: str,
  part: section.Section,
  data: Any,
) -> None:
  """Prints the tables; with `--out` writes data, figures and a page.

  Args:
    console: to print on.
    arguments: `what` names the files.
    subtitle: of the page.
    part: what to show.
    data: the same for programs.
  """
  console.width = max(console.width, _WIDTH)
  tables.print_part(console, part.title, part.grids, part.notes)
  if not arguments.out:
    return
  name = arguments.what
  page = html.sections_page(part.title, subtitle, [part], f"{name}.json")
  numbers = json.dumps(write.plain(data), indent=2, allow_nan=False)
  files = {f"{figure.name}.svg": figure.draw(False) for figure in part.figures}
  files |= {
    f"{name}.html": page.encode(),
    f"{name}.json": (numbers + "\n").encode(),
  }
  folder = pathlib.Path(arguments.out)
  write.write_files(folder, files)
  console.print(f"written to {folder}", highlight=False)

"""`inspect stages`, `overlap`: the paper's figures about how pruning works."""

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import rich.console
import rich.text

from comp_jax import errors
from comp_jax.cli import shell
from comp_jax.report import (
  html,
  measures,
  section,
  tables,
  trajectory,
  write,
)

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
  overlap = what.add_parser(
    "overlap",
    help="tokens that dominate parameter importance against the most "
    "important ones, per layer (Figure 2a)",
  )
  _add_model(overlap)
  overlap.add_argument(
    "--share",
    type=float,
    default=0.25,
    help="of the tokens that count as best (%(default)s)",
  )
  overlap.set_defaults(run=_overlap)


def _add_out(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--out", help="folder for the numbers (JSON), figures (SVG) and a page"
  )


def _add_model(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--model",
    help="dense model: its folder or file, or the workdir of train.py (the "
    "config's checkpoint)",
  )
  parser.add_argument("--config", required=True, help="config file")
  parser.add_argument(
    "--examples",
    type=int,
    default=64,
    help="examples of `select` to measure on, one batch (%(default)s)",
  )
  _add_out(parser)


def _job(arguments: argparse.Namespace):
  """The pruning job of a model, on as many examples as asked."""
  from comp_jax.train import prepare

  config = shell.load_config(arguments.config)
  if arguments.examples < 1:
    raise errors.UserError(
      f"--examples must be 1 or more, not {arguments.examples}"
    )
  if arguments.model:
    path = pathlib.Path(arguments.model)
    inner = path / "model"
    config.checkpoint = str(inner if inner.is_dir() else path)
  # A single chunk: all examples are one batch.
  config.prune.validation = arguments.examples
  config.prune.validation_chunk = arguments.examples
  return prepare.prepare(config)


def _batch(job) -> Mapping[str, Any]:
  """All examples."""
  return jax.tree.map(lambda x: x[0], job.select)


def _share(arguments: argparse.Namespace) -> float:
  if not 0 < arguments.share < 1:
    raise errors.UserError(
      f"--share must be between 0 and 1, not {arguments.share:g}"
    )
  return arguments.share


def _overlap(arguments: argparse.Namespace) -> None:
  """Prints how far parameter and token importance look at the same tokens."""
  from comp_jax.train import diagnose

  share = _share(arguments)
  job = _job(arguments)
  found = diagnose.overlap(
    job.spec, job.stage.prunable, job.dense.params, _batch(job), share
  )
  _show_measured(arguments, job, measures.overlap(found), found)


def _show_measured(arguments, job, part, found) -> None:
  """Prints and writes a measure, and what it was measured on."""
  count = jax.tree.leaves(job.select)[0].shape[1]
  data = {
    "model": job.config.checkpoint,
    "config": arguments.config,
    "examples": count,
    "share": arguments.share,
    "groups": found,
  }
  _show(
    rich.console.Console(),
    arguments,
    f"{job.config.name}, {job.config.checkpoint}, {count} examples of select, "
    f"best {arguments.share:.0%}",
    part,
    data,
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

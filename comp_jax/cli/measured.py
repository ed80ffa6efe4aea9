"""What the verbs that measure share: options, the job, how all is shown."""

import argparse
import json
import math
import pathlib
from typing import Any

import jax
import rich.console

from comp_jax import errors
from comp_jax.cli import configs
from comp_jax.report import html, section, tables, write

_WIDTH = 110  # Characters that the names of runs need.


def add_out(parser: argparse.ArgumentParser) -> None:
  """Declares where to write."""
  parser.add_argument(
    "--out", help="folder for the numbers (JSON), figures (SVG) and a page"
  )


def add_model(
  parser: argparse.ArgumentParser,
  examples: int = 64,
  whole: str = "one batch",
) -> None:
  """Declares the model and the examples; `whole` says how they are used."""
  parser.add_argument(
    "--model",
    help="dense model: its folder or file, or the workdir of train.py (the "
    "config's checkpoint)",
  )
  configs.add_argument(parser)
  parser.add_argument(
    "--examples",
    type=int,
    default=examples,
    help=f"examples of `select` to measure on, {whole} (%(default)s)",
  )
  add_out(parser)


def add_recipe(parser: argparse.ArgumentParser) -> None:
  """Declares the recipe, where one matters."""
  parser.add_argument(
    "--recipe", help="recipe that scores the units (the config's)"
  )


def prepared(arguments: argparse.Namespace, chunk: int | None = None):
  """The pruning job of a model, on as many examples as asked.

  Args:
    arguments: what the user typed.
    chunk: examples of a forward pass; None for all of them.
  """
  from comp_jax.train import prepare

  config = configs.load(arguments.config, arguments.changes)
  if arguments.examples < 1:
    raise errors.UserError(
      f"--examples must be 1 or more, not {arguments.examples}"
    )
  if arguments.model:
    config.checkpoint = str(model(arguments.model))
  if getattr(arguments, "recipe", None):
    config.recipe.name = arguments.recipe
  config.prune.validation = arguments.examples
  config.prune.validation_chunk = chunk or arguments.examples
  try:
    return prepare.prepare(config)
  except errors.UserError as error:
    # The key that stands for the option, not for what the user typed.
    if "prune.validation_chunk" in str(error):
      option = (
        f"--sizes {chunk}" if chunk else f"--examples {arguments.examples}"
      )
      raise errors.UserError(f"{option}: {error}") from error
    raise


def model(path: str) -> pathlib.Path:
  """The folder or file of a model, or the model in the workdir of a run."""
  inner = pathlib.Path(path) / "model"
  return inner if inner.is_dir() else pathlib.Path(path)


def count(job) -> int:
  """The examples in hand: `select` may have fewer than asked for."""
  return math.prod(jax.tree.leaves(job.select)[0].shape[:2])


def show(arguments, job, part, options, found) -> None:
  """Prints and writes a measure, and what it was measured on."""
  on = {
    "model": job.config.checkpoint,
    "config": arguments.config,
    "examples": count(job),
    **options,
  }
  listed = ", ".join(f"{key} {value}" for key, value in on.items())
  console = rich.console.Console()
  print_part(console, arguments, listed, part, {**on, "found": found})


def print_part(
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

"""`inspect stages`, `overlap`, `ranks`, `influence`, `damage`, `choice`.

How pruning works: the paper's figures that are not about results, and what
scores are worth.
"""

import argparse
import json
import math
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

# Shares of each layer's heads that `ranks` removes.
_HEADS = (0.0, 0.25, 0.5, 0.75)
# Examples of the subsets that `choice` compares.
_SIZES = (64, 128, 256)
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
  ranks = what.add_parser(
    "ranks",
    help="how far orders of tokens and neurons move when heads go, with CIT "
    "and without (Figure 5)",
  )
  _add_model(ranks)
  _add_recipe(ranks)
  ranks.add_argument(
    "--faded",
    type=float,
    default=1.0,
    help="how far the heads have faded (%(default)s: they are gone)",
  )
  ranks.set_defaults(run=_ranks)
  influence = what.add_parser(
    "influence",
    help="whether the least important units move the order of the tokens "
    "(Figure 2b)",
  )
  _add_model(influence)
  _add_recipe(influence)
  influence.add_argument(
    "--share",
    type=float,
    default=0.3,
    help="of the units that is least important (%(default)s)",
  )
  influence.add_argument(
    "--units",
    type=int,
    default=8,
    help="units to try of each block, one forward pass each (%(default)s)",
  )
  influence.set_defaults(run=_influence)
  damage = what.add_parser(
    "damage",
    help="the metric when a mode's lowest units go, by score and by how "
    "layers are compared",
  )
  _add_model(damage)
  damage.add_argument(
    "--mode",
    default="vision_params",
    help="mode that loses units (%(default)s)",
  )
  damage.add_argument(
    "--removed",
    type=float,
    nargs="+",
    default=(0.05, 0.1, 0.2),
    metavar="SHARE",
    help="of the dense MACs (0.05 0.1 0.2)",
  )
  damage.set_defaults(run=_damage)
  choice = what.add_parser(
    "choice",
    help="which mode would be pruned first if fewer examples were validated",
  )
  _add_model(choice, examples=512, whole="cut into subsets")
  _add_recipe(choice)
  choice.add_argument(
    "--sizes",
    type=int,
    nargs="+",
    default=_SIZES,
    metavar="EXAMPLES",
    help="of the subsets, multiples of the first (64 128 256)",
  )
  choice.set_defaults(run=_choice)


def _add_out(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--out", help="folder for the numbers (JSON), figures (SVG) and a page"
  )


def _add_model(
  parser: argparse.ArgumentParser,
  examples: int = 64,
  whole: str = "one batch",
) -> None:
  parser.add_argument(
    "--model",
    help="dense model: its folder or file, or the workdir of train.py (the "
    "config's checkpoint)",
  )
  parser.add_argument("--config", required=True, help="config file")
  parser.add_argument(
    "--examples",
    type=int,
    default=examples,
    help=f"examples of `select` to measure on, {whole} (%(default)s)",
  )
  _add_out(parser)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--recipe", help="recipe that scores the units (the config's)"
  )


def _job(arguments: argparse.Namespace, chunk: int | None = None):
  """The pruning job of a model, on as many examples as asked.

  Args:
    arguments: what the user typed.
    chunk: examples of a forward pass; None for all of them.
  """
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


def _batch(job) -> Mapping[str, Any]:
  """All examples."""
  return jax.tree.map(lambda x: x[0], job.select)


def _count(job) -> int:
  """The examples in hand: `select` may have fewer than asked for."""
  return math.prod(jax.tree.leaves(job.select)[0].shape[:2])


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
  options = {"share": share}
  _show_measured(arguments, job, measures.overlap(found), options, found)


def _ranks(arguments: argparse.Namespace) -> None:
  """Prints how far orders move when heads go, with CIT and without."""
  from comp_jax.train import diagnose

  if not 0 < arguments.faded <= 1:
    raise errors.UserError(
      f"--faded must be above 0 and at most 1, not {arguments.faded:g}"
    )
  job = _job(arguments)
  if job.config.model.granularity != "head":
    raise errors.UserError(
      "CIT gates heads, and the gates of channels are all equal: set "
      "config.model.granularity=head"
    )
  found = diagnose.ranks(
    job.stage, job.dense.params, _batch(job), _HEADS, arguments.faded
  )
  options = {
    "recipe": job.stage.recipe.name,
    "heads_removed": _HEADS,
    "faded": arguments.faded,
  }
  part = measures.ranks(found, _HEADS)
  _show_measured(arguments, job, part, options, found)


def _influence(arguments: argparse.Namespace) -> None:
  """Prints how many unimportant units move the order of the tokens."""
  from comp_jax.train import diagnose

  share = _share(arguments)
  if arguments.units < 2:
    raise errors.UserError(f"--units must be 2 or more, not {arguments.units}")
  job = _job(arguments)
  found = diagnose.influence(
    job.stage, job.dense.params, _batch(job), share, arguments.units
  )
  options = {
    "recipe": job.stage.recipe.name,
    "share": share,
    "units": arguments.units,
  }
  part = measures.influence(found, share)
  _show_measured(arguments, job, part, options, found)


def _damage(arguments: argparse.Namespace) -> None:
  """Prints what is left of the metric when units go, score by score."""
  from comp_jax.train import trials

  shares = tuple(arguments.removed)
  if wrong := [share for share in shares if not 0 < share < 1]:
    raise errors.UserError(
      f"--removed must be between 0 and 1, not {wrong[0]:g}"
    )
  job = _job(arguments)
  known = job.stage.prunable.param_modes
  if arguments.mode not in known:
    raise errors.UserError(
      f"--mode {arguments.mode}: the modes that remove units are "
      f"{', '.join(known)}"
    )
  found = trials.damage(
    job.stage,
    job.dense.params,
    _training(job),
    job.select,
    arguments.mode,
    shares,
  )
  options = {
    "mode": arguments.mode,
    "removed": shares,
    **_scored(job),
  }
  part = measures.damage(found, shares, arguments.mode)
  _show_measured(arguments, job, part, options, found)


def _choice(arguments: argparse.Namespace) -> None:
  """Prints what fewer validation examples would choose."""
  from comp_jax.train import trials

  sizes = tuple(arguments.sizes)
  chunk = sizes[0]
  if any(size < 1 or size % chunk for size in sizes):
    raise errors.UserError(
      f"--sizes must be multiples of the first, {chunk}, not "
      f"{' '.join(map(str, sizes))}"
    )
  job = _job(arguments, chunk)
  count = _count(job)
  # Of the ones by default those of which there are two subsets or more.
  if any(2 * size > count for size in sizes):
    sizes = tuple(size for size in sizes if 2 * size <= count)
    if arguments.sizes is not _SIZES or not sizes:
      raise errors.UserError(
        f"--sizes must be at most half of the {count} examples of `select` in "
        f"hand: each is compared over two subsets or more"
      )
  found = trials.choices(
    job.stage,
    job.dense.params,
    _training(job),
    job.select,
    [size // chunk for size in sizes],
  )
  options = {
    "recipe": job.stage.recipe.name,
    **_scored(job),
  }
  part = measures.choices(found, chunk)
  _show_measured(arguments, job, part, options, found)


def _training(job) -> Mapping[str, Any]:
  """The training batches [t, b, ...] of the first stage."""
  prune = job.config.prune
  source = job.data.train(prune.batch_size, prune.stage_steps)(0)
  batches = next(source)
  source.close()
  return batches


def _scored(job) -> dict[str, str]:
  """What units and modes are compared by."""
  prune = job.config.prune
  return {
    "metric": prune.metric,
    "scores over": f"{prune.stage_steps} batches of {prune.batch_size}",
  }


def _show_measured(arguments, job, part, options, found) -> None:
  """Prints and writes a measure, and what it was measured on."""
  on = {
    "model": job.config.checkpoint,
    "config": arguments.config,
    "examples": _count(job),
    **options,
  }
  listed = ", ".join(f"{key} {value}" for key, value in on.items())
  console = rich.console.Console()
  _show(console, arguments, listed, part, {**on, "found": found})


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

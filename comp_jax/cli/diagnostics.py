"""`inspect stages`, `overlap`, `ranks`, `influence`: how pruning works.

The paper's figures that are not about results.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import jax
import rich.console
import rich.text

from comp_jax import errors
from comp_jax.cli import measured
from comp_jax.report import measures, trajectory

# Shares of each layer's heads that `ranks` removes.
_HEADS = (0.0, 0.25, 0.5, 0.75)


def add(what: argparse._SubParsersAction) -> None:
  """Declares the paper's figures."""
  stages = what.add_parser(
    "stages", help="modes over stages, and what each removed (Figures 6, C)"
  )
  stages.add_argument(
    "runs",
    nargs="+",
    metavar="RUNS",
    help="folders of finished runs, or folders of such folders",
  )
  measured.add_out(stages)
  stages.set_defaults(run=_stages)
  overlap = what.add_parser(
    "overlap",
    help="tokens that dominate parameter importance against the most "
    "important ones, per layer (Figure 2a)",
  )
  measured.add_model(overlap)
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
  measured.add_model(ranks)
  measured.add_recipe(ranks)
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
  measured.add_model(influence)
  measured.add_recipe(influence)
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
  job = measured.prepared(arguments)
  found = diagnose.overlap(
    job.spec, job.stage.prunable, job.dense.params, _batch(job), share
  )
  options = {"share": share}
  measured.show(arguments, job, measures.overlap(found), options, found)


def _ranks(arguments: argparse.Namespace) -> None:
  """Prints how far orders move when heads go, with CIT and without."""
  from comp_jax.train import diagnose

  if not 0 < arguments.faded <= 1:
    raise errors.UserError(
      f"--faded must be above 0 and at most 1, not {arguments.faded:g}"
    )
  job = measured.prepared(arguments)
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
  measured.show(arguments, job, part, options, found)


def _influence(arguments: argparse.Namespace) -> None:
  """Prints how many unimportant units move the order of the tokens."""
  from comp_jax.train import diagnose

  share = _share(arguments)
  if arguments.units < 2:
    raise errors.UserError(f"--units must be 2 or more, not {arguments.units}")
  job = measured.prepared(arguments)
  found = diagnose.influence(
    job.stage, job.dense.params, _batch(job), share, arguments.units
  )
  options = {
    "recipe": job.stage.recipe.name,
    "share": share,
    "units": arguments.units,
  }
  part = measures.influence(found, share)
  measured.show(arguments, job, part, options, found)


def _stages(arguments: argparse.Namespace) -> None:
  """Prints the stages of finished runs side by side."""
  members, left_out = trajectory.read(arguments.runs)
  rows = trajectory.data(members)
  part = trajectory.show(rows)
  console = rich.console.Console()
  for run in left_out:
    line = f"left out: {run.path}: {run.reason}"
    console.print(rich.text.Text(line), soft_wrap=True)
  measured.print_part(
    console, arguments, ", ".join(r["name"] for r in rows), part, rows
  )

"""`inspect damage`, `choice`: what scores and validation examples are worth."""

import argparse
from collections.abc import Mapping
from typing import Any

from comp_jax import errors
from comp_jax.cli import measured
from comp_jax.report import measures

# Examples of the subsets that `choice` compares.
_SIZES = (64, 128, 256)


def add(what: argparse._SubParsersAction) -> None:
  """Declares what `inspect` can try on a dense model."""
  damage = what.add_parser(
    "damage",
    help="the metric when a mode's lowest units go, by score and by how "
    "layers are compared",
  )
  measured.add_model(damage)
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
  measured.add_model(choice, examples=512, whole="cut into subsets")
  measured.add_recipe(choice)
  choice.add_argument(
    "--sizes",
    type=int,
    nargs="+",
    default=_SIZES,
    metavar="EXAMPLES",
    help="of the subsets, multiples of the first (64 128 256)",
  )
  choice.set_defaults(run=_choice)


def _damage(arguments: argparse.Namespace) -> None:
  """Prints what is left of the metric when units go, score by score."""
  from comp_jax.train import trials

  shares = tuple(arguments.removed)
  if wrong := [share for share in shares if not 0 < share < 1]:
    raise errors.UserError(
      f"--removed must be between 0 and 1, not {wrong[0]:g}"
    )
  job = measured.prepared(arguments)
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
  measured.show(arguments, job, part, options, found)


def _choice(arguments: argparse.Namespace) -> None:
  """Prints what fewer validation examples would choose."""
  from comp_jax.train import trials

  sizes = tuple(arguments.sizes)
  chunk = sizes[0]
  if min(sizes) < 1 or any(size % chunk for size in sizes):
    raise errors.UserError(
      "--sizes must be 1 or more and multiples of the first, not "
      f"{' '.join(map(str, sizes))}"
    )
  job = measured.prepared(arguments, chunk)
  count = measured.count(job)
  # Of the ones by default those of which there are two subsets or more.
  if any(2 * size > count for size in sizes):
    sizes = tuple(size for size in sizes if 2 * size <= count)
    if arguments.sizes is not _SIZES or not sizes:
      raise errors.UserError(
        f"--sizes must be at most half of the {count} examples of `select` in "
        "hand: each is compared over two subsets or more"
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
  measured.show(arguments, job, part, options, found)


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

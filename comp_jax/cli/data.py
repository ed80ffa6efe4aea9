"""`data`: makes data sets that are generated."""

import argparse
import os
import pathlib

from comp_jax.data import nlvr_emoji

_ASSETS = pathlib.Path(__file__).parents[2] / "assets" / "emoji"


def add(verbs: argparse._SubParsersAction) -> None:
  """Declares the verb."""
  parser = verbs.add_parser("data", help="make a generated data set")
  what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
  nlvr = what.add_parser(
    "nlvr_emoji", help="statements about pairs of emoji, in NLVR2's format"
  )
  nlvr.add_argument("--to", required=True, help="folder to make")
  nlvr.add_argument("--source", help="folder of the emoji file")
  nlvr.add_argument("--train", type=int, default=48000, help="statements")
  nlvr.add_argument("--dev", type=int, default=2000, help="statements")
  nlvr.add_argument("--seed", type=int, default=0)
  nlvr.add_argument(
    "--forms",
    nargs="+",
    default=(),
    choices=tuple(nlvr_emoji.FORMS),
    help="forms of statements; all unless given",
  )
  nlvr.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
  """Writes the folder and prints what a blind reader could reach."""
  source = arguments.source or os.environ.get("COMP_JAX_DATA") or _ASSETS
  found = nlvr_emoji.write(
    pathlib.Path(source),
    pathlib.Path(arguments.to),
    train=arguments.train,
    dev=arguments.dev,
    seed=arguments.seed,
    forms=arguments.forms,
  )
  for split, scores in found.items():
    row = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    print(f"{split}: best blind accuracies: {row}")

"""`export`: a compact model in the layout of its source, zeros for units."""

import argparse

from comp_jax.interop import export as export_lib
from comp_jax.interop import store


def add(verbs: argparse._SubParsersAction) -> None:
  """Declares the verb."""
  parser = verbs.add_parser(
    "export", help="write a compact model in the layout it was loaded from"
  )
  parser.add_argument("--model", required=True, help="folder of ours")
  parser.add_argument(
    "--like", required=True, help="the published folder or file it came from"
  )
  parser.add_argument("--to", required=True, help="folder to write")
  parser.add_argument(
    "--heads",
    type=int,
    nargs="+",
    metavar="N",
    help="heads of the source's vision and text tower, where no config tells",
  )
  parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
  """Reads both and writes."""
  heads = arguments.heads
  export_lib.export(
    store.load(arguments.model),
    arguments.like,
    arguments.to,
    heads=(heads[0], heads[-1]) if heads else None,
  )
  print(f"dense shapes, zeros where units went: {arguments.to}")

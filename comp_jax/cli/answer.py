"""`answer`: a model's answers to a split, in a file for VQA's server."""

import argparse
import pathlib

from comp_jax import errors
from comp_jax.cli import configs, measured
from comp_jax.interop import load as load_lib


def add(verbs: argparse._SubParsersAction) -> None:
  """Declares the verb."""
  parser = verbs.add_parser(
    "answer", help="write a model's answers to the questions of a split"
  )
  configs.add_argument(parser)
  parser.add_argument(
    "--model", required=True, help="folder of a model, or of its run"
  )
  parser.add_argument("--split", default="val", help="of the config's data")
  parser.add_argument("--to", required=True, help=".json file to write")
  parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
  """Reads, answers and writes."""
  from comp_jax.train import answers

  # Before hours of answering.
  folder = pathlib.Path(arguments.to).absolute().parent
  if not folder.is_dir():
    raise errors.UserError(f"--to {arguments.to}: there is no folder {folder}")
  config = configs.load(arguments.config, arguments.changes)
  loaded = load_lib.load(measured.model(arguments.model))
  found = answers.answers(config, loaded, arguments.split)
  answers.write(arguments.to, found)
  print(f"{len(found)} answers: {arguments.to}")

"""`convert`: a published checkpoint as a folder of ours."""

import argparse
import pathlib

from comp_jax import errors
from comp_jax.data import tokenizers
from comp_jax.interop import load as load_lib
from comp_jax.interop import store


def add(verbs: argparse._SubParsersAction) -> None:
  """Declares the verb."""
  parser = verbs.add_parser(
    "convert", help="write a published checkpoint as a folder that prunes"
  )
  parser.add_argument("--source", required=True, help="folder or file")
  parser.add_argument("--to", required=True, help="folder to write")
  parser.add_argument(
    "--tokenizer",
    help="folder or tokenizer.json, for sources that bring none; BLIP's is "
    "bert-base-uncased's",
  )
  add_options(parser)
  parser.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser) -> None:
  """Declares what says how a checkpoint is to be read."""
  parser.add_argument(
    "--task", choices=load_lib.TASKS, help="what the model is for"
  )
  parser.add_argument(
    "--heads",
    type=int,
    nargs="+",
    metavar="N",
    help="heads of the vision and the text tower, where no config tells them",
  )
  parser.add_argument(
    "--image_size", type=int, help="pixels, to resample the position table"
  )


def load(path: str, arguments: argparse.Namespace) -> store.Loaded:
  """The model that the options of a command line ask for."""
  heads, size = arguments.heads, arguments.image_size
  if heads is not None:
    if len(heads) > 2:
      raise errors.UserError(
        f"--heads: one number, or one of the vision and one of the text tower, "
        f"not {len(heads)}"
      )
    heads = (heads[0], heads[-1])
  loaded = load_lib.load(path, arguments.task, heads=heads, image_size=size)
  if size not in (None, loaded.spec.vision.image_size):
    raise errors.UserError(
      f"--image_size {size}: {path} was made for "
      f"{loaded.spec.vision.image_size} pixels; convert its source anew"
    )
  return loaded


def run(arguments: argparse.Namespace) -> None:
  """Reads and writes."""
  loaded = load(arguments.source, arguments)
  tokenizer = loaded.tokenizer_json
  if arguments.tokenizer:
    path = pathlib.Path(arguments.tokenizer)
    path = path / "tokenizer.json" if path.is_dir() else path
    tokenizer = tokenizers.load(path).to_json()
  store.save(
    arguments.to,
    params=loaded.params,
    spec=loaded.spec,
    policies=loaded.policies,
    tokenizer_json=tokenizer or "{}",
    recipe=loaded.recipe,
  )
  print(f"{loaded.spec.family} model: {arguments.to}")
  if not tokenizer:
    print("it has no tokenizer: prune.py needs one, give --tokenizer")

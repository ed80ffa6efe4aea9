"""The verbs of `python -m comp_jax`, and how their errors are shown."""

import argparse
import os
import sys
from collections.abc import Sequence

# XLA's own log lines; read once, when its library is loaded.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from comp_jax import errors
from comp_jax.cli import (
  answer,
  compare,
  configs,
  convert,
  data,
  evaluate,
  export,
  forward,
  inspect,
  sweep,
)

# Options that take several values, which argparse reads after a space alone.
_SEVERAL = ("--sweep",)


def _spaced(argv: Sequence[str]) -> list[str]:
  """The arguments, `--sweep=a b` written as `--sweep a b`."""
  spaced = []
  for each in argv:
    option, equals, value = each.partition("=")
    spaced += [option, value] if equals and option in _SEVERAL else [each]
  return spaced


def main(argv: Sequence[str] | None = None) -> int:
  """The exit code of a command line: 0, 2 for a user's mistake, 130.

  Args:
    argv: without the program's name; the process's own by default.
  """
  parser = argparse.ArgumentParser(
    prog="python -m comp_jax", description="Models of comp_jax: in, out, cost."
  )
  verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
  for module in (
    answer,
    compare,
    convert,
    data,
    evaluate,
    export,
    forward,
    inspect,
    sweep,
  ):
    module.add(verbs)
  argv = _spaced(sys.argv[1:] if argv is None else argv)
  changes = [each for each in argv if configs.changed(each)]
  for each, value in zip(argv, argv[1:], strict=False):
    if each in changes and "=" not in each and not value.startswith("-"):
      parser.error(f"write {each}={value}, with an equals sign")
  # Before argparse, which takes one with a space for another option's value.
  arguments = parser.parse_args([each for each in argv if each not in changes])
  if hasattr(arguments, "changes"):
    arguments.changes = changes
  elif changes:
    parser.error(f"unrecognized arguments: {' '.join(changes)}")
  try:
    arguments.run(arguments)
  except errors.UserError as error:
    print(f"error: {errors.one_line(error)}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130
  return 0

"""The shell around an entry point: flags in, an exit code out."""

import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

# XLA's own log lines; read once, when its library is loaded.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import ml_collections
from absl import app, flags
from absl import logging as absl_logging

from comp_jax import errors
from comp_jax.cli import configs

# A config that is locked: no key can be added, no type changed.
Main = Callable[[ml_collections.ConfigDict, pathlib.Path | None], int | None]

_BAD_INPUT = 2
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it.


def run(
  main: Main,
  *,
  name: str,
  needs_workdir: Callable[[], bool] = lambda: True,
  argv: Sequence[str] | None = None,
) -> None:
  """Runs an entry point and leaves the process with its exit code.

  Reads `--config=FILE.py`, `--config.a.b=value`, `--workdir=DIR` and the absl
  flags that the entry point has declared itself. A user's mistake ends in one
  line on standard error and code 2, Ctrl-C in code 130; any other exception
  is a bug and keeps its traceback.

  Args:
    main: Called with the locked config and the workdir.
    name: Name of the program, for messages.
    needs_workdir: Called once the flags are known; False lets `--workdir` be
      left out.
    argv: The command line; the process's own by default.
  """
  argv = list(sys.argv if argv is None else argv)

  def call(arguments: tuple[ml_collections.ConfigDict, Any]) -> int | None:
    return main(*arguments)

  def parse(arguments: Sequence[str]) -> tuple[Any, Any]:
    return _parse(arguments, needs_workdir)

  _define(argv)
  try:
    _quiet()
    app.run(call, argv=argv, flags_parser=parse)
  except errors.UserError as error:
    print(f"error: {errors.one_line(error)}", file=sys.stderr)
    sys.exit(_BAD_INPUT)
  except KeyboardInterrupt:
    print(f"{name}: interrupted", file=sys.stderr)
    sys.exit(_INTERRUPTED)


def _define(argv: Sequence[str]) -> None:
  """Declares the flags that every entry point has."""
  configs.define(flags.FLAGS, argv)
  flags.DEFINE_string(
    "workdir", None, "Folder of the run; made when missing, resumed when not."
  )


def _quiet() -> None:
  """Keeps the libraries' informative log lines off the screen."""
  # app.run sets the level to INFO unless the flag was given.
  flags.FLAGS.set_default("verbosity", absl_logging.WARNING)
  absl_logging.set_verbosity(absl_logging.WARNING)
  for noisy in ("jax._src.xla_bridge", "orbax"):
    logging.getLogger(noisy).setLevel(logging.ERROR)


def _parse(
  argv: Sequence[str], needs_workdir: Callable[[], bool]
) -> tuple[ml_collections.ConfigDict, pathlib.Path | None]:
  """Returns the config and the workdir that a command line asks for."""
  # The flags --help and --helpfull show their text and leave in between.
  asks = any(re.fullmatch(r"--?help\w*", argument) for argument in argv[1:])
  config = configs.parse(flags.FLAGS, argv, check=not asks)
  workdir = flags.FLAGS.workdir
  if not workdir and needs_workdir():
    raise errors.UserError(
      "--workdir is missing; add --workdir=DIR, the folder for this run"
    )
  if absl_logging.get_verbosity() == absl_logging.INFO:
    absl_logging.set_verbosity(absl_logging.WARNING)
  return config, pathlib.Path(workdir) if workdir else None

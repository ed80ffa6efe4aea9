"""The shell around an entry point: flags in, an exit code out."""

import difflib
import importlib.util
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

# XLA's own log lines; read once, when its library is loaded.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from comp_jax import errors

# A config that is locked: no key can be added, no type changed.
Main = Callable[[ml_collections.ConfigDict, pathlib.Path | None], int | None]

_BAD_INPUT = 2
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it.
_OVERRIDE = re.compile(r"^--?(no)?config\.([^=]+)(?:=|$)")


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
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(_BAD_INPUT)
  except KeyboardInterrupt:
    print(f"{name}: interrupted", file=sys.stderr)
    sys.exit(_INTERRUPTED)


def _define(argv: Sequence[str]) -> None:
  """Declares the flags that every entry point has."""
  config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file; single values are changed by --config.key=value.",
    lock_config=True,
    sys_argv=list(argv),
  )
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
  if not any(re.fullmatch(r"--?help\w*", argument) for argument in argv[1:]):
    _check_overrides(argv)
  try:
    rest = flags.FLAGS(argv)
  except flags.IllegalFlagValueError as error:
    raise errors.UserError(one_line(_explain_value(error))) from error
  except (
    flags.Error,
    TypeError,
    ValueError,
    AttributeError,
    KeyError,
  ) as error:
    raise errors.UserError(one_line(error)) from error
  # The flags --help and --helpfull show their text and leave in between.
  if len(rest) > 1:
    raise errors.UserError(
      f"unexpected argument {rest[1]!r}; options are written --name=value"
    )
  config = flags.FLAGS.config
  _check_tuples(flags.FLAGS["config"].override_values)
  workdir = flags.FLAGS.workdir
  if not workdir and needs_workdir():
    raise errors.UserError(
      "--workdir is missing; add --workdir=DIR, the folder for this run"
    )
  if absl_logging.get_verbosity() == absl_logging.INFO:
    absl_logging.set_verbosity(absl_logging.WARNING)
  return config, pathlib.Path(workdir) if workdir else None


def _check_overrides(argv: Sequence[str]) -> None:
  """Raises UserError for a bad config file or a key that it does not have.

  ml_collections finds both too, but answers with a traceback, and suggests
  keys of one level only.
  """
  file = _config_argument(argv)
  config = load_config(file)
  known = dict(keys(config))
  for argument in argv[1:]:
    if argument == "--":
      return
    match = _OVERRIDE.match(argument)
    if not match:
      continue
    key = match.group(2)
    # An index, as in widths[0], is left to ml_collections.
    if "[" in key:
      continue
    if key not in known:
      raise errors.UserError(
        f"--config.{key}: {file} has no such key; {suggest(key, known)}"
      )
    if isinstance(known[key], ml_collections.ConfigDict):
      raise errors.UserError(
        f"--config.{key} is a section; set one of its keys: "
        f"{', '.join(known[key])}"
      )
    holder = known.get(key.rpartition(".")[0], config)
    if holder.get_type(key.rpartition(".")[2]) is type(None):
      raise errors.UserError(
        f"--config.{key} is None in {file}, without a type; change it there"
      )


def load_config(file: str) -> ml_collections.ConfigDict:
  """Returns the config of a file; `path:text` passes text to get_config.

  Raises:
    UserError: there is no such file, or it is not a config file.
  """
  path, *arguments = file.split(":", 1)
  if not path.endswith(".py") or not os.path.isfile(path):
    folder = os.path.dirname(path) or "."
    near = []
    if os.path.isdir(folder):
      files = [
        os.path.join(os.path.dirname(path), entry)
        for entry in sorted(os.listdir(folder))
        if entry.endswith(".py") and not entry.startswith("_")
      ]
      near = difflib.get_close_matches(path, files, 1)
    raise errors.UserError(
      f"--config: no config file {path!r}; "
      + (f"did you mean {near[0]}?" if near else "give the path of a .py file")
    )
  # Configs import what they share as `configs.common`, from any folder.
  root = os.path.dirname(os.path.dirname(os.path.abspath(path)))
  if root not in sys.path:
    sys.path.append(root)
  try:
    spec = importlib.util.spec_from_file_location("comp_jax_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
  except SyntaxError as error:
    raise errors.UserError(
      f"--config: {path}, line {error.lineno}: {error.msg}"
    ) from error
  except ImportError as error:
    raise errors.UserError(f"--config: {path}: {error}") from error
  if not hasattr(module, "get_config"):
    raise errors.UserError(
      f"--config: {path} has no get_config(); is it a config file?"
    )
  try:
    return module.get_config(*arguments)
  except (TypeError, ValueError, KeyError) as error:
    # absl would swallow these three together with their place.
    raise errors.UserError(
      f"--config: get_config() of {path}: {one_line(error)}"
    ) from error


def _config_argument(argv: Sequence[str]) -> str:
  """Returns the value of --config."""
  for index, argument in enumerate(argv[1:], 1):
    if argument == "--":
      break
    match = re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL)
    if match and match.group(1) is not None:
      return match.group(1)
    if match and index + 1 < len(argv):
      return argv[index + 1]
  raise errors.UserError(
    "--config is missing; add --config=FILE.py, such as one from configs/"
  )


def keys(
  config: ml_collections.ConfigDict, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
  """Yields the dotted keys of a config and their values, sections included."""
  for key in config:
    try:
      value = config[key]
    except ml_collections.config_dict.RequiredValueError:
      value = None
    yield f"{prefix}{key}", value
    if isinstance(value, ml_collections.ConfigDict):
      yield from keys(value, f"{prefix}{key}.")


def suggest(key: str, known: Collection[str]) -> str:
  """Returns the closest key as a question, or the keys that there are."""
  parts = key.split(".")
  good = 0  # Parts at the front that lead to a section.
  while good < len(parts) and ".".join(parts[: good + 1]) in known:
    good += 1
  prefix = "".join(f"{part}." for part in parts[:good])
  beside = [
    name[len(prefix) :]
    for name in known
    if name.startswith(prefix) and "." not in name[len(prefix) :]
  ]
  # A value has no keys below it.
  wrong = parts[good] if beside else ""
  for match in difflib.get_close_matches(wrong, beside, 1, 0.6):
    mended = ".".join([*parts[:good], match, *parts[good + 1 :]])
    mended = mended if mended in known else f"{prefix}{match}"
    return f"did you mean --config.{mended}?"
  # The right name in the wrong section is the other common slip.
  ends = {name.rpartition(".")[2]: name for name in known}
  for match in difflib.get_close_matches(parts[-1], list(ends), 1, 0.75):
    return f"did you mean --config.{ends[match]}?"
  if not beside:
    return f"--config.{prefix[:-1]} is a value, not a section"
  return f"there are: {', '.join(beside)}"


def _check_tuples(overrides: dict[str, Any]) -> None:
  """Raises UserError for a tuple whose items have the wrong type.

  ml_collections checks that a tuple is a tuple, and no further.
  """
  tuples = {
    key: value for key, value in overrides.items() if isinstance(value, tuple)
  }
  if not tuples:
    return
  # The parsed config holds the new value; the file holds the old type.
  original = load_config(flags.FLAGS["config"].config_filename)
  for key, value in tuples.items():
    default = original
    for part in key.split("."):
      default = default[part]
    kinds = {type(item) for item in default or ()}
    if float in kinds:
      kinds.add(int)
    wrong = [item for item in value if kinds and type(item) not in kinds]
    if wrong:
      names = " or ".join(sorted(kind.__name__ for kind in kinds))
      raise errors.UserError(
        f"--config.{key}: {wrong[0]!r} is not of type {names}, as in {default}"
      )


def _explain_value(error: flags.IllegalFlagValueError) -> str:
  """Returns absl's words for a wrong value with the type that is wanted."""
  text = str(error)
  match = re.match(r"flag --(config\.\S+?)=(.*?): ", text, re.DOTALL)
  if not match:
    return text
  key, value = match.groups()
  flag = flags.FLAGS[key] if key in flags.FLAGS else None
  kind = flag.flag_type() if flag is not None else "another type"
  kind = kind.removeprefix("multi ")  # A tuple's flag may be repeated.
  default = ""
  if flag is not None and flag.default is not None:
    value_there = flag.default
    if kind == "tuple":
      value_there = tuple(value_there)
    default = f", such as {value_there}"
  return f"--{key}: {value!r} is not of type {kind}{default}"


def one_line(error: Any) -> str:
  """Returns the text of an error without line breaks."""
  text = error.args[0] if isinstance(error, KeyError) else error
  return " ".join(str(text).split())

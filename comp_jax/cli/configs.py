"""Config files, and single values of them on a command line."""

import argparse
import difflib
import importlib.util
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from comp_jax import errors

_CHANGE = re.compile(r"^--?(no)?config\.([^=]+)(?:=|$)")


def load(file: str, changes: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """Returns the config of a file with single values changed.

  Args:
    file: its path; `path:text` passes text to get_config.
    changes: arguments such as `--config.a.b=value`.

  Raises:
    UserError: there is no such file, it is not a config file, it has no such
      key, or its value is of another type.
  """
  config = _read(file)
  if not changes:
    return config
  _check_changes(file, config, changes)
  values, argv = flags.FlagValues(), ["", *changes]
  config_flags.DEFINE_config_dict(
    "config", config, flag_values=values, lock_config=False, sys_argv=argv
  )
  return _parsed(values, argv, file)


def add_argument(
  parser: argparse.ArgumentParser, by: str = "--config.key=value"
) -> None:
  """Declares `--config` of a verb, whose `changes` come beside it."""
  parser.add_argument(
    "--config",
    required=True,
    metavar="FILE",
    help=f"config file; single values are changed by {by}",
  )
  parser.set_defaults(changes=())


def changed(argument: str) -> str:
  """The key whose value an argument changes; nothing where it does not."""
  match = _CHANGE.match(argument)
  return match.group(2) if match else ""


def define(values: flags.FlagValues, argv: Sequence[str]) -> None:
  """Declares the config's flags, as far as a command line changes them."""
  config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file; single values are changed by --config.key=value.",
    flag_values=values,
    lock_config=True,
    sys_argv=list(argv),
  )


def parse(
  values: flags.FlagValues, argv: Sequence[str], *, check: bool = True
) -> ml_collections.ConfigDict:
  """Returns the config that a command line asks for.

  Args:
    values: declared flags; they are parsed, all of them.
    argv: the program's name and its arguments.
    check: False leaves a command line that asks for help to absl.

  Raises:
    UserError: a bad config file, key, value or argument.
  """
  file = ""
  if check:
    file = _config_argument(argv)
    end = argv.index("--") if "--" in argv else len(argv)
    _check_changes(file, _read(file), argv[1:end])
  return _parsed(values, argv, file)


def _parsed(
  values: flags.FlagValues, argv: Sequence[str], file: str
) -> ml_collections.ConfigDict:
  """Returns the config; errors of ml_collections and absl in our words."""
  try:
    rest = values(argv)
  except flags.IllegalFlagValueError as error:
    explained = errors.one_line(_explain_value(error, values))
    raise errors.UserError(explained) from error
  except (
    flags.Error,
    TypeError,
    ValueError,
    AttributeError,
    KeyError,
  ) as error:
    raise errors.UserError(errors.one_line(error)) from error
  if len(rest) > 1:
    raise errors.UserError(
      f"unexpected argument {rest[1]!r}; options are written --name=value"
    )
  _check_tuples(values, file)
  return values.config


def _check_changes(
  file: str, config: ml_collections.ConfigDict, arguments: Sequence[str]
) -> None:
  """Raises UserError for a key that the config does not have.

  ml_collections finds it too, but answers with a traceback, and suggests keys
  of one level only.
  """
  known = dict(keys(config))
  for argument in arguments:
    match = _CHANGE.match(argument)
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


def _read(file: str) -> ml_collections.ConfigDict:
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
      f"--config: get_config() of {path}: {errors.one_line(error)}"
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


def _check_tuples(values: flags.FlagValues, file: str) -> None:
  """Raises UserError for a tuple whose items have the wrong type.

  ml_collections checks that a tuple is a tuple, and no further.
  """
  changed = values["config"].override_values
  tuples = {
    key: value for key, value in changed.items() if isinstance(value, tuple)
  }
  if not tuples:
    return
  # The parsed config holds the new value; the file holds the old type.
  original = _read(file)
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


def _explain_value(
  error: flags.IllegalFlagValueError, values: flags.FlagValues
) -> str:
  """Returns absl's words for a wrong value with the type that is wanted."""
  text = str(error)
  match = re.match(r"flag --(config\.\S+?)=(.*?): ", text, re.DOTALL)
  if not match:
    return text
  key, value = match.groups()
  flag = values[key] if key in values else None
  kind = flag.flag_type() if flag is not None else "another type"
  kind = kind.removeprefix("multi ")  # A tuple's flag may be repeated.
  default = ""
  if flag is not None and flag.default is not None:
    value_there = flag.default
    if kind == "tuple":
      value_there = tuple(value_there)
    default = f", such as {value_there}"
  return f"--{key}: {value!r} is not of type {kind}{default}"

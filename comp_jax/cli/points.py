"""The points of a sweep: from its axes to groups that one program serves."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from comp_jax import errors
from comp_jax.cli import configs
from comp_jax.report import runs

_SHORT = {"ratios": "ratio", "seeds": "seed", "recipes": "recipe.name"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
  """Points that one program serves.

  Attributes:
    name: of its folder.
    fixed: config key -> value, the same for all of its points.
    points: what is left to tell them apart.
  """

  name: str
  fixed: Mapping[str, Any]
  points: Sequence[Mapping[str, Any]]


def axes(
  config: ml_collections.ConfigDict, texts: Sequence[str]
) -> dict[str, list[Any]]:
  """Config key -> values, in the order they were written.

  Raises:
    UserError: a key that the config lacks, or a value of another type.
  """
  known = dict(configs.keys(config))
  found = {}
  for text in texts:
    key, equals, values = text.partition("=")
    key = _SHORT.get(key, key).removeprefix("config.")
    if not equals or not values:
      raise errors.UserError(
        f"--sweep {text!r}: write KEY=VALUE,VALUE such as ratios=0.5,0.7"
      )
    if key not in known:
      raise errors.UserError(
        f"--sweep {key}: the config has no such key; "
        f"{configs.suggest(key, known)}"
      )
    if isinstance(known[key], ml_collections.ConfigDict):
      raise errors.UserError(
        f"--sweep {key} is a section; sweep one of its keys: "
        f"{', '.join(known[key])}"
      )
    if key in found:
      raise errors.UserError(f"--sweep {key} is given twice")
    holder = known.get(key.rpartition(".")[0], config)
    kind = holder.get_type(key.rpartition(".")[2])
    found[key] = [
      value for part in values.split(",") for value in _values(key, part, kind)
    ]
    if not found[key]:
      raise errors.UserError(f"--sweep {text}: stands for no value")
    if len(set(found[key])) < len(found[key]):
      raise errors.UserError(f"--sweep {key}: a value is given twice")
  return found


def split(axes: Mapping[str, Sequence[Any]]) -> list[Group]:
  """The groups of all combinations: what may be traced tells points apart."""
  from comp_jax.train import sweep_group

  traced = {k: v for k, v in axes.items() if k in sweep_group.TRACED}
  static = {k: v for k, v in axes.items() if k not in traced}
  points = [
    dict(zip(traced, values, strict=True))
    for values in itertools.product(*traced.values())
  ]
  fixed = [
    dict(zip(static, values, strict=True))
    for values in itertools.product(*static.values())
  ]
  return [
    Group(name=runs.GROUP.format(index), fixed=values, points=points)
    for index, values in enumerate(fixed)
  ]


def grown(there: Sequence[Group], wanted: Sequence[Group]) -> list[Group]:
  """The groups of a sweep, and others for the points that it lacks.

  Args:
    there: of the workdir; they stay as they are, for one program serves all
      points of a group.
    wanted: of the command.

  Raises:
    UserError: the workdir has points that are not wanted.
  """
  have = [{**g.fixed, **point} for g in there for point in g.points]
  want = [{**g.fixed, **point} for g in wanted for point in g.points]
  others = [point for point in have if point not in want]
  if others:
    named = " ".join(f"{key}={value}" for key, value in others[0].items())
    raise errors.UserError(
      f"--workdir holds a sweep with other points, such as {named}: sweep "
      "those too, or use another --workdir"
    )
  groups = list(there)
  for group in wanted:
    points = [p for p in group.points if {**group.fixed, **p} not in have]
    if points:
      name = runs.GROUP.format(len(groups))
      groups.append(dataclasses.replace(group, name=name, points=points))
  return groups


def check(config: ml_collections.ConfigDict, groups: Sequence[Group]) -> None:
  """Raises a UserError for a value or recipe that no point could run with.

  Before a folder is claimed, or the first group has run for hours.
  """
  from comp_jax.train import prepare, ranges

  for group in groups:
    for point in group.points:
      ranges.check_values({**group.fixed, **point})
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(dict(group.fixed))
    prepare.recipe_of(changed)


def stored(workdir: pathlib.Path) -> list[Group]:
  """The groups of the sweep that a folder holds."""
  from comp_jax.train import workdir as workdir_lib

  try:
    claimed = dict(json.loads((workdir / workdir_lib.CONFIG).read_text()))
  except (OSError, ValueError, TypeError):
    # Claiming the folder says what is wrong with it.
    return []
  return [
    Group(name=runs.GROUP.format(index), **group)
    for index, group in enumerate(claimed.get("groups", ()))
  ]


def plain(groups: Sequence[Group]) -> list[dict[str, Any]]:
  return [
    {"fixed": dict(g.fixed), "points": [dict(p) for p in g.points]}
    for g in groups
  ]


def _values(key: str, text: str, kind: type) -> list[Any]:
  """The values that one item between commas stands for."""
  first, colon, end = text.partition(":")
  try:
    if kind is int and colon:
      return list(range(int(first), int(end)))
    if kind is bool:
      return [{"true": True, "false": False}[text.lower()]]
    if kind in (int, float, str):
      return [kind(text)]
  except (ValueError, KeyError) as error:
    raise errors.UserError(
      f"--sweep {key}: {text!r} is not of type {kind.__name__}"
    ) from error
  raise errors.UserError(
    f"--sweep {key}: values of type {kind.__name__} cannot be swept; change "
    "them in the config file"
  )

"""`sweep`: every combination of some config values, in as few programs as can.

Points that differ in ratio, seed, rates or constants of MPS run in one jit;
what changes shapes or programs (recipes, batch sizes, models) runs in processes
of its own, one group after the other or `--processes` at a time.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import rich.box
import rich.console
import rich.live
import rich.table
import rich.text

from comp_jax import errors
from comp_jax.cli import children, configs
from comp_jax.interop import atomic
from comp_jax.report import runs

_SHORT = {"ratios": "ratio", "seeds": "seed", "recipes": "recipe.name"}


def add(verbs: argparse._SubParsersAction) -> None:
  """Declares the verb."""
  parser = verbs.add_parser(
    "sweep", help="prune at every combination of some config values"
  )
  configs.add_argument(parser, by="--sweep key=value")
  parser.add_argument(
    "--sweep",
    nargs="+",
    required=True,
    metavar="KEY=VALUES",
    help="config keys (or ratios, seeds, recipes) and their values, separated "
    "by commas; 0:5 stands for 0,1,2,3,4; one value just sets the key",
  )
  parser.add_argument("--workdir", required=True, help="folder of the sweep")
  parser.add_argument(
    "--processes", type=int, default=1, help="groups that run at a time"
  )
  # Of a process that this one starts.
  parser.add_argument("--group", help=argparse.SUPPRESS)
  parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
  parser.set_defaults(run=run)


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


def run(arguments: argparse.Namespace) -> None:
  """Runs the sweep, or one group of it in a child process."""
  if arguments.changes:
    key = configs.changed(arguments.changes[0])
    raise errors.UserError(
      f"{arguments.changes[0]}: a sweep sets single values by --sweep "
      f"{key}=VALUE, beside those that it varies"
    )
  config = configs.load(arguments.config)
  workdir = pathlib.Path(arguments.workdir)
  there = _stored(workdir)
  if arguments.group:
    children.follow(arguments.parent)
    (group,) = [g for g in there if g.name == arguments.group]
    _run_group(config, group, workdir)
    return
  groups = grown(there, split(axes(config, arguments.sweep)))
  check(config, groups)
  if arguments.processes < 1:
    raise errors.UserError(
      f"--processes must be 1 or more, not {arguments.processes}"
    )
  from comp_jax.train import workdir as workdir_lib

  program, listed = "sweep", {"config": arguments.config}
  claimed = {**listed, "groups": _plain(there or groups)}
  with workdir_lib.claim(workdir, claimed, program):
    workdir_lib.write(workdir, {**listed, "groups": _plain(groups)}, program)
    _run_all(arguments, groups, workdir)


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


def _run_group(
  config: ml_collections.ConfigDict, group: Group, workdir: pathlib.Path
) -> None:
  """Runs the points of a group in this process."""
  from comp_jax.train import fit, sweep_group

  config.update_from_flattened_dict(dict(group.fixed))
  try:
    sweep_group.run(config, group.points, workdir / group.name)
  except fit.Interrupted as error:
    raise KeyboardInterrupt from error


def _run_all(
  arguments: argparse.Namespace, groups: Sequence[Group], workdir: pathlib.Path
) -> None:
  """Runs a child process per group, shows where they are, gathers results.

  Raises:
    KeyboardInterrupt: SIGINT or SIGTERM; the children have saved and left.
    UserError: a group failed; the others have run.
  """
  from comp_jax.train import preemption

  waiting, running, failed = list(groups), {}, {}
  command = [sys.executable, "-m", "comp_jax", "sweep"]
  command += ["--config", arguments.config, "--workdir", arguments.workdir]
  command += ["--parent", str(os.getpid()), "--sweep", *arguments.sweep]
  console = rich.console.Console()
  with preemption.watch() as watch:
    try:
      with rich.live.Live(console=console, auto_refresh=False) as live:
        while waiting or running:
          while waiting and len(running) < arguments.processes:
            group = waiting.pop(0)
            running[group.name] = children.begin(
              [*command, "--group", group.name], _log(workdir, group.name)
            )
          time.sleep(0.5)
          if watch.requested():
            # Before the children are looked at: they may have heard it too.
            raise KeyboardInterrupt
          ended = [name for name in running if running[name].poll() is not None]
          for name in ended:
            if code := running.pop(name).returncode:
              said = _log(workdir, name).read_text(errors="replace")
              failed[name] = children.reason(code, said)
          _gather(groups, workdir, failed)
          live.update(_table(groups, workdir, failed), refresh=True)
    finally:
      # Children save at SIGTERM, and go on with the next start.
      for child in running.values():
        child.terminate()
      for child in running.values():
        child.wait()
      results = _gather(groups, workdir, failed)
  if failed:
    name, said = next(iter(failed.items()))
    raise errors.UserError(
      f"{len(failed)} of {len(groups)} groups failed; {name}: {said} "
      f"(see {_log(workdir, name)})"
    )
  console.print(f"results: {workdir / runs.RESULTS} ({len(results)} points)")


def _log(workdir: pathlib.Path, name: str) -> pathlib.Path:
  """What the process of a group says."""
  return workdir / f"{name}.log"


def _gather(
  groups: Sequence[Group], workdir: pathlib.Path, failed: Mapping[str, Any]
) -> list[dict[str, Any]]:
  """Writes the results of all groups as one file, and the index of points.

  Where they changed: a sweep that is killed has what its groups had.
  """
  from comp_jax.train import sweep_group

  results, index = [], []
  for group in groups:
    rows = sweep_group.read(workdir / group.name)
    results += [{**row, "fixed": dict(group.fixed)} for row in rows]
    for number, point in enumerate(group.points):
      row = {"status": "waiting", "reason": ""}
      if number < len(rows):
        row = {key: rows[number][key] for key in row}
      elif group.name in failed:
        row = {"status": "failed", "reason": failed[group.name]}
      index.append({**group.fixed, **point, "group": group.name, **row})
  lines = [json.dumps(row, sort_keys=True) + "\n" for row in results]
  said = atomic.to_json({"points": index})
  for name, now in ((runs.RESULTS, "".join(lines)), (runs.INDEX, said)):
    path = workdir / name
    if not path.exists() or path.read_text(encoding="utf-8") != now:
      atomic.write_text(path, now)
  return results


def _table(
  groups: Sequence[Group], workdir: pathlib.Path, failed: Mapping[str, Any]
) -> rich.table.Table:
  """One row per point: where it is; below them what went wrong."""
  from comp_jax.train import sweep_group

  every = [{**g.fixed, **point} for g in groups for point in g.points]
  varied = [key for key in every[0] if len({p[key] for p in every}) > 1]
  varied = varied or list(every[0])
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD, caption_justify="left")
  reasons = []
  for column in ("point", "phase", "mode", "MACs left", "metric"):
    table.add_column(column)
  for group in groups:
    folder = workdir / group.name
    results = sweep_group.read(folder)
    progress = {}
    if (folder / sweep_group.PROGRESS).exists():
      progress = json.loads((folder / sweep_group.PROGRESS).read_text())
    for number, point in enumerate(group.points):
      values = {**group.fixed, **point}
      name = " ".join(f"{key}={values[key]}" for key in varied)
      if number < len(results):
        row = results[number]
        best = next(iter(row["metrics"]["finetuned_masked"].values()), {})
        key = next(iter(best), None)
        share = row["macs"]["final"] / row["macs"]["dense"]
        shown = f"{key} {best[key]:.3f}" if key else ""
        table.add_row(name, row["status"], "", f"{share:.1%}", shown)
        reasons += [f"{name}: {row['reason']}"] if row["reason"] else []
        continue
      if group.name in failed:
        table.add_row(name, "failed", "", "", "")
        reasons.append(f"{name}: {failed[group.name]}")
        continue
      now = progress.get("members", [{}] * len(group.points))[number]
      share, metric = now.get("macs_fraction"), now.get("metric")
      shown = now.get("loss") if metric is None else metric
      table.add_row(
        name,
        progress.get("phase", "waiting"),
        now.get("mode", ""),
        "" if share is None else f"{share:.1%}",
        "" if shown is None else f"{shown:.3f}",
      )
  if reasons:
    # What is printed next begins a line of its own.
    table.caption = rich.text.Text("".join(f"{line}\n" for line in reasons))
  return table


def _stored(workdir: pathlib.Path) -> list[Group]:
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


def _plain(groups: Sequence[Group]) -> list[dict[str, Any]]:
  return [
    {"fixed": dict(g.fixed), "points": [dict(p) for p in g.points]}
    for g in groups
  ]

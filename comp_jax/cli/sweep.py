"""`sweep`: every combination of some config values, in as few programs as can.

Points that differ in ratio, seed, rates or constants of MPS run in one jit;
what changes shapes or programs (recipes, batch sizes, models) runs in processes
of its own, one group after the other or `--processes` at a time.
"""

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Sequence

import ml_collections
import rich.console
import rich.live

from comp_jax import errors
from comp_jax.cli import children, configs, points, standing
from comp_jax.report import runs


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
  there = points.stored(workdir)
  if arguments.group:
    children.follow(arguments.parent)
    (group,) = [g for g in there if g.name == arguments.group]
    _run_group(config, group, workdir)
    return
  wanted = points.split(points.axes(config, arguments.sweep))
  groups = points.grown(there, wanted)
  points.check(config, groups)
  if arguments.processes < 1:
    raise errors.UserError(
      f"--processes must be 1 or more, not {arguments.processes}"
    )
  from comp_jax.train import workdir as workdir_lib

  # However it is written: each group holds its folder to all of the config.
  program = "sweep"
  listed = {"config": pathlib.PurePath(arguments.config).name}
  claimed = {**listed, "groups": points.plain(there or groups)}
  with workdir_lib.claim(workdir, claimed, program):
    workdir_lib.write(
      workdir, {**listed, "groups": points.plain(groups)}, program
    )
    _run_all(arguments, groups, workdir)


def _run_group(
  config: ml_collections.ConfigDict, group: points.Group, workdir: pathlib.Path
) -> None:
  """Runs the points of a group in this process."""
  from comp_jax.train import fit, sweep_group

  config.update_from_flattened_dict(dict(group.fixed))
  try:
    sweep_group.run(config, group.points, workdir / group.name)
  except fit.Interrupted as error:
    raise KeyboardInterrupt from error


def _run_all(
  arguments: argparse.Namespace,
  groups: Sequence[points.Group],
  workdir: pathlib.Path,
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
          now = standing.read(groups, workdir, running, failed)
          standing.write(groups, now, workdir)
          live.update(standing.table(now), refresh=True)
    finally:
      # Children save at SIGTERM, and go on with the next start.
      for child in running.values():
        child.terminate()
      for child in running.values():
        child.wait()
      last = standing.read(groups, workdir, failed=failed)
      standing.write(groups, last, workdir)
  if failed:
    name, said = next(iter(failed.items()))
    raise errors.UserError(
      f"{len(failed)} of {len(groups)} groups failed; {name}: {said} "
      f"(see {_log(workdir, name)})"
    )
  done = sum(each.result is not None for each in last)
  console.print(f"results: {workdir / runs.RESULTS} ({done} points)")


def _log(workdir: pathlib.Path, name: str) -> pathlib.Path:
  """What the process of a group says."""
  return workdir / f"{name}.log"

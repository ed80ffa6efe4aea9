"""Where the points of a sweep are: read from its groups, indexed, shown."""

import dataclasses
import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import rich.box
import rich.table
import rich.text

from comp_jax.cli import points
from comp_jax.interop import atomic
from comp_jax.report import runs

WAITING, STARTING, FAILED = "waiting", "starting", "failed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
  """Where one point is.

  Attributes:
    group: name of its group.
    values: config key -> value.
    status: `waiting`, `starting`, the phase that its group is in, or what
      became of it.
    reason: why it failed, or what must be known of its result.
    mode: that its last stage pruned.
    share: of the dense MACs that is left.
    measured: the newest number of it, with its name where it has one.
    result: line of the group's results; None before.
  """

  group: str
  values: Mapping[str, Any]
  status: str
  reason: str = ""
  mode: str = ""
  share: float | None = None
  measured: str = ""
  result: Mapping[str, Any] | None = None


def read(
  groups: Sequence[points.Group],
  workdir: pathlib.Path,
  running: Collection[str] = (),
  failed: Mapping[str, str] | None = None,
) -> list[Standing]:
  """Where every point is, in the order of the sweep.

  Args:
    groups: of the sweep.
    workdir: of the sweep.
    running: names of the groups whose processes run.
    failed: names of the groups whose processes failed -> why.
  """
  from comp_jax.train import sweep_group

  found = []
  for group in groups:
    folder = workdir / group.name
    rows = sweep_group.read(folder)
    phase, members = WAITING, []
    if group.name in (failed or {}):
      phase = FAILED
    elif group.name in running:
      phase, members = sweep_group.progress(folder) or (STARTING, [])
    for number, point in enumerate(group.points):
      where = {"group": group.name, "values": {**group.fixed, **point}}
      if number < len(rows):
        found.append(_ended(rows[number], **where))
        continue
      now = members[number] if members else {}
      # Training has a loss alone.
      newest = now.get("metric", now.get("loss"))
      found.append(
        Standing(
          **where,
          status=phase,
          reason=failed[group.name] if phase == FAILED else "",
          mode=now.get("mode", ""),
          share=now.get("macs_fraction"),
          measured="" if newest is None else f"{newest:.3f}",
        )
      )
  return found


def _ended(row: Mapping[str, Any], **where: Any) -> Standing:
  """A point with a line in its group's results."""
  metrics = next(iter(row["metrics"]["finetuned_masked"].values()), {})
  name, value = next(iter(metrics.items()), ("", None))
  return Standing(
    **where,
    status=row["status"],
    reason=row["reason"],
    share=row["macs"]["final"] / row["macs"]["dense"],
    measured=f"{name} {value:.3f}" if name else "",
    result=row,
  )


def write(
  groups: Sequence[points.Group],
  standings: Sequence[Standing],
  workdir: pathlib.Path,
) -> None:
  """Writes the results of all groups as one file, and the index of points.

  Where they changed: a sweep that is killed has what its groups had.
  """
  fixed = {group.name: dict(group.fixed) for group in groups}
  lines = [
    json.dumps({**each.result, "fixed": fixed[each.group]}, sort_keys=True)
    for each in standings
    if each.result is not None
  ]
  index = [
    {**each.values, "group": each.group}
    | {"status": each.status, "reason": each.reason}
    for each in standings
  ]
  said = atomic.to_json({"points": index})
  results = "".join(f"{line}\n" for line in lines)
  for name, now in ((runs.RESULTS, results), (runs.INDEX, said)):
    path = workdir / name
    if not path.exists() or path.read_text(encoding="utf-8") != now:
      atomic.write_text(path, now)


def table(standings: Sequence[Standing]) -> rich.table.Table:
  """One row per point; below them what went wrong."""
  every = [each.values for each in standings]
  varied = [key for key in every[0] if len({v[key] for v in every}) > 1]
  varied = varied or list(every[0])
  shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, caption_justify="left")
  for column in ("point", "phase", "mode", "MACs left", "metric"):
    shown.add_column(column)
  reasons = []
  for each in standings:
    name = " ".join(f"{key}={each.values[key]}" for key in varied)
    left = "" if each.share is None else f"{each.share:.1%}"
    shown.add_row(name, each.status, each.mode, left, each.measured)
    reasons += [f"{name}: {each.reason}\n"] if each.reason else []
  if reasons:
    # What is printed next begins a line of its own.
    shown.caption = rich.text.Text("".join(reasons))
  return shown

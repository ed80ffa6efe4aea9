"""Which runs a comparison is made of, and why the others are left out."""

import collections
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from comp_jax.report import runs, schema, text
from comp_jax.train import workdir

# A final model may cost this much more or less than its target, relative.
TOLERANCE = 5e-3
# Two trainings of a dense model that differ by less than this in each of its
# metrics are one: the same commands on another machine differ by rounding.
SAME = 5e-3
# What may differ between runs at one ratio: how they prune, and what changes no
# result. All else (data, steps in all) must be equal.
_FREE = (
  "ratio",
  "seed",
  "recipe",
  "data.report_splits",
  "model.granularity",
  "prune.cost",
  "prune.least_step",
  "prune.keep_pace",
  "prune.modes",
  "prune.save_every",
  "prune.chunk",
  "finetune.save_every",
  "evaluate",
  "train",
)


def gather(
  paths: Sequence[str | os.PathLike[str]],
) -> tuple[dict[runs.Model, list[runs.Run]], list[runs.LeftOut]]:
  """The runs that can be compared, by model, and those that cannot.

  Args:
    paths: folders of runs or sweeps, report.json files, or folders of such
      folders.

  Raises:
    UserError: a path that does not exist or holds no run.
  """
  found, left_out = runs.read(paths)
  models = collections.defaultdict(list)
  for run in found:
    reason = _missed(run.report)
    if reason:
      left_out.append(runs.LeftOut(path=run.path, reason=reason))
    else:
      models[run.model].append(run)
  compared = {}
  for model, members in models.items():
    members, others = _of_one_model(members)
    left_out += others
    alike = []
    for ratio in dict.fromkeys(run.ratio for run in members):
      same, mixed = _alike([run for run in members if run.ratio == ratio])
      alike += same
      left_out += mixed
    compared[model], repeated = _once(named(alike))
    left_out += repeated
  return compared, left_out


def named(members: Sequence[runs.Run]) -> list[runs.Run]:
  """The runs with their methods.

  What all of them changed is not named, nor the stages and rates that most have
  at a ratio. Stages are named only where a method ran in several cuts of them
  at a ratio: else they are its `cut`, for the remarks.
  """
  kinds = zip(*(run.settings for run in members), strict=True)
  shared = set().union(*map(_common, kinds))
  usual = collections.defaultdict(collections.Counter)
  for run in members:
    usual[run.ratio][_items(run.training)] += 1
  found, cuts = [], collections.defaultdict(set)
  for run in members:
    ((most, _),) = usual[run.ratio].most_common(1)
    own = [item for item in _items(run.training) if item not in most]
    cut = tuple(item for item in own if item[0] in runs.STAGES)
    rates = [item for item in own if item not in cut]
    changes = [item for item in _items(*run.settings) if item not in shared]
    kind = (run.ratio, run.report["recipe"], *changes, *rates)
    found.append((kind, cut))
    cuts[kind].add(cut)
  named = []
  for run, (kind, cut) in zip(members, found, strict=True):
    _, recipe, *changes = kind
    alone = len(cuts[kind]) == 1
    method = _listed(recipe, changes if alone else [*changes, *cut])
    own = _listed("", cut) if alone else ""
    named.append(dataclasses.replace(run, method=method, cut=own))
  return named


def _items(*kinds: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
  """What settings of some kinds set; None of them sets nothing."""
  return tuple(item for kind in kinds for item in (kind or {}).items())


def _listed(name: str, items: Sequence[tuple[str, str]]) -> str:
  """A name with what is set behind it."""
  said = ", ".join(f"{key}={value}" for key, value in items)
  return f"{name} ({said})".strip() if said else name


def between_ratios(members: Sequence[runs.Run]) -> list[str]:
  """Fields that compared runs at one ratio share and those at others do not.

  The epochs that the paper gives to a ratio, for one.
  """
  configs = {run.ratio: _shared(run.report["config"], ()) for run in members}
  first, *others = configs.values()
  return sorted({key for other in others for key in workdir.diff(first, other)})


def _missed(report: schema.Report) -> str:
  """Why a finished run does not have the cost that it should; or nothing."""
  target, final = report["macs"]["target"], runs.tuned_macs(report)
  if final is None or target is None:
    return "failed: its report names no final or no target MACs"
  if abs(final - target) <= TOLERANCE * target:
    return ""
  how = "did not reach" if final > target else "went beyond"
  gone = text.removed(final, report["macs"]["dense"])
  said = f"; {report['reason']}" if report.get("reason") else ""
  return (
    f"{report['recipe']} {how} the ratio {report['ratio']:g}: {gone} of the "
    f"MACs are gone{said}"
  )


def _of_one_model(
  members: Sequence[runs.Run],
) -> tuple[list[runs.Run], list[runs.LeftOut]]:
  """The runs that pruned the same dense model as most, and the others.

  Its path says nothing: a model that was trained again has the same one. Runs
  that do not tell their weights are taken at their word.
  """
  known = collections.Counter(filter(None, map(digest, members)))
  if not known:
    return list(members), []
  (most, _), *_ = known.most_common(1)
  usual = [_dense(run) for run in members if digest(run) == most]
  kept, left_out = [], []
  for run in members:
    if digest(run) in (None, most) or any(
      _agree(_dense(run), u) for u in usual
    ):
      kept.append(run)
    else:
      reason = f"pruned another dense model than most ({digest(run)[:12]})"
      left_out.append(runs.LeftOut(path=run.path, reason=reason))
  return kept, left_out


def trainings(members: Sequence[runs.Run]) -> int:
  """How many trainings the dense model of compared runs is from."""
  return len(set(filter(None, map(digest, members))))


def digest(run: runs.Run) -> str | None:
  """Of the dense weights that a run pruned; None where it does not tell."""
  return run.report.get("dense_digest")


def _dense(run: runs.Run) -> dict[tuple[str, str], float]:
  """The metrics of the dense model by split and name; of a sweep none."""
  return {
    (split, name): value
    for split, row in run.report["metrics"]["dense"].items()
    for name, value in row.items()
    if value is not None
  }


def _agree(some: Mapping, others: Mapping) -> bool:
  """Whether dense metrics are the same up to rounding; False without any."""
  common = some.keys() & others.keys()
  return bool(common) and all(
    abs(some[key] - others[key]) < SAME for key in common
  )


def _alike(
  members: Sequence[runs.Run],
) -> tuple[list[runs.Run], list[runs.LeftOut]]:
  """Of runs at one ratio those of the most common config, and the others."""
  configs = [_shared(run.report["config"]) for run in members]
  texts = [json.dumps(config, sort_keys=True) for config in configs]
  common = configs[texts.index(collections.Counter(texts).most_common(1)[0][0])]
  kept, left_out = [], []
  for run, config in zip(members, configs, strict=True):
    differences = workdir.diff(common, config)
    if differences:
      listed = "; ".join(
        f"{key} is {here}, not {there}"
        for key, (there, here) in differences.items()
      )
      reason = f"another config than most: {listed}"
      left_out.append(runs.LeftOut(path=run.path, reason=reason))
    else:
      kept.append(run)
  return kept, left_out


def _once(
  members: Sequence[runs.Run],
) -> tuple[list[runs.Run], list[runs.LeftOut]]:
  """The first run of each kind, and the others."""
  kept, left_out = {}, []
  for run in members:
    if run.key in kept:
      reason = f"same recipe, ratio and seed as {kept[run.key].path}"
      left_out.append(runs.LeftOut(path=run.path, reason=reason))
    else:
      kept[run.key] = run
  return list(kept.values()), left_out


def _shared(
  config: Mapping[str, Any], named: Sequence[str] = runs.RATES
) -> dict[str, Any]:
  """The part of a config that compared runs have in common.

  A method may cut its search into stages of its own (UPop marks anew in every
  step), and what a search does not need goes to fine-tuning: what is shared are
  the steps of both.

  Args:
    config: of a run.
    named: keys of it that are told by the name of a method.
  """
  free, shared = {*_FREE, *named}, {}
  for key, value in config.items():
    if key in free:
      continue
    if isinstance(value, Mapping):
      value = {k: v for k, v in value.items() if f"{key}.{k}" not in free}
    shared[key] = value
  prune, finetune = (shared.get(key, {}) for key in ("prune", "finetune"))
  if all(name in prune for name in runs.STAGES):
    _, most, warmup, steps = (prune.pop(name) for name in runs.STAGES)
    prune["steps in all"] = (warmup + most) * steps
    if "steps" in finetune:
      steps = prune.pop("steps in all") + finetune.pop("steps")
      shared["steps in all"] = steps
  return shared


def _common(every: Sequence[Mapping[str, str] | None]) -> set[tuple[str, str]]:
  """What all that have such settings have."""
  having = [set(each.items()) for each in every if each is not None]
  return set.intersection(*having) if having else set()

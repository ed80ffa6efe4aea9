"""The points of a sweep that one program serves, from config to results."""

import itertools
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import ml_collections

from comp_jax import errors
from comp_jax.data import sources
from comp_jax.interop import atomic, tensors
from comp_jax.models import families
from comp_jax.train import checkpoints as checkpoints_lib
from comp_jax.train import (
  costs,
  examples,
  finite,
  fit,
  preemption,
  prepare,
  ranges,
  search,
  setup,
  sharding,
  sweep,
  sweep_loop,
)
from comp_jax.train import workdir as workdir_lib

_LOG = logging.getLogger(__name__)
# Config keys that may differ between the points of one program.
STRATEGY = "recipe.strategy."
CONSTANTS = (
  "explore",
  "temperature",
  "history",
  "max_interval",
  "explore_within",
  "scarcity",
)
TRACED = (
  "ratio",
  "seed",
  "prune.learning_rate",
  "prune.least_step",
  "finetune.learning_rate",
  *(STRATEGY + name for name in CONSTANTS),
)
RESULTS, PROGRESS = "results.jsonl", "progress.json"
# What each row says of the weights that were measured.
HOW = "fine-tuned masked at the thresholds of the search, not compacted"

Point = Mapping[str, Any]


def run(
  config: ml_collections.ConfigDict,
  points: Sequence[Point],
  workdir: pathlib.Path,
) -> list[dict[str, Any]]:
  """Searches, fine-tunes and evaluates every point; writes `results.jsonl`.

  The outcomes of each one's examples go to a folder of its own. A point whose
  ratio its recipe cannot reach fails alone.

  Args:
    config: what the points share.
    points: values of `TRACED` keys, the same keys in each.
    workdir: of this group; an interrupted one goes on.

  Raises:
    UserError: a mistake in the config, the data or the workdir.
    fit.Interrupted: a signal; run again to go on.
  """
  ranges.check(config)
  members = [_member(config, point) for point in points]
  config = config.copy_and_resolve_references()
  # A ratio of 0 is above any floor; that of each point is checked alone.
  config.ratio = 0.0
  # All members' stages are one program, which gets all of their batches.
  config.prune.chunk = 0
  job = prepare.prepare(config)
  config.ratio = max(member.ratio for member in members)
  valid = costs.valid_tokens(job.spec, job.select)
  floor = costs.floor(job.stage, valid)
  reached = [floor <= 1.0 - member.ratio for member in members]
  shared = {**job.data.splits}
  shared["train"] = sources.Decoded(shared["train"])
  data = replace(job.data, splits=shared)
  able = list(itertools.compress(members, reached))
  group = sweep.Sweep(
    stage=job.stage,
    num_stages=config.prune.num_stages,
    plan=job.plan,
    stage_steps=config.prune.stage_steps,
    optimizer=lambda rate: prepare.optimizer(config, rate),
    finetune=setup.schedule(config.finetune),
    microbatches=config.finetune.microbatches,
    members=able,
    mesh=sharding.dividing(job.mesh, len(able)),
  )
  for ratio in dict.fromkeys(member.ratio for member in able):
    settings = replace(
      job.stage.settings,
      target=1.0 - ratio,
      stage_macs=ratio / group.num_stages,
    )
    stage = replace(job.stage, settings=settings)
    if told := prepare.hurried(stage, valid, group.plan.max_stages):
      _LOG.warning(told)
  prune, finetune = config.prune, config.finetune
  claimed = {"config": setup.plain(config), "points": [dict(p) for p in points]}
  with (
    workdir_lib.claim(workdir, claimed, "sweep"),
    preemption.watch() as watch,
  ):
    done = read(workdir)
    if len(done) == len(points):
      return done
    keys = ("mode", "macs_fraction", "metric", "loss")

    def note(phase, rows):
      shown = [{k: row[k] for k in keys if k in row} for row in rows]
      shown = _spread(shown, reached, {})
      atomic.write_json(workdir / PROGRESS, {"phase": phase, "members": shown})

    def batches(part, steps, first_step=0):
      return lambda seed: replace(data, seed=seed).train(
        part.batch_size, steps, first_step=first_step
      )

    digest = tensors.digest(job.dense.params)
    swept, traces = [], {}
    if group.members:
      swept, traces = sweep_loop.run(
        group,
        job.dense.params,
        job.select,
        batches(prune, prune.stage_steps),
        batches(finetune, finetune.chunk, job.plan.total * prune.stage_steps),
        checkpoints=lambda name: checkpoints_lib.Checkpoints(
          workdir / "checkpoints" / name
        ),
        watch=watch,
        note=note,
      )
    swept = _spread(swept, reached, _beyond(job.stage.recipe.name, floor))
    evaluate = setup.Evaluator(job.task, job.spec, job.mesh)
    if done:
      dense = done[0]["metrics"].get("dense")
    elif "dense" in config.evaluate.rows:
      whole = jax.device_get((job.stage.ones, job.stage.off))
      execution = job.stage.objective.execution(*whole)
      found = evaluate(config, data, job.dense.params, execution)
      dense = {split: each.metrics for split, each in found.items()}
    else:
      dense = None
    for point, member in list(zip(points, swept, strict=True))[len(done) :]:
      if watch.requested():
        raise fit.Interrupted("sweep")
      metrics = {}
      if not member.failed:
        execution = job.stage.objective.execution(member.masks, member.thetas)
        try:
          found = evaluate(config, data, member.params, execution)
          examples.write(workdir_lib.point(workdir, len(done)), found)
          metrics = {split: each.metrics for split, each in found.items()}
        except finite.NotFinite as error:
          member = replace(member, failed=str(error))
      metrics = {"finetuned_masked": metrics}
      if dense:
        metrics["dense"] = dense
      result = _result(job, metrics, point, member, traces)
      done.append({**result, "dense_digest": digest})
      lines = [json.dumps(row, sort_keys=True) for row in done]
      atomic.write_text(workdir / RESULTS, "\n".join(lines) + "\n")
  return done


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The results that a group has so far.

  Raises:
    UserError: somebody else wrote them: we write whole lines.
  """
  path = workdir / RESULTS
  if not path.exists():
    return []
  lines = path.read_text(encoding="utf-8").splitlines()
  try:
    return [json.loads(line) for line in lines]
  except ValueError as error:
    raise errors.UserError(
      f"{path} is not JSON lines ({error}); without it the same command "
      "evaluates the group's points again"
    ) from error


def progress(workdir: pathlib.Path) -> tuple[str, list[dict[str, Any]]] | None:
  """The phase that a group is in, and where its points are; None before."""
  path = workdir / PROGRESS
  if not path.exists():
    return None
  told = json.loads(path.read_text(encoding="utf-8"))
  return told["phase"], told["members"]


def _spread(found: Sequence, reached: Sequence[bool], other: Any) -> list:
  """What was found of the reached points, and `other` of the rest."""
  found = iter(found)
  return [next(found) if each else other for each in reached]


def _beyond(recipe: str, floor: float) -> sweep_loop.Found:
  """What a member comes to whose target is below the floor: nothing ran."""
  return sweep_loop.Found(
    params={},
    masks={},
    thetas={},
    macs=1.0,
    history=[],
    probe={},
    failed=f"{recipe} can remove at most {costs.most(floor):.3f} of the MACs",
  )


def _member(config: ml_collections.ConfigDict, point: Point) -> sweep.Member:
  """The member of a point."""
  unknown = [key for key in point if key not in TRACED]
  if unknown:
    raise ValueError(f"{unknown} change shapes or programs: other groups")
  value = lambda key, default: point.get(key, default)  # noqa: E731
  ranges.check_values(point)
  return sweep.Member(
    ratio=float(value("ratio", config.ratio)),
    seed=int(value("seed", config.seed)),
    learning_rate=value("prune.learning_rate", config.prune.learning_rate),
    finetune_rate=value(
      "finetune.learning_rate", config.finetune.learning_rate
    ),
    least_step=value("prune.least_step", config.prune.least_step),
    strategy={
      key.removeprefix(STRATEGY): float(number)
      for key, number in point.items()
      if key.startswith(STRATEGY)
    },
  )


def _result(job, metrics, point, member, traces) -> dict[str, Any]:
  """One line of the results."""
  dense = job.stage.settings.dense_macs
  left = None  # One beyond reach has no masks.
  if not member.failed:
    # Once compacted; masked, it still stores the dense arrays.
    left = int(families.live_params(job.spec, member.masks))
  ratio = float(point.get("ratio", job.config.ratio))
  return {
    "point": dict(point),
    "name": job.config.name,
    "recipe": job.stage.recipe.name,
    "ratio": ratio,
    "seed": int(point.get("seed", job.config.seed)),
    "status": "failed" if member.failed else "done",
    "reason": member.failed or search.short(member.history, 1.0 - ratio),
    "how": HOW,
    "macs": {
      "dense": dense,
      "target": (1.0 - ratio) * dense,
      "final": member.macs * dense,
    },
    "params": {
      "dense": families.params_count(job.spec),
      "final": left,
    },
    "metrics": metrics,
    "stages": member.history,
    "probe": member.probe,
    "compilations": traces,
  }

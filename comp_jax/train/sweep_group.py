"""The points of a sweep that one program serves, from config to results."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ml_collections

from comp_jax import errors
from comp_jax.data import sources
from comp_jax.interop import atomic
from comp_jax.train import checkpoints as checkpoints_lib
from comp_jax.train import (
  examples,
  preemption,
  prepare,
  search,
  setup,
  sweep,
  sweep_loop,
)
from comp_jax.train import workdir as workdir_lib

# Config keys that may differ between the points of one program.
STRATEGY = "recipe.strategy."
CONSTANTS = ("explore", "temperature", "history", "max_interval")
TRACED = (
  "ratio",
  "seed",
  "prune.learning_rate",
  "finetune.learning_rate",
  *(STRATEGY + name for name in CONSTANTS),
)
RESULTS, PROGRESS = "results.jsonl", "progress.json"
# What each row says of the weights that were measured.
HOW = (
  "fine-tuned masked at the thresholds of the search, not compacted; steps "
  "that a search leaves unused are not trained"
)

Point = Mapping[str, Any]


def run(
  config: ml_collections.ConfigDict,
  points: Sequence[Point],
  workdir: pathlib.Path,
) -> list[dict[str, Any]]:
  """Searches, fine-tunes and evaluates every point; writes `results.jsonl`.

  The outcomes of each one's examples go to a folder of its own.

  Args:
    config: what the points share.
    points: values of `TRACED` keys, the same keys in each.
    workdir: of this group; an interrupted one goes on.

  Raises:
    UserError: a mistake in the config, the data or the workdir.
    fit.Interrupted: a signal; run again to go on.
  """
  members = [_member(config, point) for point in points]
  # The floor of the model is checked for the largest ratio.
  config = ml_collections.ConfigDict(config)
  config.ratio = max(member.ratio for member in members)
  job = prepare.prepare(config)
  shared = {**job.data.splits}
  shared["train"] = sources.Decoded(shared["train"])
  data = replace(job.data, splits=shared)
  group = sweep.Sweep(
    stage=job.stage,
    num_stages=config.prune.num_stages,
    plan=job.plan,
    optimizer=lambda rate: prepare.optimizer(config, rate),
    finetune=setup.schedule(config.finetune),
    members=members,
    mesh=job.mesh,
  )
  prune, finetune = config.prune, config.finetune
  claimed = {"config": setup.plain(config), "points": [dict(p) for p in points]}
  with workdir_lib.claim(workdir, claimed), preemption.watch() as watch:
    done = read(workdir)
    if len(done) == len(points):
      return done
    counted = {"search": 0, "finetune": 0}

    def note(phase, rows):
      counted[phase] += 1
      keys = ("mode", "macs_fraction", "metric", "loss")
      atomic.write_json(
        workdir / PROGRESS,
        {
          "phase": phase,
          "members": [{k: row[k] for k in keys if k in row} for row in rows],
        },
      )

    swept, traces = sweep_loop.run(
      group,
      job.dense.params,
      job.select,
      lambda seed: replace(data, seed=seed).train(
        prune.batch_size, prune.stage_steps
      ),
      lambda seed: replace(data, seed=seed).train(
        finetune.batch_size,
        finetune.chunk,
        first_step=job.plan.total * prune.stage_steps,
      ),
      checkpoints=lambda name: checkpoints_lib.Checkpoints(
        workdir / "checkpoints" / name
      ),
      watch=watch,
      note=note,
    )
    evaluate = setup.Evaluator(job.task, job.spec, job.mesh)
    for point, member in list(zip(points, swept, strict=True))[len(done) :]:
      metrics = {}
      if not member.failed:
        found = _evaluate(job, data, evaluate, member)
        examples.write(workdir_lib.point(workdir, len(done)), found)
        metrics = {split: each.metrics for split, each in found.items()}
      done.append(_result(job, metrics, point, member, traces))
      lines = [json.dumps(row, sort_keys=True) for row in done]
      atomic.write_text(workdir / RESULTS, "\n".join(lines) + "\n")
  return done


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The results that a group has so far."""
  path = workdir / RESULTS
  if not path.exists():
    return []
  lines = path.read_text(encoding="utf-8").splitlines()
  return [json.loads(line) for line in lines]


def _member(config: ml_collections.ConfigDict, point: Point) -> sweep.Member:
  """The member of a point."""
  unknown = [key for key in point if key not in TRACED]
  if unknown:
    raise ValueError(f"{unknown} change shapes or programs: other groups")
  value = lambda key, default: point.get(key, default)  # noqa: E731
  ratio = float(value("ratio", config.ratio))
  if not 0 <= ratio < 1:
    raise errors.UserError(f"ratio must be in [0, 1), not {ratio}")
  return sweep.Member(
    ratio=ratio,
    seed=int(value("seed", config.seed)),
    learning_rate=value("prune.learning_rate", config.prune.learning_rate),
    finetune_rate=value(
      "finetune.learning_rate", config.finetune.learning_rate
    ),
    strategy={
      key.removeprefix(STRATEGY): float(number)
      for key, number in point.items()
      if key.startswith(STRATEGY)
    },
  )


def _evaluate(job, data, evaluate, member) -> dict:
  """What is found on every reported split."""
  policies = job.stage.objective.policies(member.thetas)
  size = job.config.evaluate.batch_size
  return {
    split: evaluate(
      member.params, member.masks, policies, data.evaluation(split, size)
    )
    for split in job.config.data.report_splits
  }


def _result(job, metrics, point, member, traces) -> dict[str, Any]:
  """One line of the results."""
  dense = job.stage.settings.dense_macs
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
    "metrics": {"finetuned_masked": metrics},
    "stages": member.history,
    "probe": member.probe,
    "compilations": traces,
  }

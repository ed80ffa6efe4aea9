"""The pruning search: stages until the target, resumable at every stage."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from comp_jax.train import checkpoints as checkpoints_lib
from comp_jax.train import (
  compiled,
  finite,
  fit,
  metrics,
  preemption,
  sharding,
  stepper,
)
from comp_jax.train import stage as stage_lib
from comp_jax.train import state as state_lib

# Above the target by less than this fraction of dense, the search has arrived:
# `settle` removes the rest.
ARRIVED = 2e-3
# A last adjustment that removes less of the dense MACs needs no word.
SHORT = 0.02
# Training alone may lose this part of the metric before somebody is told.
HARM = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """How long a search runs.

  Attributes:
    warmup_stages: stages that train without pruning: they warm the optimiser
      up and gather the first scores.
    max_stages: pruning stages, at most.
    save_every: stages between checkpoints.
    parts: in how many parts a stage's batches come to the devices.
  """

  warmup_stages: int = 1
  max_stages: int = 60
  save_every: int = 1
  parts: int = 1

  @property
  def total(self) -> int:
    return self.warmup_stages + self.max_stages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """What a search found.

  Attributes:
    state: masks, thresholds and weights, settled at the target.
    history: one JSON-ready dict per stage.
    probe: cold-start cost of each mode; empty where none was taken.
    stages: stages that trained, warm-up included.
    warnings: what a reader of its numbers must know, sentences.
    compilations: of the stage function, or of what trains its parts, in this
      process.
    seconds: wall time of all stages, over all processes that ran them.
  """

  state: state_lib.SearchState
  history: list[dict[str, Any]]
  probe: dict[str, float]
  stages: int
  warnings: list[str]
  compilations: int
  seconds: float


def search(
  stage: stage_lib.Stage,
  initial: Callable[[Mapping, Mapping], state_lib.SearchState],
  params: Mapping,
  plan: Plan,
  batches: Callable[[int], Iterator[Mapping]],
  select: Mapping,
  *,
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules,
  checkpoints: checkpoints_lib.Checkpoints,
  writer: Callable[[int], metrics.MetricWriter],
  watch: preemption.Watch,
) -> Result:
  """Prunes until the target, an exhausted model or `max_stages`.

  Args:
    stage: the functions of a stage.
    initial: (params, select) -> state of the dense model; traceable.
    params: dense weights.
    plan: lengths.
    batches: first part of a stage, counted over all stages -> iterator over
      [t, b, ...] batches, `plan.parts` of them to a stage.
    select: validation examples [chunks, c, ...], on the host.
    mesh: devices.
    rules: where the state lives.
    checkpoints: of this search.
    writer: first step -> scalars; opened once the resume step is known.
    watch: signals.

  Raises:
    NotFinite: the weights, scores or costs diverged; what was saved before is
      sound.
    fit.Interrupted: a signal; the state is saved.
  """
  split = sharding.batch_sharding(mesh, leading_axes=1)
  select = jax.device_put(select, split)
  abstract = jax.eval_shape(initial, params, select)
  run = stepper.Stepper(stage, plan.parts, mesh, rules, abstract, select)
  placed = run.placed
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract,
    placed,
  )
  probe = compiled.Compiled(
    stage.probe, in_shardings=(placed, split, split), out_shardings=placed
  )
  modes, target = stage.prunable.modes, stage.settings.target
  due = stage.due
  history, costs, first, spent = [], {}, 0, 0.0
  restored = checkpoints.restore_latest(abstract)
  if restored is None:
    # The weights go straight to where they live, never whole to each device.
    state = jax.jit(
      initial, in_shardings=(placed.params, split), out_shardings=placed
    )(params, select)
  else:
    first, state, meta = restored
    history, costs = meta["history"], meta["probe"]
    spent = meta["seconds"]
  began = time.monotonic()
  source = batches(first * plan.parts)
  scalars = writer(first)
  progress = metrics.Progress(
    plan.total,
    target_macs=target * stage.settings.dense_macs,
    metric_name="select metric",
    first=first,
  )
  with progress, scalars:
    for index in range(first, plan.total):
      warming = index < plan.warmup_stages
      if not warming and finished(history, target, due):
        break
      if index == plan.warmup_stages and needs_probe(stage):
        state = probe(state, run.whole(source), select)
        found = np.asarray(state.strategy.cost, np.float64)
        _check_scores(found, modes)
        costs = dict(zip(modes, found.tolist(), strict=True))
      stage_began = time.monotonic()
      state, record = run(state, source, select, jnp.asarray(not warming))
      record = jax.device_get(record)
      start = index * len(record.losses)
      finite.check(record.losses, record.sound, start, "pruning", state)
      seconds = time.monotonic() - stage_began
      row = stage_row(index, record, stage, warming, seconds)
      history.append(row)
      scalars.write(index, _scalars(row))
      stop = watch.requested()
      # The last stage is always kept: what follows may be stopped too.
      over = index + 1 == plan.total or finished(history, target, due)
      if stop or over or (index + 1) % plan.save_every == 0:
        checkpoints.save(
          index + 1,
          state,
          {
            "history": history,
            "probe": costs,
            "seconds": spent + time.monotonic() - began,
          },
        )
      progress.update(
        index + 1, mode=row["mode"], macs=row["macs"], metric=row["metric"]
      )
      if index + 1 == plan.warmup_stages and (harm := harmful(history)):
        progress.note(harm)
      if stop:
        checkpoints.wait()
        raise fit.Interrupted("pruning")
    if told := short(history, target):
      progress.note(told)
  checkpoints.wait()
  settle = compiled.Compiled(
    stage.settle, in_shardings=(placed, split), out_shardings=placed
  )
  return Result(
    state=settle(state, select),
    history=history,
    probe=costs,
    stages=ran(history),
    warnings=list(filter(None, (harmful(history), short(history, target)))),
    compilations=run.compilations,
    seconds=spent + time.monotonic() - began,
  )


def needs_probe(stage: stage_lib.Stage) -> bool:
  """Whether the strategy starts from the costs of trial steps."""
  recipe = stage.recipe
  return recipe.schedule == "mps" and recipe.strategy.cold_start == "probe"


def finished(history: Sequence[Mapping], target: float, due: int = 0) -> bool:
  """Whether the last stage arrived, or had nothing left to prune.

  Args:
    history: rows of the stages.
    target: as a fraction of dense.
    due: pruning stages that run in any case.
  """
  if not history or history[-1]["mode"] == "warmup":
    return target >= 1.0
  last = history[-1]
  ran = sum(row["mode"] != "warmup" for row in history)
  arrived = last["macs_fraction"] <= target + ARRIVED and ran >= due
  return arrived or last["mode"] == "none"


def ran(history: Sequence[Mapping]) -> int:
  """Stages that trained: a last one that had nothing to prune stood still."""
  return sum(row["mode"] != "none" for row in history)


def harmful(history: Sequence[Mapping]) -> str:
  """What to tell where the warm-up, which prunes nothing, lost metric.

  At a rate that undoes the dense model's own training, Eq. 8 measures the
  training, and no recipe is worth its name.
  """
  warmup = [row for row in history if row["mode"] == "warmup"]
  if not warmup:
    return ""
  before, after = warmup[0]["metric_before"], warmup[-1]["metric"]
  if before - after <= HARM * abs(before):
    return ""
  return (
    f"training without pruning took the select metric from {before:.4g} to "
    f"{after:.4g}: config.prune.learning_rate may be too high for this model"
  )


def short(history: Sequence[Mapping], target: float) -> str:
  """What to tell of a search whose stages were over before it arrived."""
  if not history or history[-1]["mode"] == "warmup":
    return ""
  left = history[-1]["macs_fraction"] - target
  if left <= SHORT:
    return ""
  advice = "raise config.prune.max_stages, and leave config.prune.keep_pace on"
  if history[-1]["mode"] == "none":
    advice = "no mode could remove more"
  return (
    f"the search ended {left:.1%} of the dense MACs above its target: the last "
    "adjustment removes what it can of them at once, without training; "
    f"{advice}"
  )


def stage_row(
  index: int,
  record: state_lib.StageRecord,
  stage: stage_lib.Stage,
  warming: bool,
  seconds: float,
) -> dict[str, Any]:
  """A stage as the report shows it; MACs per example."""
  modes = stage.prunable.modes
  dense = stage.settings.dense_macs
  selected = [m for m, on in zip(modes, record.selected, strict=True) if on]
  if warming:
    mode = "warmup"
  elif not selected:
    mode = "none"
  else:
    mode = "+".join(selected) if len(selected) > 1 else selected[0]
    if len(modes) > 1 and selected == list(modes):
      mode = "all"
  pruned = bool(selected)
  # A quotient by next to nothing is no cost.
  least = stage.recipe.strategy.min_delta
  moved = pruned and abs(record.macs_before - record.macs) >= least
  named = lambda values, cast: {  # noqa: E731
    m: cast(v) for m, v in zip(modes, values, strict=True)
  }
  return {
    "index": index,
    "mode": mode,
    "explored": bool(record.explored),
    "macs": float(record.macs) * dense,
    "macs_fraction": float(record.macs),
    "macs_before": float(record.macs_before) * dense,
    "metric": float(record.metric),
    "metric_before": float(record.metric_before),
    "metric_immediate": float(record.metric_immediate),
    "metric_uncut": (
      float(record.metric_uncut) if stage.paired and pruned else None
    ),
    "cost": float(record.cost) if moved else None,
    "immediate_cost": float(record.immediate_cost) if pruned else None,
    "costs": named(record.costs, float),
    "exhausted": named(record.exhausted, bool),
    "removable": named(record.removable, float),
    "thresholds": {t: float(v) for t, v in record.thetas.items()},
    # One that stands still trains nothing.
    "loss": float(np.mean(record.losses)) if pruned or warming else None,
    "seconds": seconds,
  }


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
  """The numbers of a stage, for the logs; nothing that time decides."""
  keys = ("macs", "metric", "metric_immediate", "loss", "cost")
  scalars = {f"prune/{k}": row[k] for k in keys if row[k] is not None}
  for tower, theta in row["thresholds"].items():
    scalars[f"prune/theta_{tower}"] = theta
  return scalars


def _check_scores(costs: np.ndarray, modes: Sequence[str]) -> None:
  bad = [m for m, c in zip(modes, costs, strict=True) if not np.isfinite(c)]
  if bad:
    raise finite.NotFinite(
      f"pruning: the trial steps of {', '.join(bad)} gave costs that are not "
      "finite: the weights or scores hold NaN; check the checkpoint and, where "
      "prune.cost is paired, the learning rate"
    )

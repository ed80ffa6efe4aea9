"""The loop of a sweep: all members' searches, then their fine-tuning."""

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
  preemption,
  search,
  sharding,
)
from comp_jax.train import state as state_lib
from comp_jax.train import sweep as sweep_lib

Batches = Callable[[int], Iterator[Mapping]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """What one member came to.

  Attributes:
    params: weights after the masked fine-tuning.
    masks: hard masks.
    thetas: token thresholds of these weights at the target.
    macs: at these, as a fraction of dense.
    history: one JSON-ready dict per stage.
    probe: cold-start costs; empty where none were taken.
    failed: what went wrong; empty for a sound member.
  """

  params: Mapping
  masks: Mapping
  thetas: Mapping
  macs: float
  history: list[dict[str, Any]]
  probe: dict[str, float]
  failed: str


def run(
  sweep: sweep_lib.Sweep,
  params: Mapping,
  select: Mapping,
  search_batches: Callable[[int], Batches],
  finetune_batches: Callable[[int], Batches],
  *,
  checkpoints: Callable[[str], checkpoints_lib.Checkpoints],
  watch: preemption.Watch,
  note: Callable[[str, Sequence[dict[str, Any]]], None],
) -> tuple[list[Found], dict[str, int]]:
  """Searches and fine-tunes every member.

  Args:
    sweep: the members.
    params: dense weights.
    select: validation examples [chunks, c, ...], on the host.
    search_batches: seed -> start stage -> iterator over [steps, b, ...].
    finetune_batches: seed -> start chunk -> iterator over [chunk, b, ...].
    checkpoints: name of a phase -> its checkpoints.
    watch: signals.
    note: called after every stage and chunk with the phase and one dict of
      numbers per member.

  Returns:
    What each member came to, and how often each program was compiled.

  Raises:
    fit.Interrupted: a signal; the state is saved.
  """
  mesh = sweep.mesh
  whole = sharding.replicated(mesh)
  split = sharding.batch_sharding(mesh)
  values = jax.device_put(sweep.values(), split)
  select = jax.device_put(select, whole)
  with checkpoints("search") as saved:
    states, history, probe, failed, traces = _search(
      sweep, params, values, select, search_batches, saved, watch, note, split
    )
  settle = jax.jit(sweep.settle, out_shardings=split)
  states = settle(values, states, select)
  with checkpoints("finetune") as saved:
    spare = [sweep.plan.total - search.ran(rows) for rows in history]
    tuned, failed, finetune_traces = _finetune(
      sweep,
      values,
      states,
      failed,
      spare,
      finetune_batches,
      saved,
      watch,
      note,
      split,
    )
  retune = jax.jit(sweep.retuned, out_shardings=split)
  moved = retune(values, tuned, states.masks, states.thetas, select)
  tuned, masks, (thetas, macs) = jax.device_get((tuned, states.masks, moved))
  row = lambda tree, i: jax.tree.map(lambda x: np.asarray(x[i]), tree)  # noqa: E731
  found = [
    Found(
      params=row(tuned, index),
      masks=row(masks, index),
      thetas=row(thetas, index),
      macs=float(macs[index]),
      history=history[index],
      probe=probe[index],
      failed=failed[index],
    )
    for index in range(len(sweep.members))
  ]
  return found, {"stage_step": traces, "finetune_step": finetune_traces}


def _search(
  sweep, params, values, select, orders, saved, watch, note, split
) -> tuple[state_lib.SearchState, list[list], list[dict], list[str], int]:
  """The states after the last stage; each member's rows, probe and failure."""
  plan, members = sweep.plan, sweep.members
  stages = [sweep.of(_member(sweep, i)) for i in range(len(members))]
  initial = jax.jit(sweep.initial, out_shardings=split)
  abstract = jax.eval_shape(initial, params, select)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), abstract
  )
  history, probe = [[] for _ in members], [{} for _ in members]
  failed, first = [""] * len(members), 0
  restored = saved.restore_latest(abstract)
  if restored is None:
    states = initial(params, select)
  else:
    first, states, meta = restored
    history, probe = meta["history"], meta["probe"]
    failed = meta.get("failed", failed)
  step = compiled.Compiled(
    sweep.stages, out_shardings=(split, split), donate_argnums=1
  )
  sources = [orders(seed)(first) for seed in sweep.seeds]
  for index in range(first, plan.total):
    warming = index < plan.warmup_stages
    live = _live(stages, history, failed, warming)
    if not any(live):
      break
    batches = _stacked(sources)
    if index == plan.warmup_stages and search.needs_probe(sweep.stage):
      probed = jax.jit(sweep.probe, out_shardings=split)
      states = probed(values, states, batches, select)
      costs = np.asarray(states.strategy.cost, np.float64)
      modes = sweep.stage.prunable.modes
      probe = [dict(zip(modes, row.tolist(), strict=True)) for row in costs]
    began = time.monotonic()
    states, records = step(
      values,
      states,
      np.array(live),
      batches,
      select,
      jnp.asarray(not warming),
    )
    records = jax.device_get(records)
    seconds = time.monotonic() - began
    for i in np.flatnonzero(live):
      record = jax.tree.map(lambda x, i=i: x[i], records)
      start = index * len(record.losses)
      failed[i] = finite.problem(record.losses, record.sound, start, "pruning")
      history[i].append(
        search.stage_row(index, record, stages[i], warming, seconds / sum(live))
      )
    note("search", [rows[-1] if rows else {} for rows in history])
    stop = watch.requested()
    # The last stage is always kept: what follows may be stopped too.
    over = index + 1 == plan.total or not any(_live(stages, history, failed))
    if stop or over or (index + 1) % plan.save_every == 0:
      meta = {"history": history, "probe": probe, "failed": failed}
      saved.save(index + 1, states, meta)
    if stop:
      saved.wait()
      raise fit.Interrupted("sweep")
  saved.wait()
  return states, history, probe, failed, step.compilations


def _live(stages, history, failed, warming: bool = False) -> list[bool]:
  """Which members are sound, and have not arrived at their target."""
  return [
    not problem
    and (
      warming
      or not search.finished(rows, float(stage.settings.target), stage.due)
    )
    for rows, stage, problem in zip(history, stages, failed, strict=True)
  ]


def _finetune(
  sweep, values, states, failed, spare, batches, saved, watch, note, split
) -> tuple[Mapping, list[str], int]:
  """The weights after the masked fine-tuning; what went wrong in any phase.

  `spare` stages of each member's search were not needed: it trains on for them.
  """
  schedule = sweep.finetune
  longer = [
    dataclasses.replace(schedule, steps=schedule.steps + n * sweep.stage_steps)
    for n in spare
  ]
  chunks = [each.chunks for each in longer]
  horizon = np.array([each.steps for each in longer], np.float32)
  values = {**values, "finetune_steps": jax.device_put(horizon, split)}
  # Its rate is no part of an optimiser's state.
  optimizer = schedule.optimizer()
  renewed = sweep.stage.objective.memory.renewed
  start = jax.vmap(lambda p, old: (p, optimizer.init(p), renewed(old, p)))
  tuned = jax.jit(start, out_shardings=split)(states.params, states.memory)
  frozen = (states.masks, states.thetas)
  first = 0
  restored = saved.restore_latest(fit.abstract(tuned))
  if restored is not None:
    first, tuned, meta = restored
    failed = meta.get("failed", failed)
  step = compiled.Compiled(
    sweep.chunk, out_shardings=(split, split), donate_argnums=1
  )
  # One that failed early has many to spare, and trains no more.
  left = [n for n, said in zip(chunks, failed, strict=True) if not said]
  most = max(left, default=0)
  if first >= most:
    return tuned[0], failed, 0
  sources = [batches(seed)(first) for seed in sweep.seeds]
  rows = [{} for _ in chunks]
  for index in range(first, most):
    steps = np.array(
      [
        0 if problem else each.taken(index)
        for problem, each in zip(failed, longer, strict=True)
      ],
      np.int32,
    )
    tuned, found = step(values, tuned, frozen, steps, _stacked(sources))
    losses, sound = jax.device_get(found)
    start = index * schedule.chunk
    for i in np.flatnonzero(steps):
      own = losses[i, : steps[i]]
      failed[i] = finite.problem(own, sound[i], start, "finetune")
      rows[i] = {"loss": float(own.mean())}
    note("finetune", rows)
    last = index + 1 == most
    stop = watch.requested()
    if stop or last or (index + 1) % schedule.save_every == 0:
      saved.save(index + 1, tuned, {"failed": failed})
    if stop:
      saved.wait()
      raise fit.Interrupted("sweep")
  saved.wait()
  return tuned[0], failed, step.compilations


def _member(sweep: sweep_lib.Sweep, index: int) -> dict[str, Any]:
  """What tells one member apart, as numbers."""
  return jax.tree.map(lambda x: x[index].item(), sweep.values())


def _stacked(sources: Sequence[Iterator[Mapping]]) -> dict[str, np.ndarray]:
  """The next batches of every data order, [orders, steps, b, ...]."""
  parts = [next(source) for source in sources]
  return {key: np.stack([part[key] for part in parts]) for key in parts[0]}

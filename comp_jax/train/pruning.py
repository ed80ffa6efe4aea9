"""The whole pruning job: search, compact, fine-tune, evaluate, report."""

import contextlib
import dataclasses
import datetime
import json
import logging
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from comp_jax.core import execution as execution_lib
from comp_jax.interop import atomic, store, tensors
from comp_jax.models import families
from comp_jax.train import checkpoints as checkpoints_lib
from comp_jax.train import (
  compaction,
  examples,
  fit,
  metrics,
  preemption,
  prepare,
  search,
  setup,
)
from comp_jax.train import workdir as workdir_lib

_LOG = logging.getLogger(__name__)
# Pictures in the report.
SAMPLES = 6


def run(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> tuple[dict, dict[str, np.ndarray]]:
  """Prunes, compacts, fine-tunes, evaluates; writes `model/`, `examples.npz`.

  Returns:
    The report, ready to write, and the sample pictures beside it.

  Raises:
    UserError: a mistake in the config, the data or the workdir.
    fit.Interrupted: a signal; run again to go on.
  """
  began = time.monotonic()
  job = prepare.prepare(config)
  # Now, while there is time to choose otherwise, and in the report.
  for warning in job.warnings:
    _LOG.warning(warning)
  with (
    workdir_lib.claim(workdir, setup.plain(config), "prune.py"),
    preemption.watch() as watch,
    Notes(workdir / "progress.json").timed("total", began) as notes,
  ):
    rows, compilations = {}, {}

    def count(step, traces):
      """Keeps how often a step was compiled, for the report."""
      compilations[step] = notes.most(step, traces)

    def go_on():
      """Raises Interrupted where a signal came; a rerun does nothing twice."""
      if watch.requested():
        raise fit.Interrupted("prune")

    def note(row, evaluator, *arguments):
      """Evaluates a row of the main table, unless the config leaves it out."""
      go_on()

      def measured():
        found = evaluator(config, job.data, *arguments)
        if row == "finetuned":
          # Before its metrics are noted: what is noted is not done again.
          examples.write(workdir, found)
        return {split: each.metrics for split, each in found.items()}

      if row in config.evaluate.rows:
        rows[row] = notes.once(row, measured)
      if evaluator is evaluate:
        count("evaluate", evaluate.compilations)
      go_on()

    evaluate = setup.Evaluator(job.task, job.spec, job.mesh)
    objective = job.stage.objective

    # Dense.
    note(
      "dense",
      evaluate,
      job.dense.params,
      objective.execution(job.stage.ones, jax.device_get(job.stage.off)),
    )

    # Search.
    with checkpoints_lib.Checkpoints(
      workdir / "checkpoints" / "search"
    ) as checkpoints:
      found = search.search(
        job.stage,
        job.initial,
        job.dense.params,
        job.plan,
        job.data.train(config.prune.batch_size, prepare.part_steps(config)),
        job.select,
        mesh=job.mesh,
        rules=job.rules,
        checkpoints=checkpoints,
        writer=lambda first: metrics.MetricWriter(
          setup.folder(workdir, "logs/search"), first
        ),
        watch=watch,
      )
    count("stage_step", found.compilations)
    state = found.state
    masks, thetas = jax.device_get((state.masks, state.thetas))
    note("masked", evaluate, state.params, objective.execution(masks, thetas))

    # Compaction.
    small = compaction.compacted(job, state)
    evaluate_static = setup.Evaluator(job.task, small.spec, job.mesh)
    params = small.params
    counted = execution_lib.Execution(policies=small.static)
    note("compacted", evaluate_static, params, counted)

    # Fine-tuning of the small model.
    spare = job.plan.total - found.stages
    schedule = setup.schedule(config.finetune, spare * config.prune.stage_steps)
    static = config.finetune.tokens == "static"
    policies = small.static if static else small.threshold
    fine = dataclasses.replace(
      objective,
      prunable=families.prunable(small.spec),
      microbatches=config.finetune.microbatches,
      memory=job.task.memory(small.spec),
    )
    with (
      notes.timed("finetune"),
      checkpoints_lib.Checkpoints(
        workdir / "checkpoints" / "finetune"
      ) as checkpoints,
    ):
      params, finetune_compilations = fit.fit(
        fine,
        params,
        fine.memory.renewed(state.memory, params),
        execution_lib.Execution(policies=policies),
        schedule,
        job.data.train(
          config.finetune.batch_size,
          config.finetune.chunk,
          first_step=job.plan.total * config.prune.stage_steps,
        ),
        mesh=job.mesh,
        rules=job.rules,
        checkpoints=checkpoints,
        writer=lambda first: metrics.MetricWriter(
          setup.folder(workdir, "logs/finetune"), first
        ),
        watch=watch,
        what="finetune",
      )
    count("finetune_step", finetune_compilations)
    params = jax.device_get(params)
    dynamic = {}
    if not static or "finetuned_threshold" in config.evaluate.rows:
      dynamic = notes.once(
        "thresholds", lambda: compaction.retuned(job, small, fine, params)
      )
      policies = policies if static else fine.policies(dynamic["thetas"])
    store.save(
      workdir / "model",
      params=params,
      spec=small.spec,
      policies=policies,
      tokenizer_json=job.dense.tokenizer_json,
      recipe={
        **dataclasses.asdict(job.stage.recipe),
        "ratio": config.ratio,
        "seed": config.seed,
      },
    )
    note("finetuned", evaluate_static, params, counted)
    if dynamic:
      note(
        "finetuned_threshold",
        setup.Evaluator(job.task, small.spec, job.mesh),
        params,
        execution_lib.Execution(policies=fine.policies(dynamic["thetas"])),
      )
    report = {
      "format": 1,
      "name": config.name,
      "recipe": job.stage.recipe.name,
      "ratio": config.ratio,
      "seed": config.seed,
      "created": datetime.datetime.now(datetime.UTC).isoformat(
        timespec="seconds"
      ),
      "dense_digest": tensors.digest(job.dense.params),
      "macs": {
        "dense": job.stage.settings.dense_macs,
        "target": job.stage.settings.target * job.stage.settings.dense_macs,
        "masked": float(state.macs) * job.stage.settings.dense_macs,
        "compacted": small.macs,
        "final": small.macs if static else dynamic["macs"],
        "convention": "inference",
        **({"padded_final": small.padded_macs} if static else {}),
        **({"finetuned_threshold": dynamic["macs"]} if dynamic else {}),
      },
      "params": {
        "dense": families.params_count(job.spec),
        "final": families.params_count(small.spec),
      },
      "metrics": rows,
      "stages": found.history,
      "probe": found.probe,
      "warnings": job.warnings + found.warnings,
      "kept": small.kept,
      "compilations": compilations,
      "seconds": {
        "prune": found.seconds,
        **{name: notes.seconds(name) for name in ("finetune", "evaluate")},
        "total": notes.seconds("total", since=began),
      },
      "devices": f"{job.mesh.size} x {jax.devices()[0].device_kind}",
      "versions": setup.versions(),
      "config": setup.plain(config),
    }
    return report, _samples(job, state)


class Notes:
  """Results of finished phases, kept so that a resumed run repeats none."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._values = {}
    if path.exists():
      self._values = json.loads(path.read_text(encoding="utf-8"))

  def once(self, name: str, compute: Callable[[], Any]) -> Any:
    """The value of a phase, computed the first time."""
    if name not in self._values:
      with self.timed("evaluate"):
        self._values[name] = compute()
    return self._values[name]

  @contextlib.contextmanager
  def timed(self, phase: str, began: float | None = None) -> Iterator["Notes"]:
    """Adds the wall time of a phase, also of one that a signal cuts short.

    Args:
      phase: its name.
      began: when it did, where that was before the block.
    """
    began = time.monotonic() if began is None else began
    try:
      yield self
    finally:
      self._keep(f"{phase}_seconds", self.seconds(phase, since=began))

  def seconds(self, phase: str, since: float | None = None) -> float:
    """Wall time of a phase over all processes of the run that ended it.

    Args:
      phase: its name.
      since: when it began in this process, where it has not ended yet.
    """
    running = 0.0 if since is None else time.monotonic() - since
    return self._values.get(f"{phase}_seconds", 0.0) + running

  def most(self, name: str, count: int) -> int:
    """The highest count of any process: one that resumes late traces less."""
    key = f"{name}_compilations"
    return self._keep(key, max(count, self._values.get(key, 0)))

  def _keep(self, key: str, value: Any) -> Any:
    self._values[key] = value
    # Metrics stay in their task's order: the first is the one to quote.
    atomic.write_json(self._path, self._values, sort_keys=False)
    return value


def _samples(job, state) -> dict[str, np.ndarray]:
  """Pictures of the last reported split and the patches that survive."""
  split = job.config.data.report_splits[-1]
  source = job.data.splits[split]
  batch = job.data.examples(split, min(SAMPLES, len(source)))
  execution = job.stage.objective.execution(state.masks, state.thetas)
  _, aux = jax.jit(job.stage.prunable.forward)(state.params, batch, execution)
  images = batch["image"]
  texts = [source[i]["captions"][0] for i in range(len(images))]
  images = images.reshape(-1, *images.shape[-3:])
  return {
    "image": images,
    "valid": np.asarray(aux["vision"]["valid"]).transpose(1, 0, 2),
    "text": np.repeat(texts, job.spec.images),
  }

"""What a sweep of 16 searches costs beside 16 searches of their own.

python benchmarks/sweep.py

Four ratios times four seeds of the tiny model. Both sides run the same stage,
steps and examples; a stage is called until it is compiled, then timed. The
ratio of wall times is what to read.
"""

import dataclasses
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from comp_jax.cli import configs
from comp_jax.data import sources
from comp_jax.train import prepare, setup, sweep

_ROOT = pathlib.Path(__file__).parents[1]
STEPS = flags.DEFINE_integer("steps", 2, "Training steps of a stage.")
BATCH = flags.DEFINE_integer("batch", 16, "Examples per step.")
STAGES = flags.DEFINE_integer("stages", 2, "Stages that are timed.")

RATIOS = (0.5, 0.7, 0.8, 0.85)
SEEDS = (0, 1, 2, 3)


def make(job: prepare.Job, points) -> sweep.Sweep:
  """The sweep of these (ratio, seed) points."""
  config = job.config
  return sweep.Sweep(
    stage=job.stage,
    num_stages=config.prune.num_stages,
    plan=job.plan,
    stage_steps=STEPS.value,
    optimizer=lambda rate: prepare.optimizer(config, rate),
    finetune=setup.schedule(config.finetune),
    microbatches=config.finetune.microbatches,
    members=[
      sweep.Member(
        ratio=ratio,
        seed=seed,
        learning_rate=config.prune.learning_rate,
        finetune_rate=config.finetune.learning_rate,
        least_step=config.prune.least_step,
        strategy={},
      )
      for ratio, seed in points
    ],
    mesh=job.mesh,
  )


def timed(job: prepare.Job, points) -> tuple[float, float]:
  """Seconds of the first stage, compilation and all, and of a later one."""
  group = make(job, points)
  select = jax.device_put(job.select)
  states = jax.jit(group.initial)(job.dense.params, select)
  train = sources.Decoded(job.data.splits["train"])
  data = dataclasses.replace(job.data, splits={"train": train})
  orders = [
    dataclasses.replace(data, seed=seed).train(BATCH.value, STEPS.value)(0)
    for seed in group.seeds
  ]
  stage = jax.jit(group.stages, donate_argnums=1)
  values, live = group.values(), np.ones(len(points), bool)
  seconds = []
  for _ in range(1 + STAGES.value):
    parts = [next(order) for order in orders]
    batches = {k: np.stack([part[k] for part in parts]) for k in parts[0]}
    began = time.perf_counter()
    states, _ = stage(values, states, live, batches, select, jnp.asarray(True))
    jax.block_until_ready(states)
    seconds.append(time.perf_counter() - began)
  for order in orders:
    order.close()
  return seconds[0], float(np.mean(seconds[1:]))


def main(_):
  config = configs.load(str(_ROOT / "configs" / "emoji_tiny.py"))
  config.prune.validation = config.prune.validation_chunk = 64
  config.prune.calibration = 32
  job = prepare.prepare(config)
  points = [(ratio, seed) for ratio in RATIOS for seed in SEEDS]
  first_alone, alone = timed(job, points[:1])
  first, together = timed(job, points)
  count = len(points)
  print(f"{job.mesh.size} x {jax.devices()[0].device_kind}")
  print(f"stages of {STEPS.value} steps of {BATCH.value}, {count} members")
  print(f"alone: first stage {first_alone:.1f} s, later ones {alone:.2f} s")
  print(f"sweep: first stage {first:.1f} s, later ones {together:.2f} s")
  print(f"sweep / {count} alone, compiled: {together / count / alone:.2f}")
  whole = first + STAGES.value * together
  apart = count * (first_alone + STAGES.value * alone)
  print(f"sweep / {count} alone, with compilation: {whole / apart:.2f}")


if __name__ == "__main__":
  app.run(main)

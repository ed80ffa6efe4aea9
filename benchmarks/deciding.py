"""What deciding costs: the share of a stage that does not train.

  python benchmarks/deciding.py
  python benchmarks/deciding.py --validation=128 --validation=64 --rounds=2
  COMP_JAX_DATA=DIR python benchmarks/deciding.py --validation=256 \
    --config=configs/flickr8k_dinov2_minilm.py

A stage of the config's model validates twice, before and after its training,
and bisects thetas. It is one program: here each of these parts is a program of
its own on the same arrays, timed in turn with the whole. Within the stage they
may share work with the rest, so a share is what a part would cost alone. Two
stages are timed, one that removes units and one that drops tokens, both from a
state in which tokens are dropped already. The ratios are what to read.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from absl import app, flags

from comp_jax.cli import configs
from comp_jax.core import masks as masks_lib
from comp_jax.train import prepare, state

_ROOT = pathlib.Path(__file__).parents[1]
CONFIG = flags.DEFINE_string(
  "config", str(_ROOT / "configs" / "emoji_tiny.py"), "Whose job it is."
)
VALIDATION = flags.DEFINE_multi_integer(
  "validation", [128, 64], "Examples that a stage validates on."
)
ROUNDS = flags.DEFINE_integer("rounds", 2, "Timed calls of each program.")

MODES = ("vision_tokens", "vision_params")


def prepared(validation: int) -> prepare.Job:
  """The job of the config that validates on so many examples."""
  config = configs.load(CONFIG.value)
  config.prune.validation = validation
  config.prune.validation_chunk = min(config.prune.validation_chunk, validation)
  # The mode that is said to be cheapest is the one that is pruned.
  config.recipe.strategy.explore = 0.0
  return prepare.prepare(config)


def inclined(
  job: prepare.Job, before: state.SearchState, mode: str
) -> state.SearchState:
  """The state in which this mode is the cheapest."""
  costs = jnp.array([float(m != mode) for m in job.stage.prunable.modes])
  strategy = dataclasses.replace(before.strategy, cost=costs)
  return dataclasses.replace(before, strategy=strategy)


def marked(job: prepare.Job, before: state.SearchState, selected):
  """The masks of a stage that raises one mode, and the MACs it aims at."""
  stage = job.stage
  goal = stage.goal(before, selected, stage.removable(before))
  units = jnp.any(selected & ~stage.is_token)
  need = jnp.where(units, before.macs - goal, 0.0)
  chosen = stage.mark(before, selected, need, before.key)
  return masks_lib.soft(before.masks, chosen, 1.0), goal


def measure(job: prepare.Job) -> None:
  """Prints the seconds of a stage and the shares of its parts."""
  stage, config = job.stage, job.config
  whole, validate = jax.jit(stage), jax.jit(stage.validate)
  mark = jax.jit(lambda *arguments: marked(job, *arguments))
  bisect = jax.jit(stage.move_thetas)
  select = jax.device_put(job.select)
  source = job.data.train(config.prune.batch_size, config.prune.stage_steps)(0)
  batches = jax.device_put(next(source))
  source.close()
  start = jax.jit(job.initial)(job.dense.params, select)
  for prune in (False, True):
    start = inclined(job, start, MODES[0])
    start, _ = whole(start, batches, select, jnp.asarray(prune))
  print(f"{config.prune.validation} validation examples")
  for mode in MODES:
    before = inclined(job, start, mode)
    selected = jnp.array([m == mode for m in stage.prunable.modes])
    masks, goal = mark(before, selected)
    # Called once before the clock runs: these two compile.
    thetas = bisect(before, masks, selected, goal, select)
    jax.block_until_ready(validate(before.params, masks, thetas, select))
    seconds = timed(
      {
        "stage": (whole, before, batches, select, jnp.asarray(True)),
        "validation": (validate, before.params, masks, thetas, select),
        "bisection": (bisect, before, masks, selected, goal, select),
      }
    )
    total, both = seconds["stage"], 2 * seconds["validation"]
    theta = seconds["bisection"]
    print(f"  a stage of {mode}: {total:.2f} s")
    for name, part in (
      ("two validations", both),
      ("bisection of theta", theta),
      ("together", both + theta),
    ):
      print(f"    {name}: {part:.2f} s, {part / total:.1%}")


def timed(calls: Mapping[str, tuple]) -> dict[str, float]:
  """The median seconds of compiled functions, called in turn."""
  seconds = {name: [] for name in calls}
  for _ in range(ROUNDS.value):
    for name, (function, *arguments) in calls.items():
      began = time.perf_counter()
      jax.block_until_ready(function(*arguments))
      seconds[name].append(time.perf_counter() - began)
  return {name: statistics.median(each) for name, each in seconds.items()}


def main(_):
  for number, validation in enumerate(VALIDATION.value):
    job = prepared(validation)
    if not number:
      print(f"{job.mesh.size} x {jax.devices()[0].device_kind}")
    measure(job)


if __name__ == "__main__":
  app.run(main)

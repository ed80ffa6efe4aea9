"""The plain training loop: dense training and fine-tuning."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from comp_jax.core import execution as execution_lib
from comp_jax.train import checkpoints as checkpoints_lib
from comp_jax.train import compiled, finite, metrics, preemption, sharding
from comp_jax.train import rates as rates_lib
from comp_jax.train import step as step_lib


class Interrupted(Exception):
  """A signal asked the run to stop; its state is saved."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """Steps and rates of a training run.

  Attributes:
    steps: optimiser steps.
    chunk: steps per compiled call, and between checkpoints; the last one may
      have fewer.
    learning_rate: peak of the cosine.
    warmup: steps of linear warm-up.
    weight_decay: AdamW's.
    clip: global gradient norm; 0 for none.
    decay: what weight decay acts on, `matrices` or `all`.
    save_every: chunks between checkpoints.
    rates: factors on the rate, by path.
    horizon: steps after which the cosine is 0; None for `steps`. Of the
      members of a sweep it is traced.
  """

  steps: int
  chunk: int
  learning_rate: float | Float[Array, ""]
  warmup: int = 0
  weight_decay: float = 0.05
  clip: float = 1.0
  decay: str = "matrices"
  save_every: int = 1
  rates: rates_lib.Rules = ()
  horizon: Float[Array, ""] | None = None

  @property
  def chunks(self) -> int:
    return math.ceil(self.steps / self.chunk)

  def taken(self, index: int) -> int:
    """Steps of a chunk; none of one after the last."""
    return min(max(self.steps - index * self.chunk, 0), self.chunk)

  def optimizer(self) -> optax.GradientTransformation:
    """AdamW on a cosine that ends at 0."""
    steps = self.horizon
    if steps is None:
      steps = max(self.steps, 1)
    optimizer = adamw(
      lambda step: self.learning_rate * cosine(step, self.warmup, steps),
      self.weight_decay,
      self.clip,
      self.decay,
    )
    if not self.rates:
      return optimizer
    # After AdamW, which would undo any factor on its gradients.
    return optax.chain(optimizer, rates_lib.scaled(self.rates))


def cosine(
  step: Int[Array, "*t"] | int, warmup: int, steps: Float[Array, ""] | int
) -> Float[Array, "*t"]:
  """A factor that rises to 1 in a line and falls to 0 along a cosine.

  Optax has it for a number of steps that is known when it is traced.

  Args:
    step: counted from 0.
    warmup: steps of the rise, cut where there are no more.
    steps: of both.
  """
  warmup = jnp.minimum(warmup, steps - 1)
  rising = step / jnp.maximum(warmup, 1)
  over = (step - warmup) / (steps - warmup)
  falling = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(over, 1)))
  return jnp.where(step < warmup, rising, falling)


DECAYS = ("matrices", "all")
# Matrices by their last name: under a scan norms have two axes as well.
_MATRICES = ("kernel", "merge_kernel", "word_embedding")


def adamw(
  learning_rate: optax.ScalarOrSchedule,
  weight_decay: float,
  clip: float,
  decay: str = "matrices",
) -> optax.GradientTransformation:
  """AdamW, its gradients clipped.

  Args:
    learning_rate: or its schedule.
    weight_decay: AdamW's.
    clip: global gradient norm; 0 for none.
    decay: `matrices` alone (no norms, biases, scales), or `all` (UPop's and
      MADTP's one parameter group).
  """

  def matrices(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: path[-1].key in _MATRICES, params
    )

  return optax.chain(
    optax.clip_by_global_norm(clip) if clip else optax.identity(),
    optax.adamw(
      learning_rate,
      weight_decay=weight_decay,
      mask=matrices if decay == "matrices" else None,
    ),
  )


def advance(
  step: Callable[[Any, Any], tuple[Any, Float[Array, ""]]],
  state: Any,
  batches: Any,
  count: Int[Array, ""],
) -> tuple[Any, Float[Array, " chunk"]]:
  """The state after the first `count` of some batches, and their losses.

  Their number is traced, so that a last, shorter chunk is no other program.

  Args:
    step: state, batch -> state, loss.
    state: before.
    batches: [chunk, b, ...].
    count: up to all of them; the losses after it are 0.
  """
  chunk = jax.tree.leaves(batches)[0].shape[0]

  def body(index, carry):
    state, losses = carry
    state, loss = step(state, jax.tree.map(lambda x: x[index], batches))
    return state, losses.at[index].set(loss.astype(losses.dtype))

  return jax.lax.fori_loop(
    0, count, body, (state, jnp.zeros(chunk, jnp.float32))
  )


def fit(
  objective: step_lib.Objective,
  params: Mapping,
  memory: Any,
  execution: execution_lib.Execution,
  schedule: Schedule,
  batches: Callable[[int], Iterator[Mapping]],
  *,
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules,
  checkpoints: checkpoints_lib.Checkpoints,
  writer: Callable[[int], metrics.MetricWriter],
  watch: preemption.Watch,
  what: str,
) -> tuple[Mapping, int]:
  """Trained weights, and how often the step was compiled.

  Resumes from `checkpoints`.

  Args:
    objective: model and loss.
    params: weights to start from.
    memory: of the objective's task.
    execution: token policies to train under.
    schedule: steps and rates.
    batches: start chunk -> iterator over [chunk, b, ...] batches.
    mesh: devices.
    rules: where the state lives.
    checkpoints: this phase's checkpoints.
    writer: first step -> scalars; opened once the resume step is known.
    watch: signals.
    what: name of the phase, for progress and messages.

  Raises:
    NotFinite: the weights diverged; what was saved before is sound.
    Interrupted: a signal; the state is saved.
  """
  optimizer = schedule.optimizer()

  def chunk(state, stacked, count):
    def step(carry, batch):
      return objective.advance(optimizer, carry, batch, execution)

    state, losses = advance(step, state, stacked, count)
    return state, (losses, finite.everywhere(state))

  start = (params, jax.eval_shape(optimizer.init, params), memory)
  placed, _ = sharding.tree_shardings(mesh, start, rules)
  split = sharding.batch_sharding(mesh, leading_axes=1)
  # A copy: the caller's weights must survive the donation.
  params, memory = jax.device_put(
    (params, memory), (placed[0], placed[2]), may_alias=False
  )
  # Its moments begin where they live, never whole on one device.
  moments = jax.jit(optimizer.init, out_shardings=placed[1])(params)
  state = (params, moments, memory)
  restored = checkpoints.restore_latest(abstract(state))
  first = 0
  if restored is not None:
    first, state, _ = restored
  run = compiled.Compiled(
    chunk,
    in_shardings=(placed, split, sharding.replicated(mesh)),
    out_shardings=(placed, sharding.replicated(mesh)),
    donate_argnums=0,
  )
  if first >= schedule.chunks:
    return state[0], run.compilations
  source = batches(first)
  progress = metrics.Progress(
    schedule.steps,
    unit=f"{what} step",
    metric_name="loss",
    first=first * schedule.chunk,
    interval=5.0,
  )
  with progress, writer(first * schedule.chunk) as scalars:
    for index in range(first, schedule.chunks):
      stacked = jax.device_put(next(source), split)
      count = schedule.taken(index)
      state, found = run(state, stacked, np.int32(count))
      losses, sound = jax.device_get(found)
      start, losses = index * schedule.chunk, losses[:count]
      named = {"params": state[0], "optimizer": state[1]}
      finite.check(losses, sound, start, what, named)
      done = start + count
      for step, loss in enumerate(losses):
        scalars.write(start + step, {f"{what}/loss": loss})
      last = index + 1 == schedule.chunks
      stop = watch.requested()
      if stop or last or (index + 1) % schedule.save_every == 0:
        checkpoints.save(index + 1, state)
      progress.update(done, metric=float(losses.mean()))
      if stop:
        checkpoints.wait()
        raise Interrupted(what)
  checkpoints.wait()
  return state[0], run.compilations


def abstract(state: Any) -> Any:
  """The shapes, types and places of a state, to restore into."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state,
  )

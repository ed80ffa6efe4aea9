"""Momentum contrast: twins of the weights, and queues of their features.

BLIP's and CLIP's retrieval compare a batch with more pairs than it holds: the
features that slowly moving twins of the towers gave to the last batches (spec
`upop.md` 3.7, 3.8). The twins carry no masks and drop no tokens.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from comp_jax import errors
from comp_jax.models import families, specs, towers, two_tower
from comp_jax.tasks import task

# The concept of an entry that no batch has filled yet.
_EMPTY = -100
# Large: small numbers are those of a key that was split.
_STREAM = 0x3A7E1D


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Momentum(task.Memory):
  """Twins, queues, and how far they are.

  Attributes:
    spec: a model with a joint space.
    options: sizes and rates.
  """

  spec: specs.ModelSpec
  options: task.Options

  def check(self, batch_size: int) -> None:
    """Raises a UserError unless the queue holds a whole number of batches."""
    queue = self.options.queue
    if queue < 1 or queue % batch_size:
      below = queue // batch_size * batch_size
      nearest = [str(n) for n in (below, below + batch_size) if n > 0]
      raise errors.UserError(
        f"config.task.queue is {queue}: it must hold a whole number of batches "
        f"of {batch_size}, at least one; use {' or '.join(nearest)}"
      )

  def initial(self, params: Mapping, key: Key[Array, ""]) -> dict:
    """Twins equal to the weights, and empty queues."""
    shape = (self.options.queue, self.spec.joint_width)
    return {
      "twins": self._twins(params),
      "image": jnp.zeros(shape, jnp.float32),
      "text": jnp.zeros(shape, jnp.float32),
      "concept": jnp.full(shape[:1], _EMPTY, jnp.int32),
      "pointer": jnp.zeros((), jnp.int32),
      "step": jnp.zeros((), jnp.int32),
      # A stream of its own: the caller draws from its key too.
      "key": jax.random.fold_in(key, _STREAM),
    }

  def renewed(self, memory: Mapping, params: Mapping) -> dict:
    """The same queues, the next entry to replace first; the rest begins again.

    Batches of another size may follow: from the start of a queue, of which they
    are a whole part (`check`), none is written across its end.
    """
    start = jnp.zeros((), jnp.int32)
    queues = {
      name: jnp.roll(memory[name], -memory["pointer"], axis=0)
      for name in ("image", "text", "concept")
    }
    fresh = {"twins": self._twins(params), "pointer": start, "step": start}
    return {**memory, **queues, **fresh}

  def _twins(self, params):
    # Copies: weights and twins are donated apart.
    return jax.tree.map(jnp.copy, families.twins(self.spec, params))

  def recall(
    self, params: Mapping, memory: Mapping, batch: Mapping
  ) -> tuple[dict, dict, tuple]:
    """Moves the twins, and puts their features of the batch into the queues.

    Returns:
      The memory; the batch with `image_target`, `text_target` [b, p], the
      twins' features, and `key` [b]; and one dict with all that the batch is
      compared with: `image`, `text` [b + q, p], `concept` [b + q] and the
      weight `distill`.
    """
    keep = self.options.momentum
    twins = jax.tree.map(
      lambda old, new: keep * old + (1 - keep) * new,
      memory["twins"],
      families.twins(self.spec, params),
    )
    inputs = {name: batch[name] for name in towers.INPUTS}
    found = two_tower.pairs(
      families.module(self.spec), {**params, **twins}, inputs
    )
    found = {**found, "concept": batch["concept"].astype(jnp.int32)}
    key, draw = jax.random.split(memory["key"])
    size = batch["concept"].shape[0]
    after = {
      "twins": twins,
      "pointer": (memory["pointer"] + size) % self.options.queue,
      "step": memory["step"] + 1,
      "key": key,
    }
    seen = {}
    for name, new in found.items():
      seen[name] = jnp.concatenate([new, memory[name]])
      after[name] = jax.lax.dynamic_update_slice_in_dim(
        memory[name], new, memory["pointer"], axis=0
      )
    ramp = max(self.options.ramp, 1)
    # Without a ramp the first step already has the whole weight.
    done = memory["step"] if self.options.ramp else memory["step"] + 1
    seen["distill"] = self.options.distill * jnp.minimum(done / ramp, 1.0)
    batch = {
      **batch,
      "image_target": found["image"],
      "text_target": found["text"],
      "key": jax.random.split(draw, size),
    }
    return after, batch, (seen,)


def contrast(
  output: Mapping[str, Array], batch: Mapping[str, Array], seen: Mapping
) -> Float[Array, ""]:
  """The image-text contrastive loss, the mean of both directions.

  The target is even over the entries of the pair's own concept, mixed with
  what the twins themselves find similar.

  Args:
    output: `image_embedding`, `text_embedding` [b, p] and `logit_scale`.
    batch: `concept` [b], `image_target` and `text_target` [b, p].
    seen: what `Momentum.recall` says the batch is compared with.
  """
  same = batch["concept"][:, None] == seen["concept"][None, :]
  hard = same / jnp.sum(same, axis=1, keepdims=True)
  weight, scale = seen["distill"], output["logit_scale"]

  def direction(query, other):
    logits = lambda x: scale * (x @ seen[other].T)  # noqa: E731
    soft = jax.nn.softmax(logits(batch[f"{query}_target"]), axis=1)
    target = jax.lax.stop_gradient(weight * soft + (1 - weight) * hard)
    found = jax.nn.log_softmax(logits(output[f"{query}_embedding"]), axis=1)
    return -jnp.mean(jnp.sum(target * found, axis=1))

  return 0.5 * (direction("image", "text") + direction("text", "image"))

"""What captioning and question answering share: texts, losses of words."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from comp_jax.data import pipelines

# Share of the target that is spread evenly over all words (spec 3.5, 3.6).
SMOOTHING = 0.1


def token_losses(
  logits: Float[Array, "*b n v"],
  ids: Int[Array, "*b n"],
  mask: Bool[Array, "*b n"],
  smoothing: float = SMOOTHING,
) -> tuple[Float[Array, "*b m"], Bool[Array, "*b m"]]:
  """The smoothed cross entropy of every token but the first; which are real.

  Args:
    logits: of the token after each one.
    ids: token ids.
    mask: False on padding.
    smoothing: share of the target that all words have evenly.
  """
  log_p = jax.nn.log_softmax(logits[..., :-1, :], axis=-1)
  chosen = jnp.take_along_axis(log_p, ids[..., 1:, None], axis=-1)[..., 0]
  even = jnp.mean(log_p, axis=-1)
  real = mask[..., 1:]
  losses = -(1.0 - smoothing) * chosen - smoothing * even
  return jnp.where(real, losses, 0.0), real


def written(
  predict: Callable[[Mapping], tuple[Int[Array, "b n"], Float[Array, " b"]]],
  batches: pipelines.EvalBatches,
) -> Iterator[str]:
  """The text of every example of a split, batch by batch.

  Args:
    predict: evaluation batch -> token ids, whose special tokens are left out,
      and their scores.
    batches: evaluation batches; rows whose `_mask` is False are padding.
  """
  for ids in predicted(predict, batches):
    yield batches.tokenizer.decode(ids)


def predicted(
  predict: Callable[[Mapping], tuple[Any, Array]],
  batches: pipelines.EvalBatches,
) -> Iterator[Any]:
  """What is chosen for every example of a split, batch by batch.

  The scores that come with the ids are for the evaluator, which checks them for
  NaN: ids are finite whatever the logits were.
  """
  for batch in batches:
    chosen, _ = predict(batch)
    yield from np.asarray(chosen)[np.asarray(batch["_mask"])]

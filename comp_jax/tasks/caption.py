"""Captioning: what is in the picture, in one sentence (spec `upop.md` 3.5)."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from comp_jax.tasks import writing

# Every text begins with these words; [DEC] and they are not predicted.
PROMPT = "a picture of "
PROMPT_TOKENS = 4


def loss(
  output: Mapping[str, Array], batch: Mapping[str, Array]
) -> Float[Array, ""]:
  """The mean smoothed cross entropy of the words after the prompt.

  Args:
    output: `logits` [b, n, v].
    batch: `text_ids` and `text_mask` [b, n].
  """
  losses, real = writing.token_losses(
    output["logits"], batch["text_ids"], batch["text_mask"]
  )
  # The losses begin with the second token.
  position = jnp.arange(1, 1 + real.shape[1])[None]
  real = real & (position >= PROMPT_TOKENS)
  return jnp.sum(jnp.where(real, losses, 0.0)) / jnp.maximum(jnp.sum(real), 1)

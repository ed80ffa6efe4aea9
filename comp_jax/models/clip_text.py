"""CLIP's text encoder: causal, read out at the end of the text."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comp_jax.core import execution as execution_lib
from comp_jax.core import tokens as tokens_lib
from comp_jax.models import encoder as encoder_lib
from comp_jax.models import specs


class ClipText(nn.Module):
  """Token ids to one embedding per text.

  The readout is the last valid token, which CLIP's tokenizers make the end of
  text. What stands behind it is padding, which no token of a causal encoder
  sees.
  """

  spec: specs.ClipTextSpec

  @nn.compact
  def __call__(
    self,
    text_ids: Int[Array, "b n"],
    text_mask: Bool[Array, "b n"],
    execution: execution_lib.TowerExecution = execution_lib.DENSE_TOWER,
  ) -> tuple[Float[Array, "b d"], dict]:
    """The normalised end-of-text token, and the encoder's aux.

    Args:
      text_ids: start of text, words, end of text, and padding.
      text_mask: False on padding.
      execution: units, tokens and what is gathered.

    Raises:
      ValueError: more tokens than positions.
    """
    spec, encoder = self.spec, self.spec.encoder
    n = text_ids.shape[1]
    if n > spec.max_length:
      raise ValueError(f"{n} tokens, the model has {spec.max_length} positions")
    words = self.param(
      "word_embedding",
      nn.initializers.normal(0.02),
      (spec.vocab_size, encoder.width),
    )
    positions = self.param(
      "position_embedding",
      nn.initializers.normal(0.01),
      (spec.max_length, encoder.width),
    )
    x = (words[text_ids] + positions[None, :n]).astype(encoder.dtype)
    last = jnp.sum(text_mask, axis=1, keepdims=True) - 1
    is_end = jnp.arange(n)[None] == last
    state = tokens_lib.TokenState(
      x=x, valid=text_mask, protected=is_end, readout=is_end
    )
    state, aux = encoder_lib.Encoder(encoder, name="encoder")(state, execution)
    norm = nn.LayerNorm(epsilon=encoder.norm_eps, dtype="float32", name="norm")
    x = norm(state.x.astype(jnp.float32))
    chosen = state.readout.astype(jnp.float32)
    return jnp.einsum("bn,bnd->bd", chosen, x), aux

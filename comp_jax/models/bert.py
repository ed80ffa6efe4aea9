"""BERT text encoder."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comp_jax.core import importance
from comp_jax.core import tokens as tokens_lib
from comp_jax.models import blocks, specs
from comp_jax.models import encoder as encoder_lib


class Bert(nn.Module):
  """Token ids to one embedding per text.

  The table of token types is not a parameter: its row 0 is part of the
  position table (a loader adds it there, which changes nothing).
  """

  spec: specs.BertSpec

  @nn.compact
  def __call__(
    self,
    text_ids: Int[Array, "b n"],
    text_mask: Bool[Array, "b n"],
    masks: Mapping | None = None,
    probes: Mapping | None = None,
    policy: tokens_lib.TokenPolicy | None = None,
    estimator: importance.Estimator | None = None,
    sources: tuple[blocks.Source, ...] = (),
  ) -> tuple[Float[Array, "b d"], dict]:
    """The readout, and the encoder's aux.

    Args:
      text_ids: [CLS] ... [SEP] and padding.
      text_mask: False on padding.
      masks: see `encoder.Encoder`, as are the others.
      sources: image tokens for each cross-attention; none skips them.

    Raises:
      ValueError: more tokens than positions.
    """
    spec, encoder = self.spec, self.spec.encoder
    b, n = text_ids.shape
    if n > spec.max_length:
      raise ValueError(f"{n} tokens, the model has {spec.max_length} positions")
    if sources and spec.enc_id is not None:
      text_ids = text_ids.at[:, 0].set(spec.enc_id)
    words = self.param(
      "word_embedding",
      nn.initializers.normal(0.02),
      (spec.vocab_size, encoder.width),
    )
    positions = self.param(
      "position_embedding",
      nn.initializers.normal(0.02),
      (spec.max_length, encoder.width),
    )
    x = words[text_ids] + positions[None, :n]
    norm = nn.LayerNorm(
      epsilon=encoder.norm_eps, dtype="float32", name="embedding_norm"
    )
    x = norm(x).astype(encoder.dtype)
    is_cls = jnp.arange(n)[None] == jnp.zeros((b, 1), jnp.int32)
    by_cls = spec.readout == "cls"
    state = tokens_lib.TokenState(
      x=x,
      valid=text_mask,
      protected=is_cls | (text_ids == spec.sep_id),
      readout=is_cls if by_cls else jnp.zeros_like(is_cls),
    )
    state, aux = encoder_lib.Encoder(encoder, name="encoder")(
      state, masks, probes, policy, estimator, sources
    )
    x = state.x.astype(jnp.float32)
    if by_cls:
      return x[:, 0], aux
    weights = state.valid.astype(jnp.float32)
    total = jnp.sum(weights, axis=1, keepdims=True)
    mean = jnp.einsum("bn,bnd->bd", weights, x) / jnp.maximum(total, 1.0)
    return mean, aux

"""BERT: text encoder, and decoder that writes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from comp_jax.core import execution as execution_lib
from comp_jax.core import tokens as tokens_lib
from comp_jax.models import blocks, specs
from comp_jax.models import encoder as encoder_lib


class _TextTower(nn.Module):
  """What reads token ids.

  The table of token types is not a parameter: its row 0 is part of the
  position table (a loader adds it there, which changes nothing).
  """

  spec: specs.BertSpec | specs.DecoderSpec

  def _embedded(
    self, text_ids: Int[Array, "b n"], first: int | Int[Array, ""] = 0
  ) -> tuple[Float[Array, "b n d"], Float[Array | np.ndarray, "v d"]]:
    """The normalised embeddings, and the word table.

    Args:
      text_ids: token ids.
      first: position of the first of them.

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
      nn.initializers.normal(0.02),
      (spec.max_length, encoder.width),
    )
    positions = jax.lax.dynamic_slice_in_dim(positions, first, n)
    norm = nn.LayerNorm(
      epsilon=encoder.norm_eps, dtype="float32", name="embedding_norm"
    )
    x = norm(words[text_ids] + positions[None]).astype(encoder.dtype)
    return x, words


class Bert(_TextTower):
  """Token ids to one embedding per text, or to all of its tokens."""

  @nn.compact
  def __call__(
    self,
    text_ids: Int[Array, "b n"],
    text_mask: Bool[Array, "b n"],
    execution: execution_lib.TowerExecution = execution_lib.DENSE_TOWER,
    sources: tuple[blocks.Source, ...] = (),
  ) -> tuple[Float[Array, "b d"] | tokens_lib.TokenState, dict]:
    """What is read out, and the encoder's aux.

    Args:
      text_ids: [CLS] ... [SEP] and padding.
      text_mask: False on padding.
      execution: units, tokens and what is gathered.
      sources: image tokens for each cross-attention; none skips them.

    Raises:
      ValueError: more tokens than positions.
    """
    spec = self.spec
    b, n = text_ids.shape
    if sources and spec.enc_id is not None:
      text_ids = text_ids.at[:, 0].set(spec.enc_id)
    x, _ = self._embedded(text_ids)
    is_cls = jnp.arange(n)[None] == jnp.zeros((b, 1), jnp.int32)
    pooled = spec.readout == "mean"
    state = tokens_lib.TokenState(
      x=x,
      valid=text_mask,
      protected=is_cls | (text_ids == spec.sep_id),
      readout=jnp.zeros_like(is_cls) if pooled else is_cls,
    )
    state, aux = encoder_lib.Encoder(spec.encoder, name="encoder")(
      state, execution, sources
    )
    if spec.readout == "tokens":
      return state, aux
    x = state.x.astype(jnp.float32)
    if spec.readout == "cls":
      return x[:, 0], aux
    weights = state.valid.astype(jnp.float32)
    total = jnp.sum(weights, axis=1, keepdims=True)
    mean = jnp.einsum("bn,bnd->bd", weights, x) / jnp.maximum(total, 1.0)
    return mean, aux


class Decoder(_TextTower):
  """Token ids to the logits of the token that follows each of them.

  No token is ever dropped, and all valid ones weigh alike in CIP: each is
  read out.
  """

  @nn.compact
  def __call__(
    self,
    text_ids: Int[Array, "b n"],
    text_mask: Bool[Array, "b n"],
    source: blocks.Source,
    execution: execution_lib.TowerExecution = execution_lib.DENSE_TOWER,
    first: int | Int[Array, ""] = 0,
  ) -> tuple[Float[Array, "b n v"], dict]:
    """The logits, and the encoder's aux.

    Args:
      text_ids: a text; its first token is taken for `bos_id`.
      text_mask: False on padding.
      source: tokens for cross-attention.
      execution: units and what is gathered.
      first: position of the first token, above 0 where a text is written token
        by token (see `blocks.Attention`).

    Raises:
      ValueError: more tokens than positions.
    """
    spec, encoder = self.spec, self.spec.encoder
    n, d = text_ids.shape[1], encoder.width
    if spec.bos_id is not None:
      is_bos = (first + jnp.arange(n) == 0)[None]
      text_ids = jnp.where(is_bos, spec.bos_id, text_ids)
    x, words = self._embedded(text_ids, first)
    every = jnp.ones_like(text_mask)
    state = tokens_lib.TokenState(
      x=x, valid=text_mask, protected=every, readout=every
    )
    state, aux = encoder_lib.Encoder(encoder, name="encoder")(
      state, dataclasses.replace(execution, policy=None), (source,)
    )
    x = blocks.Projection((d,), (d,), encoder.dtype, name="transform")(state.x)
    norm = nn.LayerNorm(
      epsilon=encoder.norm_eps, dtype="float32", name="transform_norm"
    )
    activate = blocks.ACTIVATIONS[encoder.activation]
    x = norm(activate(x)).astype(encoder.dtype)
    bias = self.param("output_bias", nn.initializers.zeros, (spec.vocab_size,))
    logits = jnp.einsum(
      "bnd,vd->bnv",
      x,
      words.astype(encoder.dtype),
      preferred_element_type=jnp.float32,
    )
    return logits + bias[None, None], aux

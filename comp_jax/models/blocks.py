"""Blocks of a layer: projections, attention and MLP, with masks and taps."""

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from comp_jax.core import importance
from comp_jax.core import tokens as tokens_lib
from comp_jax.models import specs


class Projection(nn.Module):
  """A dense map between the residual and the units.

  Attributes:
    inputs: shape of the contracted axes.
    outputs: shape of the new axes.
    dtype: compute dtype.
    use_bias: whether there is a bias.
  """

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  dtype: str
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    initial = nn.initializers.variance_scaling(
      1.0,
      "fan_in",
      "truncated_normal",
      in_axis=tuple(range(len(self.inputs))),
      out_axis=tuple(
        range(len(self.inputs), len(self.inputs) + len(self.outputs))
      ),
    )
    if 0 in self.inputs + self.outputs:
      # A layer may lose a whole block, which then has no fan.
      initial = nn.initializers.zeros
    kernel = self.param("kernel", initial, self.inputs + self.outputs)
    # One plain matrix product: XLA's CPU backend runs the gradients of a
    # dot_general with several free axes at half the speed.
    lead = x.shape[: x.ndim - len(self.inputs)]
    rows, columns = math.prod(self.inputs), math.prod(self.outputs)
    y = jnp.dot(
      x.astype(self.dtype).reshape(math.prod(lead), rows),
      kernel.astype(self.dtype).reshape(rows, columns),
    )
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, self.outputs)
      y = y + bias.astype(self.dtype).reshape(1, columns)
    return y.reshape(lead + self.outputs)


# JAX rebuilds a pytree around anything (shapes, shardings, None).
@typing.no_type_check
@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["x", "valid", "weights"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """Tokens of another tower that cross-attention reads.

  Attributes:
    x: their final states.
    valid: neither padding nor dropped.
    weights: CIP's weights of them, for the scores of keys and values.
  """

  x: Float[Array, "b k c"]
  valid: Bool[Array, "b k"]
  weights: Float[Array, "b k"]


class Attention(nn.Module):
  """Multi-head attention over masked heads or channels.

  Returns the residual update's input `out(A v)`, the token scores (None for
  cross-attention), the hidden units that the output matrix reads and the keys
  of what entered.

  A decoder that writes one token at a time keeps keys and values: those of
  its own tokens in the collection `cache`, those of its source, which stay as
  they are, in `seen`. A pass in which the collections are mutable fills them;
  one that is given them reads them, and `y` is the next token.
  """

  spec: specs.EncoderSpec
  layer: specs.LayerSpec | specs.AttentionSpec
  estimator: importance.Estimator | None

  @nn.compact
  def __call__(
    self,
    y: Float[Array, "b n d"],
    state: tokens_lib.TokenState,
    mask: Float[Array, " u"] | None,
    probe: Float[Array, " u"] | None,
    policy: tokens_lib.TokenPolicy,
    source: Source | None = None,
    weights: Float[Array, "b n"] | None = None,
  ):
    """The update, the scores, the hidden units and the keys.

    Args:
      y: what queries read, and keys and values without a source.
      state: tokens that enter.
      mask: of the units.
      probe: zeros whose cotangents become scores, or None.
      policy: the token policy.
      source: what keys and values of cross-attention read.
      weights: CIP's weights of the queries; self-attention makes its own.
    """
    spec, layer = self.spec, self.layer
    units = (layer.heads, layer.head_width)
    by_head = spec.granularity == "head"
    writes = self.has_variable("cache" if source is None else "seen", "key")
    inputs = {"query": y, "key": y, "value": y}
    if source is not None:
      inputs |= {"key": source.x, "value": source.x}
    if source is not None and writes:
      inputs = {"query": y}  # The others are kept.
    project = {
      name: Projection((x.shape[-1],), units, spec.dtype, name=name)(x)
      for name, x in inputs.items()
    }

    def spread(unit_values):
      return unit_values[:, None] if by_head else unit_values[None]

    def masked(z):
      if mask is None:
        return z
      return z * spread(mask)[None, None].astype(z.dtype)

    def attend(query, key):
      logits = jnp.einsum(
        "bqhe,bkhe->bhqk", query, key, preferred_element_type=jnp.float32
      )
      logits = logits * spec.scale_width**-0.5
      if source is None and state.size is not None:
        # A token that holds several is seen as often.
        logits = logits + jnp.log(state.size)[:, None, None]
      valid = readable[:, None, None]
      if spec.causal and source is None and not writes:
        # Dropping keeps the order, so positions in the row still tell it.
        valid = valid & jnp.tril(jnp.ones(logits.shape[-2:], bool))[None, None]
      return jax.nn.softmax(jnp.where(valid, logits, -1e30), axis=-1)

    # Kept as masked: a mask must not act twice on a cached key.
    untapped = {name: masked(z) for name, z in project.items()}
    fresh = untapped.get("key")
    if source is None:
      kept, readable = self._cached(untapped, state.valid)
    else:
      kept, readable = self._seen(untapped), source.valid
    untapped |= kept
    attention = attend(untapped["query"], untapped["key"])
    value, scores = untapped["value"], None
    if source is None and writes:
      # A decoder's tokens are never dropped: nobody asks.
      scores = jnp.zeros(state.valid.shape, jnp.float32)
    elif source is None:
      gate = tokens_lib.votes(policy, mask) if by_head else None
      scores = jax.lax.stop_gradient(
        tokens_lib.rule_scores(
          policy, attention, untapped, state, gate, spec.causal
        )
      )
    if probe is not None:
      # The weights need the scores, the taps need the weights: attention is
      # taken once untapped. XLA shares the two equal forward computations.
      if source is None:
        weights = cip_weights(scores, state, self.estimator)
      keyed = weights if source is None else source.weights
      tapped = {
        name: importance.tap(
          self.estimator.reduce,
          z,
          spread(mask),
          spread(probe),
          weights if name == "query" else keyed,
        )
        for name, z in project.items()
      }
      attention = attend(tapped["query"], tapped["key"])
      value = tapped["value"]
    hidden = jnp.einsum("bhqk,bkhe->bqhe", attention.astype(value.dtype), value)
    out = Projection(units, (spec.width,), spec.dtype, name="out")(hidden)
    return out, scores, hidden, fresh

  def _cached(self, projected: Mapping, valid: Bool[Array, "b n"]):
    """Own keys and values, those of earlier tokens too, and their validity."""
    kept = {name: projected[name] for name in ("key", "value")}
    if self.has_variable("cache", "key"):
      before = self.get_variable("cache", "valid")
      # All rows have written equally many tokens.
      slot = jnp.sum(before[0])
      for name, z in kept.items():
        cached = self.get_variable("cache", name)
        kept[name] = jax.lax.dynamic_update_slice_in_dim(cached, z, slot, 1)
      valid = before | (jnp.arange(before.shape[1])[None] == slot[None, None])
    self._keep("cache", {**kept, "valid": valid})
    return kept, valid

  def _seen(self, projected: Mapping):
    """Keys and values of the source."""
    names = ("key", "value")
    if self.has_variable("seen", "key"):
      return {name: self.get_variable("seen", name) for name in names}
    kept = {name: projected[name] for name in names}
    self._keep("seen", kept)
    return kept

  def _keep(self, collection: str, values: Mapping) -> None:
    if self.is_mutable_collection(collection) and not self.is_initializing():
      for name, value in values.items():
        self.put_variable(collection, name, value)


def cip_weights(
  scores: Float[Array, "b n"],
  state: tokens_lib.TokenState,
  estimator: importance.Estimator,
) -> Float[Array, "b n"]:
  """CIP's weights of the tokens of a state (Eq. 4)."""
  return importance.token_weights(
    scores,
    state.valid,
    state.pool,
    state.readout & state.valid,
    estimator.cip,
  )


def _quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
  return x * jax.nn.sigmoid(1.702 * x)


# A hidden value of 0 stays 0 under each of them: masks rely on it.
ACTIVATIONS = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "quick_gelu": _quick_gelu,
}


class Mlp(nn.Module):
  """The MLP, masked before its GELU; returns output and activations."""

  spec: specs.EncoderSpec
  layer: specs.LayerSpec
  estimator: importance.Estimator | None

  @nn.compact
  def __call__(
    self,
    y: Float[Array, "b n d"],
    mask: Float[Array, " m"] | None,
    probe: Float[Array, " m"] | None,
    weights: Float[Array, "b n"] | None,
  ):
    width, neurons = (self.spec.width,), (self.layer.mlp,)
    z = Projection(width, neurons, self.spec.dtype, name="up")(y)
    if probe is not None:
      z = importance.tap(self.estimator.reduce, z, mask, probe, weights)
    elif mask is not None:
      z = z * mask[None, None].astype(z.dtype)
    hidden = ACTIVATIONS[self.spec.activation](z)
    out = Projection(neurons, width, self.spec.dtype, name="down")(hidden)
    return out, hidden

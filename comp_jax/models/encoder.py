"""Self-attention layers that prune: masks, taps and the token rule inside.

The same layer serves a dense, a masked and a compact model; ViT and BERT
differ in where the LayerNorms stand.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

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


class Attention(nn.Module):
  """Multi-head self-attention over masked heads or channels.

  Returns the residual update's input `out(A v)`, the token scores and the
  hidden units that the output matrix reads.
  """

  spec: specs.EncoderSpec
  layer: specs.LayerSpec
  estimator: importance.Estimator | None

  @nn.compact
  def __call__(
    self,
    y: Float[Array, "b n d"],
    state: tokens_lib.TokenState,
    mask: Float[Array, " u"] | None,
    probe: Float[Array, " u"] | None,
    policy: tokens_lib.TokenPolicy,
  ):
    spec, layer = self.spec, self.layer
    units = (layer.heads, layer.head_width)
    width = (spec.width,)
    by_head = spec.granularity == "head"
    project = {
      name: Projection(width, units, spec.dtype, name=name)(y)
      for name in ("query", "key", "value")
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
      valid = state.valid[:, None, None]
      if spec.causal:
        # Dropping keeps the order, so positions in the row still tell it.
        valid = valid & jnp.tril(jnp.ones(logits.shape[-2:], bool))[None, None]
      return jax.nn.softmax(jnp.where(valid, logits, -1e30), axis=-1)

    untapped = {name: masked(z) for name, z in project.items()}
    attention = attend(untapped["query"], untapped["key"])
    gate = mask if policy.gate and by_head else None
    scores = jax.lax.stop_gradient(
      tokens_lib.token_scores(attention, state.pool, gate, spec.causal)
    )
    if probe is not None:
      # The weights need the scores, the taps need the weights: attention is
      # taken once untapped. XLA shares the two equal forward computations.
      weights = importance.token_weights(
        scores,
        state.valid,
        state.pool,
        state.readout & state.valid,
        self.estimator.cip,
      )
      tapped = {
        name: importance.tap(
          self.estimator.reduce, z, spread(mask), spread(probe), weights
        )
        for name, z in project.items()
      }
      attention = attend(tapped["query"], tapped["key"])
      value = tapped["value"]
    else:
      value = untapped["value"]
    hidden = jnp.einsum(
      "bhqk,bkhe->bqhe", attention.astype(value.dtype), value
    )
    out = Projection(units, width, spec.dtype, name="out")(hidden)
    return out, scores, hidden


def _quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
  return x * jax.nn.sigmoid(1.702 * x)


# A hidden value of 0 stays 0 under each of them: masks rely on it.
_ACTIVATIONS = {
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
    hidden = _ACTIVATIONS[self.spec.activation](z)
    out = Projection(neurons, width, self.spec.dtype, name="down")(hidden)
    return out, hidden


class EncoderLayer(nn.Module):
  """Attention, the token rule, the MLP.

  Attributes:
    spec: the encoder.
    layer: this layer's widths.
    estimator: what to gather for the parameter scores, or None.
    index: position in the stack; only unrolled stacks know it.
  """

  spec: specs.EncoderSpec
  layer: specs.LayerSpec
  estimator: importance.Estimator | None = None
  index: int | None = None

  def _norm(self, name: str, x: Float[Array, "b n d"]):
    norm = nn.LayerNorm(epsilon=self.spec.norm_eps, dtype="float32", name=name)
    return norm(x).astype(self.spec.dtype)

  def _residual(self, x, update, name: str):
    if self.spec.layer_scale:
      scale = self.param(name, nn.initializers.ones, (self.spec.width,))
      update = update * scale[None, None].astype(update.dtype)
    return x + update

  @nn.compact
  def __call__(self, carry, masks, probes, policy):
    """The carry of the next layer and this layer's statistics.

    Args:
      carry: (TokenState, squared MLP activations of the layer before | None).
      masks: {"attn": [u], "mlp": [m]} or None.
      probes: zeros like the masks whose cotangents become scores, or None.
      policy: the token policy.
    """
    state, pending = carry
    masks, probes = masks or {}, probes or {}
    wanda = self.estimator is not None and self.estimator.kind == "wanda"
    before = state
    first, spec = self.spec.norm_first, self.spec

    y = self._norm("norm1", state.x) if first else state.x
    update, scores, attended = Attention(
      spec, self.layer, self.estimator, name="attention"
    )(y, state, masks.get("attn"), probes.get("attn"), policy)
    x = self._residual(state.x, update, "layer_scale1")
    if not first:
      x = self._norm("norm1", x)
    state = tokens_lib.drop(
      _replace_x(state, x), scores, policy, self.index
    )

    weights = None
    if probes:
      # Taylor weighs the MLP by its own layer's scores: the next layer's do
      # not exist yet when the tap must know its weights.
      weights = self._weights(_survivors(scores, before, state, policy), state)
    y = self._norm("norm2", state.x) if first else state.x
    update, hidden = Mlp(spec, self.layer, self.estimator, name="mlp")(
      y, masks.get("mlp"), probes.get("mlp"), weights
    )
    x = self._residual(state.x, update, "layer_scale2")
    if not first:
      x = self._norm("norm2", x)
    state = _replace_x(state, x)

    statistics = {
      "scores": scores,
      "valid": state.valid,
      "count": jnp.sum(state.valid, axis=-1).astype(jnp.int32),
    }
    if wanda:
      # The MLP of layer l is weighed by the scores of layer l+1 (Eq. 4): its
      # squares wait one step in the carry. The last layer uses its own.
      weights = self._weights(scores, before)
      statistics["attn_moment"] = importance.weighted_moment(attended, weights)
      statistics["mlp_moment_before"] = jnp.einsum(
        "bnm,bn->m", pending, weights
      ) / pending.shape[0]
      pending = jnp.square(jax.lax.stop_gradient(hidden).astype(jnp.float32))
      own = self._weights(_survivors(scores, before, state, policy), state)
      statistics["mlp_moment_own"] = (
        jnp.einsum("bnm,bn->m", pending, own) / pending.shape[0]
      )
    return (state, pending), statistics

  def _weights(self, scores, state):
    return importance.token_weights(
      scores,
      state.valid,
      state.pool,
      state.readout & state.valid,
      self.estimator.cip,
    )


def _replace_x(state, x):
  return tokens_lib.TokenState(
    x=x,
    valid=state.valid,
    protected=state.protected,
    readout=state.readout,
  )


def _survivors(scores, before, after, policy):
  """Scores of the tokens that are left after the drop."""
  if scores.shape == after.valid.shape:
    return scores
  # Statistics are gathered on the searched model, which never gathers tokens.
  raise ValueError("importance statistics need `mask` token execution")


class Encoder(nn.Module):
  """The stack of layers, scanned or unrolled."""

  spec: specs.EncoderSpec

  @nn.compact
  def __call__(
    self,
    state: tokens_lib.TokenState,
    masks: Mapping | None = None,
    probes: Mapping | None = None,
    policy: tokens_lib.TokenPolicy | None = None,
    estimator: importance.Estimator | None = None,
  ) -> tuple[tokens_lib.TokenState, dict[str, Any]]:
    """The tokens after the last layer, and per-layer statistics.

    Args:
      state: tokens at the input, position embeddings included.
      masks: {"attn": [l, u], "mlp": [l, m]}.
      probes: zeros like `masks`; with them the pass is tapped (taylor).
      policy: token policy; None drops nothing.
      estimator: what to gather.

    Returns:
      The state, and aux: `scores` [l, b, n], `valid` [l+1, b, n] and `counts`
      [b, l+1]; with the wanda estimator `moments` {attn [l, h, e], mlp
      [l, m]}. Under static counts, whose widths differ, `scores` and `valid`
      are tuples.

    Raises:
      ValueError: static counts under scan, or counts of another depth.
    """
    spec = self.spec
    policy = tokens_lib.TokenPolicy() if policy is None else policy
    if policy.keep is not None and len(policy.keep) != spec.depth:
      raise ValueError(
        f"{len(policy.keep)} static counts for {spec.depth} layers"
      )
    valid = state.valid
    pending = None
    if estimator is not None and estimator.kind == "wanda":
      neurons = spec.layers[0].mlp
      pending = jnp.zeros((*valid.shape, neurons), jnp.float32)
    make = EncoderLayer
    if spec.remat:
      make = nn.remat(EncoderLayer, prevent_cse=not spec.scan)
    carry = (state, pending)
    if spec.scan:
      if policy.keep is not None:
        raise ValueError("static token counts need unrolled layers")
      stack = nn.scan(
        make,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, 0, nn.broadcast),
        length=spec.depth,
        unroll=spec.unroll,
      )(spec, spec.uniform, estimator, name="layers")
      (state, _), statistics = stack(carry, masks, probes, policy)
    else:
      rows = []
      for index, layer in enumerate(spec.layers):
        pick = functools.partial(jax.tree.map, lambda x, i=index: x[i])
        carry, row = make(
          spec, layer, estimator, index, name=f"layers_{index}"
        )(
          carry,
          None if masks is None else pick(masks),
          None if probes is None else pick(probes),
          policy,
        )
        rows.append(row)
      state, _ = carry
      statistics = _stack(rows)
    return state, _aux(valid, statistics)


def _stack(rows: list[dict[str, Array]]) -> dict[str, Any]:
  """Statistics of unrolled layers, stacked where their shapes agree."""
  stacked = {}
  for key in rows[0]:
    values = tuple(row[key] for row in rows)
    equal = len({value.shape for value in values}) == 1
    stacked[key] = jnp.stack(values) if equal else values
  return stacked


def _aux(
  valid: Bool[Array, "b n"], statistics: dict[str, Any]
) -> dict[str, Any]:
  at_input = jnp.sum(valid, axis=-1).astype(jnp.int32)
  counts = jnp.concatenate([at_input[None], statistics["count"]])
  aux = {"scores": statistics["scores"], "counts": counts.T}
  if isinstance(statistics["valid"], tuple):
    aux["valid"] = (valid, *statistics["valid"])
  elif statistics["valid"].shape[1:] == valid.shape:
    aux["valid"] = jnp.concatenate([valid[None], statistics["valid"]])
  else:
    aux["valid"] = (valid, *statistics["valid"])
  if "attn_moment" in statistics:
    shifted = statistics["mlp_moment_before"][1:]
    aux["moments"] = {
      "attn": statistics["attn_moment"],
      "mlp": jnp.concatenate([shifted, statistics["mlp_moment_own"][-1:]]),
    }
  return aux

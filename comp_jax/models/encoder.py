"""Self-attention layers that prune: masks, taps and the token rule inside.

The same layer serves a dense, a masked and a compact model; ViT and BERT
differ in where the LayerNorms stand.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from comp_jax.core import execution as execution_lib
from comp_jax.core import importance
from comp_jax.core import tokens as tokens_lib
from comp_jax.models import blocks, specs


class EncoderLayer(nn.Module):
  """Attention, the token rule, cross-attention where there is any, the MLP.

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
  def __call__(self, carry, masks, probes, policy, sources, merge):
    """The carry of the next layer and this layer's statistics.

    Args:
      carry: (TokenState, squared MLP activations of the layer before | None).
      masks: {"attn": [u], "mlp": [m]} or None.
      probes: zeros like the masks whose cotangents become scores, or None.
      policy: the token policy.
      sources: tokens for each cross-attention; none skips them.
      merge: kernel [2 d, d] and bias [d] that join two of them, or None.
    """
    state, pending = carry
    masks, probes = masks or {}, probes or {}
    wanda = self.estimator is not None and self.estimator.kind == "wanda"
    before = state
    first, spec = self.spec.norm_first, self.spec

    y = self._norm("norm1", state.x) if first else state.x
    update, scores, attended, key = blocks.Attention(
      spec, self.layer, self.estimator, name="attention"
    )(y, state, masks.get("attn"), probes.get("attn"), policy)
    x = self._residual(state.x, update, "layer_scale1")
    if not first:
      x = self._norm("norm1", x)
    state = tokens_lib.drop(
      dataclasses.replace(state, x=x),
      scores,
      policy,
      self.index,
      state.x,
      jax.lax.stop_gradient(key),
    )

    weights = None
    if probes:
      # Taylor weighs the MLP by its own layer's scores: the next layer's do
      # not exist yet when the tap must know its weights.
      weights = blocks.cip_weights(
        _survivors(scores, state), state, self.estimator
      )
    crossed = {}
    if sources:
      updates = []
      for name, widths, source in zip(
        self.layer.cross_names, self.layer.cross, sources, strict=True
      ):
        update, _, crossed[name], _ = blocks.Attention(
          spec, widths, self.estimator, name=name
        )(
          state.x,
          state,
          masks.get(name),
          probes.get(name),
          policy,
          source,
          weights,
        )
        updates.append(update)
      x = state.x + _joined(updates, merge)
      state = dataclasses.replace(state, x=self._norm("norm_cross", x))
    y = self._norm("norm2", state.x) if first else state.x
    update, hidden = blocks.Mlp(spec, self.layer, self.estimator, name="mlp")(
      y, masks.get("mlp"), probes.get("mlp"), weights
    )
    x = self._residual(state.x, update, "layer_scale2")
    if not first:
      x = self._norm("norm2", x)
    state = dataclasses.replace(state, x=x)

    statistics = {
      "scores": scores,
      "valid": state.valid,
      "count": jnp.sum(state.valid, axis=-1).astype(jnp.int32),
    }
    if wanda:
      # The MLP of layer l is weighed by the scores of layer l+1 (Eq. 4): its
      # squares wait one step in the carry.
      weights = blocks.cip_weights(scores, before, self.estimator)
      statistics["attn_moment"] = importance.weighted_moment(attended, weights)
      statistics["mlp_moment_before"] = (
        jnp.einsum("bnm,bn->m", pending, weights) / pending.shape[0]
      )
      pending = jnp.square(jax.lax.stop_gradient(hidden).astype(jnp.float32))
      statistics["cross_moments"] = {}
      if crossed:
        own = blocks.cip_weights(
          _survivors(scores, state), state, self.estimator
        )
        # Eq. 3's X are the rows of the output matrix, one per text token.
        statistics["cross_moments"] = {
          name: importance.weighted_moment(hidden, own)
          for name, hidden in crossed.items()
        }
    return (state, pending), statistics


def _joined(updates, merge):
  """One update of the residual from those of the cross-attentions."""
  if merge is None:
    return sum(updates) / len(updates)
  x = jnp.concatenate(updates, axis=-1)
  kernel, bias = (leaf.astype(x.dtype) for leaf in merge)
  return jnp.einsum("bnd,dc->bnc", x, kernel) + bias[None, None]


def _survivors(scores, after):
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
    execution: execution_lib.TowerExecution = execution_lib.DENSE_TOWER,
    sources: tuple[blocks.Source, ...] = (),
  ) -> tuple[tokens_lib.TokenState, dict[str, Any]]:
    """The tokens after the last layer, and per-layer statistics.

    Args:
      state: tokens at the input, position embeddings included.
      execution: masks {"attn": [l, u], "mlp": [l, m]} and one for each of the
        layer's `cross_names`, the token policy, what to gather.
      sources: tokens for each cross-attention; none skips them.

    Returns:
      The state, and aux: `scores` [l, b, n], `valid` [l+1, b, n] and `counts`
      [b, l+1]; with the wanda estimator `moments` {attn [l, h, e], mlp
      [l, m], and cross_names [l, h, e]}. Under static counts, whose widths
      differ, `scores` and `valid` are tuples.

    Raises:
      ValueError: static counts under scan, or counts of another depth.
    """
    spec = self.spec
    if sources and (spec.norm_first or not spec.source_width):
      raise ValueError("cross-attention needs a post-norm encoder made for it")
    masks, probes = execution.masks, execution.probes
    estimator = execution.estimator
    policy = execution.policy or tokens_lib.TokenPolicy()
    if policy.keep is not None and len(policy.keep) != spec.depth:
      raise ValueError(
        f"{len(policy.keep)} static counts for {spec.depth} layers"
      )
    state, policy = tokens_lib.sized(state, policy), policy.by_layer(spec.depth)
    varies = jnp.ndim(policy.theta) > 0
    valid = state.valid
    pending = None
    if estimator is not None and estimator.kind == "wanda":
      neurons = spec.layers[0].mlp
      pending = jnp.zeros((*valid.shape, neurons), jnp.float32)
    merges = self._merges() if sources else [None] * spec.depth
    make = EncoderLayer
    if spec.remat:
      make = nn.remat(EncoderLayer, prevent_cse=not spec.scan)
    carry = (state, pending)
    if spec.scan:
      if policy.keep is not None:
        raise ValueError("static token counts need unrolled layers")
      stack = nn.scan(
        make,
        variable_axes={"params": 0, "cache": 0, "seen": 0},
        split_rngs={"params": True},
        in_axes=(0, 0, 0 if varies else nn.broadcast, nn.broadcast, 0),
        length=spec.depth,
        unroll=spec.unroll,
        # The check of broadcast variables costs a second trace, and there are
        # none. `init` keeps it: without, a seed would draw other weights.
        check_constancy_invariants=self.is_initializing(),
      )(spec, spec.uniform, estimator, name="layers")
      (state, pending), statistics = stack(
        carry, masks, probes, policy, sources, _under_scan(merges)
      )
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
          pick(policy) if varies else policy,
          sources,
          merges[index],
        )
        rows.append(row)
      state, pending = carry
      statistics = _stack(rows)
    if pending is not None:
      # No layer follows the last one: its MLP is weighed by its own scores.
      own = blocks.cip_weights(
        _survivors(statistics["scores"][-1], state), state, estimator
      )
      statistics["mlp_moment_last"] = (
        jnp.einsum("bnm,bn->m", pending, own) / pending.shape[0]
      )
    return state, _aux(valid, statistics)

  def _merges(self) -> list:
    """Kernel and bias of every layer that has a merging map, else None."""
    spec, d = self.spec, self.spec.width
    if spec.merge_from is None:
      return [None] * spec.depth
    count = spec.depth - spec.merge_from
    # Outside the stacked layers: the lower ones have none.
    kernel = self.param(
      "merge_kernel",
      nn.initializers.normal((2 * d) ** -0.5),
      (count, 2 * d, d),
    )
    bias = self.param("merge_bias", nn.initializers.zeros, (count, d))
    upper = list(zip(kernel, bias, strict=True))
    return [None] * spec.merge_from + upper


def _under_scan(merges: list):
  """The merging maps stacked; a layer without one takes the mean by a map."""
  some = next((merge for merge in merges if merge is not None), None)
  if some is None:
    return None
  d = some[1].shape[0]
  half = 0.5 * jnp.eye(d, dtype=some[0].dtype)
  mean = jnp.concatenate([half, half]), jnp.zeros_like(some[1])
  filled = [mean if merge is None else merge for merge in merges]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *filled)


def _stack(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Statistics of unrolled layers, stacked where their shapes agree."""
  stacked = {}
  for key in rows[0]:
    values = tuple(row[key] for row in rows)
    if isinstance(values[0], dict):
      stacked[key] = _stack(values)
      continue
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
      "mlp": jnp.concatenate([shifted, statistics["mlp_moment_last"][None]]),
    }
    aux["moments"] |= statistics["cross_moments"]
  return aux

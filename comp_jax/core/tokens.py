"""Token importance and the token rule: Eq. 6, Eq. 7 and two executions.

One scorer serves every execution. `mask` keeps all N tokens and carries a
boolean validity; `static` gathers a fixed number of tokens per layer and is
the graph that is deployed. At equal counts both give the same outputs.

Token states of a layer:
  valid      the token is neither padding nor dropped earlier;
  protected  the token is never scored and never dropped (CLS, [SEP], ...);
  pool       valid and not protected: what the rule chooses from.
"""

import dataclasses
import functools
import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comp_jax.core import matching, token_rules

# Rules that remove a number of tokens from each layer, the most alike first.
_COUNTS = ("tome", "crossget")
RULES = ("mean", "madtp", "evit", *_COUNTS)
COMBINE = ("drop", "merge", "match")
# MADTP's lowest temperature.
_COLDEST = 1e-4


# JAX rebuilds a pytree around anything (shapes, shardings, None).
@typing.no_type_check
@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["theta"],
  meta_fields=["rule", "gate", "combine", "keep"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenPolicy:
  """How one encoder drops tokens; a pytree whose only array is `theta`.

  Attributes:
    theta: 0 drops nothing, a higher one more. `mean`: the threshold in
      multiples of the mean score; `madtp`: the temperature of its dictionary;
      `evit`: the best 1 / (1 + theta) of the pool stay; `tome`, `crossget`:
      so many tokens go in each layer, at most half of the pool.
    rule: how tokens are scored and which stay. `mean` scores by Eq. 6 or 7;
      `madtp` by three parts (spec `madtp.md` 1.2), its threshold comes from
      the dictionary; `evit` by the attention that the readout token pays;
      `tome` and `crossget` take the tokens that are most alike (`matching`).
    gate: CIT (Eq. 7): heads vote with their mask, so a pruned head fades out.
      Without it a head votes in full until it is gone.
    combine: `drop`; `merge` (one score-weighted token per layer takes the
      place of the dropped ones, MADTP); or `match` (each goes into the most
      similar one that stays, and attention weighs tokens by their size, ToMe).
    keep: `static` execution: tokens left after each layer, protected ones
      included. None is `mask` execution.
  """

  theta: Float[Array, ""] | float = 0.0
  rule: str = "mean"
  gate: bool = True
  combine: str = "drop"
  keep: tuple[int, ...] | None = None

  @property
  def halves(self) -> bool:
    """Whether a layer loses at most half of its pool."""
    return self.rule in _COUNTS

  @property
  def least(self) -> int:
    """The fewest tokens of a pool that a layer leaves.

    Merging keeps the best one, and one for all the others.
    """
    return 2 if self.combine == "merge" else 1

  def highest(self, tokens: Float[Array, ""]) -> Float[Array, ""]:
    """A theta above which no more tokens fall.

    Scores sum to 1, so none is above n times their mean; a count cannot
    exceed n. MADTP's temperature has no such bound: it divides inner products
    that grow with the norm of the tokens.
    """
    return tokens * (1e3 if self.rule == "madtp" else 1.0)

  def at(
    self, place: Float[Array, ""], tokens: Float[Array, ""]
  ) -> Float[Array, ""]:
    """The theta at a place of its range, from 0 (drops nothing) to 1.

    Cubic, for useful thresholds are small; a temperature in equal ratios, whose
    order of magnitude is that of the tokens' norms. `madtp` drops many at its
    lowest temperature already: each token then looks at one entry of the
    dictionary alone.
    """
    highest = self.highest(tokens)
    if self.rule != "madtp":
      return highest * place**3
    lowest = _COLDEST
    return jnp.where(place > 0, lowest * (highest / lowest) ** place, 0.0)

  def by_layer(self, layers: int) -> "TokenPolicy":
    """The policy with a theta for each layer, where it is a count.

    Fractions add up: what a layer cannot remove of a token a later one does.
    """
    if self.rule not in _COUNTS or self.keep is not None:
      return self
    gone = jnp.floor(self.theta * jnp.arange(layers + 1, dtype=jnp.float32))
    return dataclasses.replace(self, theta=jnp.diff(gone))


def votes(
  policy: TokenPolicy, mask: Float[Array, " h"] | None
) -> Float[Array, " h"] | None:
  """What each head's attention counts; None where nothing is masked.

  A head that is gone has no vote under any policy, so that a masked model and
  its slice drop the same tokens: its uniform attention (q and k are 0) would
  win the maximum of Eq. 6 wherever the live heads look away.
  """
  if mask is None or policy.gate:
    return mask
  return (mask > 0).astype(mask.dtype)


def token_scores(
  attention: Float[Array, "b h n n"],
  pool: Bool[Array, "b n"],
  gate: Float[Array, " h"] | None,
  causal: bool = False,
) -> Float[Array, "b n"]:
  """Scores that sum to 1 over the pool: Norm(sum_n max_h A[h,n,i]).

  Eq. 6; with `gate`, Eq. 7: the gate multiplies the softmaxed attention, for
  scoring only. (Multiplying q and k instead, as Eq. 2's mask does, flattens
  the softmax of a fading head and scrambles the ranking.)

  Args:
    attention: softmaxed attention, queries before keys.
    pool: tokens that vote as queries and are scored as keys.
    gate: what each head's vote counts (`votes`), or None for Eq. 6.
    causal: early tokens are seen by more queries: what a token receives is
      divided by the number of pool queries that can see it.

  Returns:
    float32 scores, 0 outside the pool; all 0 where every head is gated off.
  """
  attention = attention.astype(jnp.float32)
  if gate is not None:
    attention = attention * gate[None, :, None, None]
  # The initial value serves compact layers that have no head left.
  votes = jnp.max(attention, axis=1, initial=0.0)
  received = jnp.einsum("bqk,bq->bk", votes, pool.astype(jnp.float32))
  if causal:
    onward = jnp.cumsum(pool[:, ::-1].astype(jnp.float32), axis=1)[:, ::-1]
    received = received / jnp.maximum(onward, 1.0)
  received = jnp.where(pool, received, 0.0)
  total = jnp.sum(received, axis=-1, keepdims=True)
  return received / jnp.where(total > 0, total, 1.0)


def readout_attention(
  attention: Float[Array, "b h n n"], state: "TokenState"
) -> Float[Array, "b h n"]:
  """The attention that the readout token pays to the pool; CLS without one."""
  row = jnp.einsum("bhqk,bq->bhk", attention.astype(jnp.float32), state.reader)
  return jnp.where(state.pool[:, None], row, 0.0)


def rule_scores(
  policy: TokenPolicy,
  attention: Float[Array, "b h n n"],
  projected: Mapping[str, Float[Array, "b n h e"]],
  state: "TokenState",
  gate: Float[Array, " h"] | None,
  causal: bool,
) -> Float[Array, "b n"]:
  """The token scores of a policy's rule.

  Args:
    policy: the rule.
    attention: softmaxed attention.
    projected: `query`, `key` and `value` of the heads.
    state: tokens entering the layer.
    gate: see `token_scores`, as is causal.
  """
  if policy.rule == "crossget":
    return matching.guided_scores(
      projected["query"], projected["key"], state.reader, state.pool
    )
  if policy.rule == "evit":
    seen = readout_attention(attention, state)
    if gate is not None:
      seen = seen * gate[None, :, None]
    seen = jnp.sum(seen, axis=1)
    total = jnp.sum(seen, axis=-1, keepdims=True)
    return seen / jnp.where(total > 0, total, 1.0)
  scores = token_scores(attention, state.pool, gate, causal)
  if policy.rule == "madtp":
    seen = readout_attention(attention, state)
    return token_rules.madtp_scores(
      attention, projected["value"], seen, scores, state.x, state.pool
    )
  return scores


def keep_top(
  scores: Float[Array, "b n"],
  pool: Bool[Array, "b n"],
  protected: Bool[Array, "b n"],
  count: int,
) -> Bool[Array, "b n"]:
  """The protected tokens and the best of the pool, `count` slots in all.

  Where a sample has fewer valid tokens than `count`, padding fills the rest
  (it stays invalid). Ties go to the lower index.
  """
  order = jnp.where(pool, scores, -1.0)
  order = jnp.where(protected, jnp.inf, order)
  _, indices = jax.lax.top_k(order, count)
  rows = jnp.arange(scores.shape[0])[:, None]
  return jnp.zeros(scores.shape, bool).at[rows, indices].set(True)


def merge_dropped(
  x: Float[Array, "b n d"],
  scores: Float[Array, "b n"],
  pool: Bool[Array, "b n"],
  keep: Bool[Array, "b n"],
) -> tuple[Float[Array, "b n d"], Bool[Array, "b n"]]:
  """The tokens with the dropped ones merged into one, and who stays.

  The merged token, weighted by score (spec `madtp.md` 1.4), takes the slot of
  the best dropped token, so no slot is added. One dropped token alone is
  simply kept: replacing it by itself would gain nothing.
  """
  dropped = pool & ~keep
  weights = jnp.where(dropped, scores, 0.0)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  # Tokens that nobody looks at merge evenly: a zero token would be no mean.
  weights = jnp.where(total > 0, weights, dropped.astype(jnp.float32))
  weights = weights / jnp.maximum(
    jnp.sum(weights, axis=-1, keepdims=True), 1e-30
  )
  merged = jnp.einsum("bn,bnd->bd", weights.astype(x.dtype), x)
  best = jnp.argmax(jnp.where(dropped, scores, -1.0), axis=-1)
  slot = (jnp.arange(scores.shape[-1])[None] == best[:, None]) & dropped
  alone = jnp.sum(dropped, axis=-1, keepdims=True) < 2
  x = jnp.where((slot & ~alone)[..., None], merged[:, None], x)
  return x, keep | slot


def gather_indices(keep: Bool[Array, "b n"], count: int) -> Int[Array, "b k"]:
  """The positions of the `count` tokens marked in `keep`, in order."""
  _, indices = jax.lax.top_k(keep.astype(jnp.float32), count)
  return jnp.sort(indices, axis=-1)


def gather(array: Array, indices: Int[Array, "b k"]) -> Array:
  """The tokens of `array` ([b, n] or [b, n, d]) at `indices`."""
  if array.ndim == 3:
    indices = indices[..., None]
  return jnp.take_along_axis(array, indices, axis=1)


# JAX rebuilds a pytree around anything (shapes, shardings, None).
@typing.no_type_check
@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["x", "valid", "protected", "readout", "size"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenState:
  """The tokens that travel through an encoder.

  Attributes:
    x: activations.
    valid: neither padding nor dropped.
    protected: never scored, never dropped.
    readout: the token that the model reads out (CIP gives it weight 1).
    size: how many tokens of the input each holds; None where none merge.
  """

  x: Float[Array, "b n d"]
  valid: Bool[Array, "b n"]
  protected: Bool[Array, "b n"]
  readout: Bool[Array, "b n"]
  size: Float[Array, "b n"] | None = None

  @property
  def pool(self) -> Bool[Array, "b n"]:
    return self.valid & ~self.protected

  @property
  def reader(self) -> Float[Array, "b n"]:
    """1 at the readout token; at the first, CLS, where there is none."""
    first = jnp.arange(self.valid.shape[-1])[None] == 0
    some = jnp.any(self.readout, axis=-1, keepdims=True)
    return jnp.where(some, self.readout, first).astype(jnp.float32)


def sized(state: TokenState, policy: TokenPolicy) -> TokenState:
  """The state that enters an encoder: sizes of 1 where tokens are matched."""
  if policy.combine != "match":
    return state
  return dataclasses.replace(
    state, size=jnp.ones(state.valid.shape, jnp.float32)
  )


def drop(
  state: TokenState,
  scores: Float[Array, "b n"],
  policy: TokenPolicy,
  layer: int | None,
  entered: Float[Array, "b n d"] | None = None,
  key: Float[Array, "b n h e"] | None = None,
) -> TokenState:
  """The tokens that go on after this layer's attention.

  Args:
    state: tokens entering the layer, `x` already with the attention residual.
    scores: this layer's token scores.
    policy: threshold or static counts.
    layer: index of the layer; needed by `static` execution alone, where it
      picks the count.
    entered: activations before the attention; `madtp` reads them.
    key: keys of the heads; `tome`, `crossget` and `match` read them.
  """
  if policy.combine not in COMBINE:
    raise ValueError(
      f"combine must be one of {COMBINE}, not {policy.combine!r}"
    )
  pool, static = state.pool, policy.keep is not None
  count = state.x.shape[1]
  if static:
    count = min(policy.keep[layer], count)
    if count == state.x.shape[1]:
      return state
  merge, match = policy.combine == "merge", policy.combine == "match"
  order, alike = scores, None
  if policy.rule == "tome":
    alike, order = matching.bipartite(key, pool)
  elif policy.rule == "crossget":
    alike, order = matching.complete(key, pool, scores)
  elif match:
    alike = matching.similarity(key.reshape(*pool.shape, -1), pool)

  if static:
    # The merged token needs a slot of its own.
    protected = state.protected & state.valid
    keep = keep_top(order, pool, protected, count - merge)
  elif policy.rule in _COUNTS:
    keep = matching.keep_last(order, pool, policy.theta)
  elif policy.rule == "madtp":
    keep = token_rules.keep_above_dictionary(
      scores, pool, entered, policy.theta
    )
  elif policy.rule == "evit":
    keep = token_rules.keep_share(scores, pool, policy.theta)
  else:
    keep = token_rules.keep_above(scores, pool, policy.theta)
  x, size = state.x, state.size
  if merge:
    x, keep = merge_dropped(x, scores, pool, keep)
  elif match:
    weight = size * scores if policy.rule == "crossget" else size
    x, size = matching.absorb(x, size, weight, alike, pool & ~keep, pool & keep)
  state = dataclasses.replace(state, x=x, size=size)
  if not static:
    valid = state.valid & (keep | state.protected)
    return dataclasses.replace(state, valid=valid)
  indices = gather_indices(keep, count)
  return jax.tree.map(lambda array: gather(array, indices), state)

"""Token importance and the token rule: Eq. 6, Eq. 7 and three executions.

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

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

RULES = ("mean", "madtp", "evit")
COMBINE = ("drop", "merge")
# Entries of MADTP's dictionary (spec `madtp.md` part 2).
DICTIONARY = 100


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
      `evit`: the best 1 / (1 + theta) of the pool stay.
    rule: how tokens are scored and which stay. `mean` scores by Eq. 6 or 7;
      `madtp` by three parts (spec `madtp.md` 1.2), its threshold comes from
      the dictionary; `evit` by the attention that the readout token pays.
    gate: CIT (Eq. 7): heads vote with their mask, so a pruned head fades out.
    combine: `drop`, or `merge` (one score-weighted token per layer takes the
      place of the dropped ones, MADTP).
    keep: `static` execution: tokens left after each layer, protected ones
      included. None is `mask` execution.
  """

  theta: Float[Array, ""] | float = 0.0
  rule: str = "mean"
  gate: bool = True
  combine: str = "drop"
  keep: tuple[int, ...] | None = None


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
    gate: the mask of each head, or None for Eq. 6.
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
  first = jnp.arange(state.valid.shape[-1])[None] == 0
  some = jnp.any(state.readout, axis=-1, keepdims=True)
  query = jnp.where(some, state.readout, first).astype(jnp.float32)
  row = jnp.einsum("bhqk,bq->bhk", attention.astype(jnp.float32), query)
  return jnp.where(state.pool[:, None], row, 0.0)


def madtp_scores(
  attention: Float[Array, "b h n n"],
  value: Float[Array, "b n h e"],
  received: Float[Array, "b n"],
  state: "TokenState",
) -> Float[Array, "b n"]:
  """MADTP's mean of three scores (spec `madtp.md` 1.2); 0 outside the pool.

  The readout token's attention, each head weighed by the norm of the token's
  own output of it; what the token receives; its best match in the dictionary.
  Negative matches count 0: the authors' normaliser can vanish.

  Args:
    attention: softmaxed attention.
    value: values of the heads.
    received: `token_scores` without gate.
    state: tokens entering the layer.
  """
  output = jnp.einsum("bhqk,bkhe->bqhe", attention, value)
  norms = jnp.linalg.norm(output.astype(jnp.float32), axis=-1)
  heads = norms / (jnp.sum(norms, axis=-1, keepdims=True) + 1e-8)
  seen = jnp.einsum("bnh,bhn->bn", heads, readout_attention(attention, state))
  match = jax.nn.relu(jnp.max(dictionary_match(state.x), axis=1))
  match = jnp.where(state.pool, match, 0.0)
  match = match / (jnp.sum(match, axis=-1, keepdims=True) + 1e-8)
  return (seen + received + match) / 3.0


def rule_scores(
  policy: TokenPolicy,
  attention: Float[Array, "b h n n"],
  value: Float[Array, "b n h e"],
  state: "TokenState",
  gate: Float[Array, " h"] | None,
  causal: bool,
) -> Float[Array, "b n"]:
  """The token scores of a policy's rule; arguments as those above."""
  if policy.rule == "evit":
    seen = jnp.sum(readout_attention(attention, state), axis=1)
    total = jnp.sum(seen, axis=-1, keepdims=True)
    return seen / jnp.where(total > 0, total, 1.0)
  scores = token_scores(attention, state.pool, gate, causal)
  if policy.rule == "madtp":
    return madtp_scores(attention, value, scores, state)
  return scores


def keep_above(
  scores: Float[Array, "b n"],
  pool: Bool[Array, "b n"],
  theta: Float[Array, ""] | float,
) -> Bool[Array, "b n"]:
  """The pool tokens that stay: S > theta / n_pool, at least one of them.

  theta = 0 keeps every token, and so does a layer without live heads (its
  scores are all 0 and say nothing).
  """
  n_pool = jnp.sum(pool, axis=-1, keepdims=True)
  return _stay(scores, pool, scores > theta / jnp.maximum(n_pool, 1), theta)


def _stay(scores, pool, above, theta):
  """The pool tokens above a threshold, and whoever stays in any case."""
  best = jnp.argmax(jnp.where(pool, scores, -1.0), axis=-1)
  best = jnp.arange(scores.shape[-1])[None] == best[:, None]
  scored = jnp.sum(scores, axis=-1, keepdims=True) > 0
  return pool & (above | best | ~scored | (theta <= 0))


def keep_share(
  scores: Float[Array, "b n"],
  pool: Bool[Array, "b n"],
  theta: Float[Array, ""] | float,
) -> Bool[Array, "b n"]:
  """The best 1 / (1 + theta) of the pool, rounded up (EViT's keep rate)."""
  order = jnp.argsort(jnp.where(pool, -scores, jnp.inf), axis=-1)
  rank = jnp.argsort(order, axis=-1)
  n_pool = jnp.sum(pool, axis=-1, keepdims=True)
  return _stay(scores, pool, rank < jnp.ceil(n_pool / (1.0 + theta)), theta)


def dictionary_match(x: Float[Array, "b n d"]) -> Float[Array, "b k n"]:
  """MADTP's inner products of tokens with the entries of its dictionary.

  The dictionary is drawn from N(0, 1) once for all models and layers and stays
  as it is: at the published rates training moves an entry by 1e-2 at most
  (spec `madtp.md` part 2).
  """
  shape = (DICTIONARY, x.shape[-1])
  entries = jax.random.normal(jax.random.key(0), shape, jnp.float32)
  return jnp.einsum("kd,bnd->bkn", entries, x.astype(jnp.float32))


def keep_above_dictionary(
  scores: Float[Array, "b n"],
  pool: Bool[Array, "b n"],
  x: Float[Array, "b n d"],
  theta: Float[Array, ""] | float,
) -> Bool[Array, "b n"]:
  """The pool tokens that MADTP keeps: S > min_k sum_n P[k, n] S[n].

  P is the softmax over the pool of the matches at temperature theta: each
  entry of the dictionary points at its tokens, the weakest pointing is the
  threshold. A high temperature points everywhere: the mean score.

  Args:
    scores: of the tokens.
    pool: what the rule chooses from.
    x: tokens entering the layer.
    theta: temperature; 0 keeps every token.
  """
  match = dictionary_match(x) / jnp.maximum(theta, 1e-6)
  pointing = jax.nn.softmax(jnp.where(pool[:, None], match, -1e30), axis=-1)
  pooled = jnp.where(pool, scores, 0.0)
  limit = jnp.min(jnp.einsum("bkn,bn->bk", pointing, pooled), axis=-1)
  return _stay(scores, pool, scores > limit[:, None], theta)


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
  data_fields=["x", "valid", "protected", "readout"],
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
  """

  x: Float[Array, "b n d"]
  valid: Bool[Array, "b n"]
  protected: Bool[Array, "b n"]
  readout: Bool[Array, "b n"]

  @property
  def pool(self) -> Bool[Array, "b n"]:
    return self.valid & ~self.protected


def drop(
  state: TokenState,
  scores: Float[Array, "b n"],
  policy: TokenPolicy,
  layer: int | None,
  entered: Float[Array, "b n d"] | None = None,
) -> TokenState:
  """The tokens that go on after this layer's attention.

  Args:
    state: tokens entering the layer, `x` already with the attention residual.
    scores: this layer's token scores.
    policy: threshold or static counts.
    layer: index of the layer; needed by `static` execution alone, where it
      picks the count.
    entered: activations before the attention; `madtp` reads them.
  """
  if policy.combine not in COMBINE:
    raise ValueError(
      f"combine must be one of {COMBINE}, not {policy.combine!r}"
    )
  pool, merge = state.pool, policy.combine == "merge"
  if policy.keep is None:
    if policy.rule == "madtp":
      keep = keep_above_dictionary(scores, pool, entered, policy.theta)
    elif policy.rule == "evit":
      keep = keep_share(scores, pool, policy.theta)
    else:
      keep = keep_above(scores, pool, policy.theta)
    x = state.x
    if merge:
      x, keep = merge_dropped(x, scores, pool, keep)
    return dataclasses.replace(
      state, x=x, valid=state.valid & (keep | state.protected)
    )
  count = min(policy.keep[layer], state.x.shape[1])
  if count == state.x.shape[1]:
    return state
  # The merged token needs a slot of its own.
  protected = state.protected & state.valid
  keep = keep_top(scores, pool, protected, count - merge)
  x = state.x
  if merge:
    x, keep = merge_dropped(x, scores, pool, keep)
  indices = gather_indices(keep, count)
  state = dataclasses.replace(state, x=x)
  return jax.tree.map(lambda array: gather(array, indices), state)

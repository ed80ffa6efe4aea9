"""Merging tokens that are alike: the matchings of ToMe and CrossGET.

Tokens are alike where their keys are (ToMe, arXiv 2210.09461, section 3;
CrossGET, spec `madtp.md` part 6). A matching says in which order tokens go;
each then becomes part of the most similar one that stays.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def similarity(
  key: Float[Array, "b n e"], pool: Bool[Array, "b n"]
) -> Float[Array, "b n n"]:
  """Cosines of the keys of the pool; -inf elsewhere and with oneself."""
  unit = _unit(key)
  alike = jnp.einsum("bqe,bke->bqk", unit, unit)
  # Two tokens must be equally alike from both sides, to the last bit.
  alike = (alike + jnp.swapaxes(alike, 1, 2)) / 2
  others = ~jnp.eye(key.shape[1], dtype=bool)[None]
  pairs = pool[:, :, None] & pool[:, None] & others
  return jnp.where(pairs, alike, -jnp.inf)


def bipartite(
  key: Float[Array, "b n h e"], pool: Bool[Array, "b n"]
) -> tuple[Float[Array, "b n n"], Float[Array, "b n"]]:
  """ToMe: similarity to the allowed targets, and the order of removal.

  Every other token of the pool gives, the rest takes; keys are averaged over
  heads. Those most like a taker go first, takers last.

  Returns:
    The similarity, -inf where the column may not take; places from 0.
  """
  alike = similarity(jnp.sum(key, axis=2), pool)
  takes = pool & (jnp.cumsum(pool, axis=-1) % 2 == 1)
  alike = jnp.where(takes[:, None], alike, -jnp.inf)
  nearest = jnp.max(alike, axis=-1)
  return alike, _places(jnp.where(takes, jnp.inf, -nearest))


def complete(
  key: Float[Array, "b n h e"],
  pool: Bool[Array, "b n"],
  scores: Float[Array, "b n"],
) -> tuple[Float[Array, "b n n"], Float[Array, "b n"]]:
  """CrossGET: the same over all pairs, unimportant tokens first.

  Tokens stand in the order of their nearest neighbour, the nearest first, and
  look for a partner behind them only: of two that are alike one stays.

  Args:
    key: of the tokens, head by head.
    pool: tokens that may be merged.
    scores: `guided_scores`.
  """
  alike = similarity(key.reshape(*pool.shape, -1), pool)
  stand = _places(-jnp.max(alike, axis=-1))
  behind = stand[:, None] > stand[:, :, None]
  nearest = jnp.max(jnp.where(behind, alike, -jnp.inf), axis=-1)
  # The logarithm is the importance, up to a constant of the sample.
  worth = jnp.log(jnp.maximum(scores, 1e-30)) - nearest
  return alike, _places(jnp.where(pool, worth, jnp.inf))


def guided_scores(
  query: Float[Array, "b n h e"],
  key: Float[Array, "b n h e"],
  reader: Float[Array, "b n"],
  pool: Bool[Array, "b n"],
) -> Float[Array, "b n"]:
  """CrossGET's importance as shares of the pool: softmax of the cosines.

  Its differences are those of the cosines, and the shares of two tokens
  alone are the softmax over the pair.

  Args:
    query: of the tokens, head by head.
    key: likewise.
    reader: 1 at the token whose query guides: CLS.
    pool: tokens that may be merged.
  """
  flat = lambda z: z.reshape(*pool.shape, -1)  # noqa: E731
  guide = jnp.einsum("bne,bn->be", _unit(flat(query)), reader)
  cosine = jnp.einsum("bne,be->bn", _unit(flat(key)), guide)
  shares = jax.nn.softmax(jnp.where(pool, cosine, -1e30), axis=-1)
  return jnp.where(pool, shares, 0.0)


def keep_last(
  places: Float[Array, "b n"],
  pool: Bool[Array, "b n"],
  count: Float[Array, ""] | float,
) -> Bool[Array, "b n"]:
  """The pool without the first `count` of the queue, half of it at most."""
  n_pool = jnp.sum(pool, axis=-1, keepdims=True)
  return pool & (places >= jnp.minimum(count, n_pool // 2))


def absorb(
  x: Float[Array, "b n d"],
  size: Float[Array, "b n"],
  weight: Float[Array, "b n"],
  alike: Float[Array, "b n n"],
  gone: Bool[Array, "b n"],
  keep: Bool[Array, "b n"],
) -> tuple[Float[Array, "b n d"], Float[Array, "b n"]]:
  """Tokens and sizes once those `gone` are part of those that stay.

  Args:
    x: tokens.
    size: how many tokens of the input each of them holds.
    weight: of each token in the mean that replaces those that merge.
    alike: similarity; -inf where the column may not take the row in.
    gone: tokens that go to the most similar one of `keep`.
    keep: tokens that stay.
  """
  alike = jnp.where(keep[:, None], alike, -jnp.inf)
  into = jnp.argmax(alike, axis=-1)
  given = gone & (jnp.max(alike, axis=-1) > -jnp.inf)
  # A product with 0 and 1 where a scatter would add in any order.
  n = x.shape[1]
  share = (into[..., None] == jnp.arange(n)[None, None]) & given[..., None]
  share = (share | jnp.eye(n, dtype=bool)[None]).astype(jnp.float32)
  total = jnp.einsum("bs,bst->bt", weight, share)
  mean = jnp.einsum("bst,bs,bsd->btd", share, weight, x.astype(jnp.float32))
  mean = mean / jnp.maximum(total, 1e-30)[..., None]
  took = jnp.sum(share, axis=1) > 1
  x = jnp.where(took[..., None], mean.astype(x.dtype), x)
  return x, jnp.einsum("bs,bst->bt", size, share)


def _unit(z):
  """Vectors of length 1, in float32; zeros stay zeros."""
  z = z.astype(jnp.float32)
  length = jnp.linalg.norm(z, axis=-1, keepdims=True)
  return z / jnp.maximum(length, 1e-12)


def _places(value):
  """The place of each token in ascending order; ties by index."""
  places = jnp.argsort(jnp.argsort(value, axis=-1), axis=-1)
  return places.astype(jnp.float32)

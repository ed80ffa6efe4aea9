"""Token rules: which tokens of the pool stay, ours and those of baselines."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Entries of MADTP's dictionary (spec `madtp.md` part 2).
DICTIONARY = 100


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


def madtp_scores(
  attention: Float[Array, "b h n n"],
  value: Float[Array, "b n h e"],
  seen: Float[Array, "b h n"],
  received: Float[Array, "b n"],
  x: Float[Array, "b n d"],
  pool: Bool[Array, "b n"],
) -> Float[Array, "b n"]:
  """MADTP's mean of three scores (spec `madtp.md` 1.2); 0 outside the pool.

  The readout token's attention, each head weighed by the norm of the token's
  own output of it; what the token receives; its best match in the dictionary.
  Negative matches count 0: the authors' normaliser can vanish.

  Args:
    attention: softmaxed attention.
    value: values of the heads.
    seen: the readout token's attention to the pool.
    received: Eq. 6.
    x: tokens entering the layer.
    pool: what is scored.
  """
  output = jnp.einsum("bhqk,bkhe->bqhe", attention, value)
  norms = jnp.linalg.norm(output.astype(jnp.float32), axis=-1)
  heads = norms / (jnp.sum(norms, axis=-1, keepdims=True) + 1e-8)
  seen = jnp.einsum("bnh,bhn->bn", heads, seen)
  match = jax.nn.relu(jnp.max(dictionary_match(x), axis=1))
  match = jnp.where(pool, match, 0.0)
  match = match / (jnp.sum(match, axis=-1, keepdims=True) + 1e-8)
  return (seen + received + match) / 3.0

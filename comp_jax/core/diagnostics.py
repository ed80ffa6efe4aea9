"""What the paper's Figures 2 and 5 measure, in the reading of this project.

Nothing here decides anything: pruning reads none of it.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from comp_jax.core import importance, token_rules


def dominance(
  hidden: Float[Array, "b n *rows"],  # noqa: F821
  magnitude: Float[Array, "*rows"],  # noqa: F821
  valid: Bool[Array, "b n"],
) -> Float[Array, "b n"]:
  """How much of the parameter importance of Eq. 3 each token accounts for.

  A row's score |W_i| ||X_i|| is shared out among the tokens by their part of
  ||X_i||^2, and summed over rows: sum_i |W_i| X_ni^2 / ||X_i||. The mean over
  samples of their sum is the sum of all scores.

  Args:
    hidden: X, the hidden units that the output matrix reads.
    magnitude: mean_j |W_ij| of each row.
    valid: tokens that count.
  """
  norm = jnp.sqrt(importance.weighted_moment(hidden, valid.astype(jnp.float32)))
  weight = jnp.where(norm > 0, magnitude / jnp.where(norm > 0, norm, 1.0), 0.0)
  squares = jnp.square(hidden.astype(jnp.float32))
  shares = jnp.tensordot(squares, weight, axes=weight.ndim)
  return jnp.where(valid, shares, 0.0)


def overlap(
  first: Float[Array, "b n"],
  second: Float[Array, "b n"],
  pool: Bool[Array, "b n"],
  share: float,
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
  """The part of the best tokens that two scores have in common, and chance's.

  Figure 2a. Chance is what two unrelated scores would share: the fraction of
  the pool that counts as best.

  Args:
    first: higher is better.
    second: likewise.
    pool: tokens that are compared.
    share: of the pool that is best, rounded up to whole tokens.
  """
  theta = 1.0 / share - 1.0
  ours, theirs = (
    token_rules.keep_share(s, pool, theta) for s in (first, second)
  )
  count = jnp.maximum(jnp.sum(ours, axis=-1), 1)
  common = jnp.sum(ours & theirs, axis=-1) / count
  return common, count / jnp.maximum(jnp.sum(pool, axis=-1), 1)


def _ranks(
  x: Float[Array, "r n"], pool: Bool[Array, "r n"]
) -> Float[Array, "r n"]:
  """Ranks within the pool, equal values share their mean; 0 outside."""
  before = (x[:, None, :] < x[:, :, None]) & pool[:, None]
  equal = (x[:, None, :] == x[:, :, None]) & pool[:, None]
  ranks = jnp.sum(before, axis=-1) + (jnp.sum(equal, axis=-1) + 1) / 2
  return jnp.where(pool, ranks, 0.0)


def rank_distortion(
  before: Float[Array, "r n"],
  after: Float[Array, "r n"],
  pool: Bool[Array, "r n"],
) -> Float[Array, " r"]:
  """How far the order of each row has changed: 1 - Spearman's correlation.

  Figure 5. 0 is the same order, 1 an unrelated one, 2 the reverse. Scores that
  are all equal order nothing: 1. A single entry has one order: 0.

  Args:
    before: scores.
    after: scores of the same.
    pool: what is ranked.
  """
  count = jnp.sum(pool, axis=-1, keepdims=True)

  def centred(x):
    return jnp.where(pool, _ranks(x, pool) - (count + 1) / 2, 0.0)

  x, y = centred(before), centred(after)
  scale = jnp.sqrt(jnp.sum(x * x, axis=-1) * jnp.sum(y * y, axis=-1))
  alike = jnp.sum(x * y, axis=-1) / jnp.where(scale > 0, scale, 1.0)
  return jnp.where(count[:, 0] > 1, 1.0 - alike, 0.0)


def still_influential(
  influence: Float[Array, "l u"], share: float
) -> Float[Array, " l"]:
  """The part of each layer's least important units that are influential.

  Figure 2b. A unit is influential when it moves the order of the tokens more
  than the layer's median unit does: 0 where what matters little moves little,
  half where the two are unrelated.

  Args:
    influence: of units in the order of their importance, the least first.
    share: of the units that is least important, rounded up.
  """
  count = max(1, math.ceil(share * influence.shape[1] - 1e-9))
  median = jnp.median(influence, axis=-1, keepdims=True)
  return jnp.mean(influence[:, :count] > median, axis=-1)

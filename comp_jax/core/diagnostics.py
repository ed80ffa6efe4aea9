"""What the paper's Figures 2 and 5 measure, in the reading of this project.

Nothing here decides anything: pruning reads none of it.
"""

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

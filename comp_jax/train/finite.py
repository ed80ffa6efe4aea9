"""Whether a run's numbers still are numbers: asked before any is kept."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from comp_jax import errors


class NotFinite(errors.UserError):
  """NaN or an infinity where a number was needed: the model diverged."""


def everywhere(tree: Any) -> Bool[Array, ""]:
  """Whether all arrays of a tree hold finite numbers; traceable."""
  sound = jnp.asarray(True)
  for leaf in jax.tree.leaves(tree):
    # Keys and whole numbers are finite by their nature.
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
      sound &= jnp.all(jnp.isfinite(leaf))
  return sound

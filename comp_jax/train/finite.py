"""Whether a run's numbers still are numbers: asked before any is kept."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

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


def problem(
  losses: Float[np.ndarray, " t"], sound: Any, first_step: int, what: str
) -> str:
  """What went wrong in some steps of training; nothing where all is well.

  A loss is that of the weights before its step: what the last update did is
  in `sound` alone.

  Args:
    losses: of each step.
    sound: whether everything after the last step is finite.
    first_step: number of the first of them.
    what: name of the phase.
  """
  bad = np.flatnonzero(~np.isfinite(losses))
  if bad.size:
    step = first_step + int(bad[0])
    return f"{what}: the loss is not finite at step {step}"
  if not sound:
    step = first_step + len(losses) - 1
    return f"{what}: weights, scores or costs are not finite after step {step}"
  return ""


def check(
  losses: Float[np.ndarray, " t"],
  sound: Any,
  first_step: int,
  what: str,
  state: Any,
) -> None:
  """Raises NotFinite where there is a `problem`, before anything is saved.

  Args:
    losses: of each step.
    sound: whether everything after the last step is finite.
    first_step: number of the first of them.
    what: name of the phase.
    state: what is there after the last step, to say where it is broken.
  """
  if found := problem(losses, sound, first_step, what):
    raise NotFinite(
      f"{found}{_places(state)}; checkpoints from before are kept: lower the "
      "learning rate and start again in another workdir"
    )


def first(tree: Any) -> tuple[str, int]:
  """The path of the first array that is not finite, and how many are not.

  On the host, for a message; ("", 0) where all is well.
  """
  paths = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    if jnp.issubdtype(leaf.dtype, jnp.inexact)
    and not np.isfinite(np.asarray(leaf)).all()
  ]
  return (paths or [""])[0], len(paths)


def _places(state: Any) -> str:
  """Where a state is broken, as the end of a sentence."""
  path, count = first(state)
  if not count:
    return ""
  return f" ({path}" + (f" and {count - 1} other arrays)" if count > 1 else ")")

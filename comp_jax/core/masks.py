"""Masks over units, and which units go next.

Masks are a pytree {tower: {group: float32 [layers, units]}}, 1 for live and 0
for removed units; during a stage the units on their way out decay between the
two.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from comp_jax.core import groups as groups_lib

Masks = Mapping[str, Mapping[str, Array]]


def put(tree: dict, path: str, value) -> None:
  """Sets the leaf of a nested dict at a `/`-joined path."""
  *parents, name = path.split("/")
  for key in parents:
    tree = tree.setdefault(key, {})
  tree[name] = value


def build(
  groups: Sequence[groups_lib.Group],
  leaf: Callable[[groups_lib.Group], Array],
) -> dict:
  """A pytree of the masks' structure, one leaf per group."""
  tree = {}
  for group in groups:
    put(tree, group.name, leaf(group))
  return tree


def ones(groups: Sequence[groups_lib.Group]) -> dict:
  """The masks of a dense model."""
  return build(groups, lambda g: jnp.ones((g.layers, g.units), jnp.float32))


def soft(
  live: Masks, marked: Masks, progress: Float[Array, ""] | float
) -> Masks:
  """Live masks with the marked units faded by `progress` in [0, 1].

  UPop's smooth schedule (spec `upop.md` 1.3): a marked unit is worth
  1 - sin(pi/2 * progress), exactly 0 at the end.
  """
  lost = gone(progress)
  return jax.tree.map(lambda x, m: x * (1.0 - m * lost), live, marked)


def gone(progress: Float[Array, ""] | float) -> Float[Array, ""]:
  """sin(pi/2 * progress), exactly 1 at the end."""
  progress = jnp.asarray(progress, jnp.float32)
  return jnp.where(progress >= 1, 1.0, jnp.sin(jnp.pi / 2 * progress))


def removable(
  score: Float[Array, "l units"],
  live: Float[Array, "l units"],
  floor: int,
) -> Bool[Array, "l units"]:
  """Live units that may go: all but the `floor` best of each layer."""
  order = jnp.argsort(jnp.where(live > 0, -score, jnp.inf), axis=-1)
  rank = jnp.argsort(order, axis=-1)
  return (live > 0) & (rank >= floor)


def mark_lowest(
  score: Float[Array, " u"],
  eligible: Bool[Array, " u"],
  macs: Float[Array, " u"],
  indivisible: Bool[Array, " u"],
  need: Float[Array, ""],
  most: Float[Array, ""] | float = 0.0,
) -> Bool[Array, " u"]:
  """The lowest-scored units whose MACs together reach `need`.

  Units are taken in order of their score. The first indivisible unit (a head)
  that would overshoot ends the heads: from there neurons alone fill the rest,
  so the budget is exceeded by less than one neuron. Where there are heads alone
  the lowest goes even if it exceeds the budget, up to `most`: or a stage of few
  heads would take none, and so would the next. Two cumulative sums; no loop
  over units. Ties go to the lower index.

  Args:
    score: comparable scores of all units of the chosen modes.
    eligible: units that may be taken.
    macs: what each unit saves, in any unit of MACs.
    indivisible: heads.
    need: MACs to save; nothing is taken for need <= 0.
    most: MACs that a lone head may save.
  """
  order = jnp.argsort(jnp.where(eligible, score, jnp.inf))
  eligible, macs, indivisible = (
    x[order] for x in (eligible, macs, indivisible)
  )
  saved = jnp.where(eligible, macs, 0.0)
  lone = (need > 0) & ~jnp.any(eligible & ~indivisible) & (saved[0] <= most)
  need = jnp.where(lone, jnp.maximum(need, saved[0]), need)
  eligible = eligible & ~(indivisible & (jnp.cumsum(saved) > need))
  saved = jnp.where(eligible, macs, 0.0)
  before = jnp.cumsum(saved) - saved
  # Rounding of the float32 sums must not add one more unit.
  take = eligible & (before < need * (1 - 1e-6))
  return jnp.zeros(take.shape, bool).at[order].set(take)


def upop_weight(group: groups_lib.Group) -> float:
  """What a unit counts in UPop's code: 36 a head channel, 1 a neuron.

  36 are the rows of 12 heads in q, k and v, whatever the number of heads (spec
  `upop.md` 1.3). Where units are heads, a block counts as much as in channels.
  """
  if not group.indivisible:
    return 1.0
  return 36.0 * group.rows[-1] / group.units


def mark_share(
  score: Float[Array, " u"],
  eligible: Bool[Array, " u"],
  weight: Float[Array, " u"],
  macs: Float[Array, " u"],
  need: Float[Array, ""],
  share: Float[Array, ""] | float,
) -> Bool[Array, " u"]:
  """UPop's marking: a fraction p * share of the weighted units.

  In order of their scores, the unit at which the weights sum up to the fraction
  most closely is the threshold; what scores lower goes (spec `upop.md` 1.3). p
  is the largest fraction at which no more than `need` is saved.

  Args:
    score: comparable scores of all units.
    eligible: units that may go; the others count all the same.
    weight: what each unit counts; 0 for units of modes that do not prune.
    macs: what each unit saves, in any unit of MACs.
    need: MACs that the whole of p saves.
    share: of p, in [0, 1].
  """
  order = jnp.argsort(jnp.where(weight > 0, score, jnp.inf))
  total = jnp.cumsum(weight[order])
  saved = jnp.cumsum(jnp.where(eligible, macs, 0.0)[order])
  last = jnp.minimum(jnp.sum(saved <= need * (1 + 1e-6)), score.shape[0] - 1)
  nearest = jnp.argmin(jnp.abs(total - share * total[last]))
  return eligible & (score < score[order[nearest]])


def flatten(
  groups: Sequence[groups_lib.Group], tree: Mapping
) -> Shaped[Array, " u"]:
  """All leaves of a mask-shaped pytree as one vector, in group order."""
  return jnp.concatenate(
    [groups_lib.leaf(tree, group.name).reshape(-1) for group in groups]
  )


def unflatten(
  groups: Sequence[groups_lib.Group], vector: Float[Array, " u"]
) -> dict:
  """The inverse of `flatten`."""
  tree, start = {}, 0
  for group in groups:
    size = group.layers * group.units
    part = vector[start : start + size].reshape(group.layers, group.units)
    put(tree, group.name, part)
    start += size
  return tree

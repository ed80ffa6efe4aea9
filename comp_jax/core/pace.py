"""Keeping a pace: how a search reaches its target in the stages that it has.

Ours: the paper's searches are so long that any order of modes arrives. A short
one may spend its stages on modes that have little to give, or find that no mode
has enough for a step as large as is needed.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# In a sweep targets and steps are traced.
Number = float | Float[Array, ""]
# Steps that are as large as they must be would leave no stage to a small mode:
# they are such that one of so many is to spare.
SPARE = 4
# Halvings of the range of a step's share.
_HALVINGS = 10
# A fraction of dense for which nobody hurries, and float32's rounding.
NEAR, _ROUNDING = 1e-3, 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
  """What a stage may remove at most.

  Attributes:
    target: MACs to reach, as a fraction of dense.
    stage_macs: that a stage removes, likewise.
    share: of what its modes can still remove, where that is less.
    joint: whether a stage takes from all modes at once, units and tokens.
  """

  target: Number
  stage_macs: Number
  share: Number
  joint: bool = False

  def after(
    self,
    macs: Float[Array, ""],
    removable: Float[Array, " m"],
    mode: Int[Array, ""] | int,
  ) -> tuple[Float[Array, ""], Float[Array, " m"]]:
    """MACs, and what the modes can remove, after a stage of one, or `joint`.

    It takes from the others in proportion: a unit saves less where fewer tokens
    pass it. Where all modes give at once each is such another one.
    """
    room = jnp.sum(removable) if self.joint else removable[mode]
    step = jnp.minimum(self.stage_macs, self.share * room)
    others = removable * (1.0 - step / macs)
    if self.joint:
      return macs - step, others
    chosen = jnp.arange(removable.shape[0]) == mode
    return macs - step, jnp.where(chosen, removable - step, others)

  def end(
    self,
    macs: Float[Array, ""],
    removable: Float[Array, " m"],
    stages: Int[Array, ""] | int,
  ) -> Float[Array, ""]:
    """MACs after so many stages of the largest step each."""

    def stage(_, now):
      # The mode that has most has the largest step, if not alone.
      return self.after(*now, jnp.argmax(now[1]))

    return jax.lax.fori_loop(0, stages, stage, (macs, removable))[0]


def late(
  pace: Pace,
  macs: Float[Array, ""],
  removable: Float[Array, " m"],
  stages: Int[Array, ""] | int,
) -> Bool[Array, " m"]:
  """Modes after whose step the stages left would not reach the target.

  Those to come are taken to be as large as may be. Never the mode that brings
  the search nearest.

  Args:
    pace: of the search.
    macs: before this stage, as a fraction of dense.
    removable: by each mode, likewise.
    stages: that are left, with the one about to run.
  """

  def end(mode):
    return pace.end(*pace.after(macs, removable, mode), stages - 1)

  ends = jax.vmap(end)(jnp.arange(removable.shape[0]))
  return ends > jnp.maximum(pace.target, jnp.min(ends))


def hurried(
  pace: Pace,
  macs: Float[Array, ""],
  removable: Float[Array, " m"],
  stages: Int[Array, ""] | int,
) -> Pace:
  """The pace, or one of larger steps where the stages left need them.

  Its share is then the least at which the largest steps arrive, within `NEAR`,
  with one stage of `SPARE` left over; with none where no share does. Where
  `stage_macs` is the limit they come as near as with any share: modes that have
  little would be emptied at once for nothing.

  Args:
    pace: of the search.
    macs: before this stage, as a fraction of dense.
    removable: by each mode, likewise.
    stages: that are left, with the one about to run.
  """

  def end(share, stages):
    return dataclasses.replace(pace, share=share).end(macs, removable, stages)

  few = jnp.maximum(stages - stages // SPARE, 1)
  within = jnp.where(end(1.0, few) <= pace.target + NEAR, few, stages)
  limit = end(1.0, stages)
  above = limit > pace.target + NEAR
  nearest = NEAR + jnp.where(above, limit, pace.target)

  def halve(bracket, _):
    low, high = bracket
    middle = (low + high) / 2
    meets = end(middle, within) <= nearest
    return (
      jnp.where(meets, low, middle),
      jnp.where(meets, middle, high),
    ), None

  widest = jnp.asarray(pace.share, jnp.float32), jnp.ones((), jnp.float32)
  (_, least), _ = jax.lax.scan(halve, widest, None, length=_HALVINGS)
  enough = end(pace.share, stages) <= nearest
  share = jnp.where(enough, pace.share, least)
  return dataclasses.replace(pace, share=share)


def fewest_stages(
  pace: Pace, removable: Float[Array, " m"], most: int
) -> Int[Array, ""]:
  """Stages from the dense model to the target if each is as large as may be.

  A search that also tries small modes needs more.

  Args:
    pace: of the search.
    removable: by each mode from the dense model, as a fraction of dense.
    most: stages to look ahead; what takes longer takes as many.
  """

  def above(now):
    taken, macs, _ = now
    return (macs > pace.target + _ROUNDING) & (taken < most)

  def stage(now):
    taken, *left = now
    return taken + 1, *pace.after(*left, jnp.argmax(left[1]))

  dense = jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32), removable
  return jax.lax.while_loop(above, stage, dense)[0]

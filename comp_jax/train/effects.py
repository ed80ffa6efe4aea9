"""What a cut does: a stage's training, its validation, Eq. 8's cost.

Pure functions of a search's state, traced by the stage.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from comp_jax.core import masks as masks_lib
from comp_jax.core import mps
from comp_jax.recipes import recipe as recipe_lib
from comp_jax.train import finite, thresholds
from comp_jax.train import state as state_lib
from comp_jax.train import step as step_lib

# Of the MACs that a stage removed, what must be gone after its training too,
# or the cost after it says nothing of the mode.
STAYED = 0.5
# Fine-tuned thresholds move by this factor at most, until the MACs lie so close
# below the target.
FURTHEST = 16.0
NEAR = 2e-3
# Less than this is rounding: float32 sums of MACs, in one order or another.
ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Effects(thresholds.Thresholds):
  """How cuts are trained, validated and priced.

  Attributes:
    metric: (output, batch) -> validation metric, higher is better.
    optimizer: weight updates.
    side_by_side: whether the trial steps of all modes are one vmapped call. On
      a CPU, which has no width to fill, each in turn skips what its mode does
      not need.
  """

  metric: Callable[[Mapping, Mapping], Array]
  optimizer: optax.GradientTransformation
  side_by_side: bool = False

  @property
  def paired(self) -> bool:
    """Whether costs are taken against the same steps without the cut."""
    weighing = self.recipe.schedule in recipe_lib.WEIGHING
    return weighing and self.settings.cost == "paired"

  def validate(
    self,
    params: Mapping,
    masks: Mapping | None,
    thetas: Mapping,
    select: Mapping,
  ) -> tuple[Float[Array, ""], Mapping]:
    """The metric and the token counts on the `select` examples.

    Args:
      params: weights.
      masks: hard masks; None for a compact model.
      thetas: token thresholds.
      select: arrays [chunks, c, ...]: forwards run chunk by chunk, the metric
        over all of them.
    """
    execution = self.objective.execution(masks, thetas)

    def forward(batch):
      output, aux = self.prunable.forward(params, batch, execution)
      return output, {tower: each["counts"] for tower, each in aux.items()}

    output, counts = jax.lax.map(forward, select)
    join = lambda x: x.reshape(-1, *x.shape[2:]) if x.ndim > 1 else x[0]  # noqa: E731
    output, counts, flat = jax.tree.map(join, (output, counts, select))
    # Comparisons count NaN as an answer like any other.
    sound = finite.everywhere(output)
    return jnp.where(sound, self.metric(output, flat), jnp.nan), counts

  def train(
    self,
    start: state_lib.SearchState,
    marked: Mapping,
    thetas: Mapping,
    batches: Mapping,
    done: Int[Array, ""] | int = 0,
    parts: int = 1,
  ) -> tuple[state_lib.SearchState, Float[Array, " t"]]:
    """Trains while the marked units fade and thresholds rise.

    Args:
      start: masks that fade and thresholds that rise are the stage's first;
        weights, optimiser, memory and statistics go on from here.
      marked: 1 for the units that go.
      thetas: thresholds at the end of the stage.
      batches: [t, b, ...], all of the stage's steps or one of its parts.
      done: steps of the stage before these.
      parts: in how many parts of t steps its batches come.

    Returns:
      The state whose weights, optimiser, memory and statistics have advanced,
      and the losses.
    """
    length = jax.tree.leaves(batches)[0].shape[0]
    estimator = self.recipe.estimator

    def body(carry, inputs):
      params, optimizer, memory, statistics = carry
      index, batch = inputs
      progress = (done + index + 1.0) / (parts * length)
      masks = self.faded(start, marked, progress)
      ramp = masks_lib.gone(progress)
      now = {
        tower: old + ramp * (thetas[tower] - old)
        for tower, old in start.thetas.items()
      }
      memory, loss, grads, gathered = self.objective.gradients(
        params, memory, batch, self.objective.execution(masks, now, estimator)
      )
      params, optimizer = step_lib.update(
        self.optimizer, params, optimizer, grads
      )
      after = params, optimizer, memory, statistics.add(gathered)
      return after, loss.astype(jnp.float32)

    steps = jnp.arange(length, dtype=jnp.float32)
    carry = (start.params, start.optimizer, start.memory, start.statistics)
    carry, losses = jax.lax.scan(body, carry, (steps, batches))
    params, optimizer, memory, statistics = carry
    return dataclasses.replace(
      start,
      params=params,
      optimizer=optimizer,
      memory=memory,
      statistics=statistics,
    ), losses

  def outcome(
    self,
    state: state_lib.SearchState,
    marked: Mapping,
    thetas: Mapping,
    batches: Mapping | None,
    select: Mapping,
  ) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Metric and MACs once this is cut and, on batches, trained.

    Nothing is committed.
    """
    params = state.params
    if batches is not None:
      params = self.train(state, marked, thetas, batches)[0].params
    masks = self.faded(state, marked, 1.0)
    metric, counts = self.validate(params, masks, thetas, select)
    return metric, self.macs(masks, counts)

  def retuned(
    self,
    params: Mapping,
    masks: Mapping | None,
    thetas: Mapping,
    select: Mapping,
  ) -> tuple[Mapping, Mapping, Float[Array, ""]]:
    """Thresholds, token counts and MACs of fine-tuned weights, at the target.

    They let other tokens pass than those of the search did. Thresholds in use
    move together, in equal ratios, up or down; units stay as they are. MACs
    need not be monotone in theta, so an end that meets the target is returned,
    where there is one.

    Args:
      params: weights.
      masks: hard masks; None for a compact model.
      thetas: of the search.
      select: validation examples [chunks, c, ...].
    """
    target = self.settings.target - ROUNDING

    def at(power):
      moved = {t: theta * FURTHEST**power for t, theta in thetas.items()}
      _, counts = self.validate(params, masks, moved, select)
      return moved, counts, self.macs(masks, counts)

    def halve(carry):
      low, high, best, tries = carry
      middle = (low + high) / 2
      found = at(middle)
      meets = found[2] <= target
      # One that does not meet it is only better than another such.
      take = meets | (best[2] > target)
      best = jax.tree.map(lambda n, o: jnp.where(take, n, o), found, best)
      low, high = jnp.where(meets, low, middle), jnp.where(meets, middle, high)
      return low, high, best, tries + 1

    def goes_on(carry):
      macs, tries = carry[2][2], carry[3]
      near = (macs <= target) & (macs >= target - NEAR * self.settings.target)
      return ~near & (tries < self.settings.bisections)

    thetas = {t: jnp.asarray(x, jnp.float32) for t, x in thetas.items()}
    first = at(jnp.zeros(()))
    meets = first[2] <= target
    # Where no tokens are pruned there is nothing to move.
    some = jnp.any(jnp.stack(list(thetas.values())) > 0)
    tries = jnp.where(some, 0, self.settings.bisections)
    low, high = jnp.where(meets, -1.0, 0.0), jnp.where(meets, 0.0, 1.0)
    return jax.lax.while_loop(goes_on, halve, (low, high, first, tries))[2]

  def uncut(
    self,
    state: state_lib.SearchState,
    batches: Mapping | None,
    select: Mapping,
  ) -> tuple[Float[Array, ""], Float[Array, ""]] | None:
    """What paired costs are taken from; None where costs are not paired.

    Metric and MACs after the training of a stage that cuts nothing.
    """
    if not self.paired:
      return None
    nothing = jax.tree.map(jnp.zeros_like, state.masks)
    return self.outcome(state, nothing, state.thetas, batches, select)

  def faded(
    self,
    state: state_lib.SearchState,
    marked: Mapping,
    progress: Float[Array, ""] | float,
  ) -> Mapping:
    """The masks when this much of the stage is over."""
    if self.recipe.fade == "search":
      progress = self.progress(state)
    return masks_lib.soft(state.masks, marked, progress)

  def trial_costs(
    self,
    state: state_lib.SearchState,
    tried: Bool[Array, " m"],
    uncut: tuple[Float[Array, ""], Float[Array, ""]] | None,
    batches: Mapping | None,
    select: Mapping,
    key: Array,
  ) -> Float[Array, " m"]:
    """What a stage of each tried mode would cost now; nothing is committed.

    Measured before any training, or after it for paired costs, so that a
    mode's first cost is of the kind that it learns later. Modes that are not
    tried keep their remembered cost.

    Args:
      state: before the stage.
      tried: modes.
      uncut: see `uncut`; None prices before any training.
      batches: of the stage; None where nothing trains.
      select: validation examples [chunks, c, ...].
      key: of the scores.
    """
    removable = self.removable(state)
    modes = jnp.arange(tried.shape[0])

    def trial(mode):
      selected = modes == mode
      goal = self.goal(state, selected, removable)
      marked, thetas = self.propose(state, selected, goal, select, key)
      metric, macs = self.outcome(state, marked, thetas, None, select)
      immediate = mps.stage_cost(state.metric, metric, state.macs, macs)
      if uncut is None:
        return immediate
      removed, (before, macs_before) = state.macs - macs, uncut
      metric, macs = self.outcome(state, marked, thetas, batches, select)
      cost = mps.stage_cost(before, metric, macs_before, macs)
      gone = macs_before - macs
      return jnp.where(stayed(removed, gone), cost, immediate)

    def cost(mode):
      known = lambda m: state.strategy.cost[m]  # noqa: E731
      return jax.lax.cond(tried[mode], trial, known, mode)

    # Trials that train would hold weights and optimiser for every mode at once.
    if self.side_by_side and uncut is None:
      return jax.vmap(cost)(modes)
    return jax.lax.map(cost, modes)


def stayed(
  removed: Float[Array, ""], gone: Float[Array, ""]
) -> Bool[Array, ""]:
  """Whether the MACs that a cut removed are gone after training as well.

  Token counts drift while weights train: a cost after training would be
  divided by next to nothing, or by MACs that came back.

  Args:
    removed: before any training.
    gone: of them, after it.
  """
  return gone >= STAYED * removed

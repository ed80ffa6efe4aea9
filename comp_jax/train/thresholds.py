"""Moving the thresholds of modes to a goal in MACs, in traced code."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comp_jax.core import groups as groups_lib
from comp_jax.core import importance
from comp_jax.core import masks as masks_lib
from comp_jax.core import pace as pace_lib
from comp_jax.core import prunable as prunable_lib
from comp_jax.recipes import recipe as recipe_lib
from comp_jax.train import settings as settings_lib
from comp_jax.train import state as state_lib
from comp_jax.train import step as step_lib


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Thresholds:
  """How modes lose units and tokens.

  Attributes:
    objective: the model, its token rule and its loss.
    recipe: what to prune, when, by which score.
    settings: numbers.
    allowed: modes that may prune; None for all.
  """

  objective: step_lib.Objective
  recipe: recipe_lib.Recipe
  settings: settings_lib.Settings
  allowed: tuple[str, ...] | None = None

  @property
  def prunable(self) -> prunable_lib.Prunable:
    return self.objective.prunable

  @property
  def ones(self) -> Mapping:
    """The masks of the dense model."""
    return masks_lib.ones(self.prunable.groups)

  @property
  def off(self) -> Mapping:
    """The thresholds of the dense model, of every tower that has one."""
    return {t: jnp.zeros((), jnp.float32) for t in self.prunable.towers}

  @property
  def is_token(self) -> Bool[Array, " m"]:
    """Which modes drop tokens."""
    modes = self.prunable.modes
    return jnp.array([mode in self.prunable.token_modes for mode in modes])

  def macs(self, masks: Mapping | None, counts: Mapping) -> Float[Array, ""]:
    """MACs as a fraction of dense; of a compact model without masks."""
    return self.prunable.macs(masks, counts) / self.settings.dense_macs

  @property
  def modes(self) -> tuple[str, ...]:
    """The modes that may prune: of the recipe's kind, and allowed."""
    prunes = self.recipe.prunes
    known = {
      "params": self.prunable.param_modes,
      "tokens": tuple(self.prunable.token_modes),
      "all": self.prunable.modes,
    }.get(prunes, (prunes,))
    allowed = self.prunable.modes if self.allowed is None else self.allowed
    return tuple(m for m in self.prunable.modes if m in known and m in allowed)

  def removable(self, state: state_lib.SearchState) -> Float[Array, " m"]:
    """What each mode can still remove, as a fraction of dense."""
    may = jnp.array([m in self.modes for m in self.prunable.modes])
    macs = self.prunable.removable(
      state.masks, state.counts, self.objective.policy
    )
    return jnp.where(may, macs, 0.0) / self.settings.dense_macs

  def left(self, state: state_lib.SearchState) -> Float[Array, " m"]:
    """The part of each mode's units or tokens that is left, in [0, 1].

    In MACs, each kind with the other one whole: a unit saves less where fewer
    tokens pass it, but there are as many.
    """
    removable = self.prunable.removable
    entering = {
      tower: jnp.broadcast_to(counts[:, :1], counts.shape)
      for tower, counts in state.counts.items()
    }
    policy = self.objective.policy
    units = removable(state.masks, entering, policy)
    tokens = removable(self.ones, state.counts, policy)
    dense = removable(self.ones, entering, policy)
    now = jnp.where(self.is_token, tokens, units)
    return now / jnp.maximum(dense, 1.0)

  def exhausted(
    self, state: state_lib.SearchState, removable: Float[Array, " m"]
  ) -> Bool[Array, " m"]:
    """Modes that have nothing left to remove (`removable`), or rest.

    Where one is raised per stage, those rest whose step is too small to be
    judged, or to arrive in the stages left.
    """
    empty = removable < settings_lib.EXHAUSTED
    if self.recipe.schedule not in recipe_lib.SINGLE:
      return empty
    settings, pace = self.settings, self.pace(state, removable)
    step = pace.share * removable
    small = empty | (step < settings.least_step * settings.stage_macs)
    rests = jnp.where(jnp.all(small), empty, small)
    if settings.max_stages is None:
      return rests
    # One that rests has no step: it is never the one that all are held to.
    able = jnp.where(rests, 0.0, removable)
    return rests | pace_lib.late(pace, state.macs, able, self.ahead(state))

  def ahead(self, state: state_lib.SearchState) -> Int[Array, ""]:
    """Stages that are left, with the one about to run."""
    return self.settings.max_stages + 1 - state.strategy.stage

  def pace(
    self, state: state_lib.SearchState, removable: Float[Array, " m"]
  ) -> pace_lib.Pace:
    """What a stage may remove, hurried where the search would be late."""
    if self.settings.max_stages is None:
      return self.unhurried
    rooms, ahead = self.rooms(removable), self.ahead(state)
    return pace_lib.hurried(self.unhurried, state.macs, rooms, ahead)

  @property
  def unhurried(self) -> pace_lib.Pace:
    """What a stage may remove where the stages are enough."""
    recipe = self.recipe
    joint = recipe.schedule == "together" and recipe.prunes == "all"
    return dataclasses.replace(self.settings.pace, joint=joint)

  def rooms(self, removable: Float[Array, " m"]) -> Float[Array, " r"]:
    """What is raised alone can remove: each mode, or all those of a kind."""
    if self.recipe.schedule in recipe_lib.SINGLE:
      return removable
    of = lambda kind: jnp.sum(jnp.where(kind, removable, 0.0))  # noqa: E731
    return jnp.stack([of(~self.is_token), of(self.is_token)])

  @property
  def planned(self) -> Float[Array, ""]:
    """Stages that a search at `stage_macs` each takes."""
    settings = self.settings
    planned = (1.0 - settings.target) / jnp.maximum(settings.stage_macs, 1e-9)
    return jnp.maximum(jnp.round(planned), 1.0)

  @property
  def due(self) -> int:
    """Stages that a search runs in any case; its numbers must be concrete.

    Under `fade=search` the MACs of masks that still fade may touch the target
    before the masks are hard.
    """
    return int(self.planned) if self.recipe.fade == "search" else 0

  def progress(self, state: state_lib.SearchState) -> Float[Array, ""]:
    """How much of the planned stages is over after this one, in (0, 1]."""
    return jnp.minimum(state.strategy.stage / self.planned, 1.0)

  def active(self, state: state_lib.SearchState) -> Bool[Array, ""]:
    """Whether this stage has something to do: the target is not reached."""
    above = state.macs > self.settings.target
    if self.recipe.fade == "search":
      above = above | (state.strategy.stage <= self.planned)
    return above

  def share(self, state: state_lib.SearchState) -> Float[Array, ""] | float:
    """The part of the units that meet its goal which a stage marks."""
    if self.recipe.unit_cost == "macs":
      return 1.0
    return masks_lib.gone(self.progress(state))

  def marked_from(self, state: state_lib.SearchState) -> state_lib.SearchState:
    """The state whose units a stage marks: all live ones again under UPop."""
    if self.recipe.fade == "stage":
      return state
    macs = self.macs(self.ones, state.counts)
    return dataclasses.replace(state, masks=self.ones, macs=macs)

  def scores(self, state: state_lib.SearchState, key: Array) -> Mapping:
    """Comparable scores of every unit (CIM, standardised)."""
    return importance.comparable_scores(
      self.recipe.score,
      state.params,
      self.prunable.groups,
      state.statistics.mean,
      state.masks,
      self.recipe.standardise,
      key,
    )

  def mark(
    self,
    state: state_lib.SearchState,
    selected: Bool[Array, " m"],
    need: Float[Array, ""],
    key: Array,
    whole_heads: bool = True,
    share: Float[Array, ""] | float = 1.0,
  ) -> Mapping:
    """1 for the units of the selected modes that go: the lowest-scored ones.

    Args:
      state: current masks, weights, statistics and counts.
      selected: modes that may lose units.
      need: MACs to remove, as a fraction of dense.
      key: for random scores.
      whole_heads: False takes neurons only.
      share: the part of them that goes, by the recipe's `unit_cost`.
    """
    prunable, groups = self.prunable, self.prunable.groups
    scores = self.scores(state, key)

    def eligible(group):
      leaf = lambda tree: groups_lib.leaf(tree, group.name)  # noqa: E731
      free = masks_lib.removable(leaf(scores), leaf(state.masks), group.floor)
      return free & (whole_heads or not group.indivisible)

    flat = lambda tree: masks_lib.flatten(groups, tree)  # noqa: E731
    modes = prunable_lib.group_modes(groups, prunable.modes)
    each = lambda of: flat(  # noqa: E731
      masks_lib.build(groups, lambda g: jnp.full((g.layers, g.units), of(g)))
    )
    ordered = (
      flat(scores),
      flat(masks_lib.build(groups, eligible)) & selected[modes],
    )
    macs = flat(prunable.unit_macs(state.masks, state.counts))
    macs, heads = macs / self.settings.dense_macs, each(lambda g: g.indivisible)
    excess = state.macs - self.settings.target
    marked = masks_lib.mark_lowest(*ordered, macs, heads, need, excess)
    if self.recipe.unit_cost == "upop":
      weight = jnp.where(selected[modes], each(masks_lib.upop_weight), 0.0)
      early = masks_lib.mark_share(*ordered, weight, macs, need, share)
      # In the end neurons make up what the next unit would overshoot.
      marked = jnp.where(share < 1, early, marked)
    return masks_lib.unflatten(groups, marked.astype(jnp.float32))

  def move_thetas(
    self,
    state: state_lib.SearchState,
    masks: Mapping,
    selected: Bool[Array, " m"],
    goal: Float[Array, ""],
    select: Mapping,
    back: Bool[Array, ""] | bool = False,
  ) -> Mapping:
    """Thresholds that bring the MACs to `goal`: raised in the selected towers.

    Where units alone go, thresholds in use follow: the maximum over fewer heads
    is flatter, and at the same theta fewer tokens would fall. They rise only as
    far as the goal asks. `back` lowers those in use, in equal ratios.

    Bisection on the calibration examples, on the rule's own scale. MACs need
    not be monotone in theta, so the end that meets the goal is returned.
    """
    prunable, settings = self.prunable, self.settings
    if not prunable.token_modes:
      return {}
    chosen = {
      tower: selected[prunable.modes.index(mode)]
      for mode, tower in prunable.token_modes.items()
    }
    alone = jnp.any(selected) & ~jnp.any(selected & self.is_token)
    moved = {
      tower: on | ((alone | back) & (state.thetas[tower] > 0))
      for tower, on in chosen.items()
    }
    calibration = jax.tree.map(
      lambda x: x.reshape(-1, *x.shape[2:])[: settings.calibration], select
    )
    known = {
      tower: counts[: settings.calibration * prunable.rows.get(tower, 1)]
      for tower, counts in state.counts.items()
    }
    # The goal as it reads on the calibration examples.
    shift = self.macs(state.masks, known) - state.macs
    most = jnp.max(
      jnp.stack([jnp.max(counts[:, 0]) for counts in known.values()])
    ).astype(jnp.float32)
    policy = self.objective.policy
    highest = policy.highest(most)

    def thetas_at(u):
      def one(tower, old):
        raised = jnp.maximum(old, policy.at(u, most))
        # From where it stands to the highest, in equal ratios.
        followed = old * (highest / jnp.maximum(old, 1e-6)) ** u
        new = jnp.where(chosen[tower], raised, followed)
        new = jnp.where(back, old * u, new)
        return jnp.where(moved[tower], new, old).astype(jnp.float32)

      return {tower: one(tower, old) for tower, old in state.thetas.items()}

    def excess(u):
      execution = self.objective.execution(masks, thetas_at(u))
      counts = prunable.recounted(
        known, moved, state.params, calibration, execution
      )
      return self.macs(masks, counts) - shift - goal

    def halve(bracket, _):
      low, high = bracket
      middle = (low + high) / 2
      meets = excess(middle) <= 0
      return (
        jnp.where(meets, low, middle),
        jnp.where(meets, middle, high),
      ), None

    def search():
      start = (jnp.zeros(()), jnp.ones(()))
      (_, high), _ = jax.lax.scan(
        halve, start, None, length=settings.bisections
      )
      return thetas_at(high)

    some = jnp.any(jnp.stack(list(moved.values())))
    needed = jax.lax.cond(
      some, lambda: excess(jnp.zeros(())) > 0, lambda: jnp.asarray(False)
    )
    # At 0 thresholds stand where they are, or are off (`back`).
    return jax.lax.cond(needed, search, lambda: thetas_at(jnp.zeros(())))

  def propose(
    self,
    state: state_lib.SearchState,
    selected: Bool[Array, " m"],
    goal: Float[Array, ""],
    select: Mapping,
    key: Array,
    back: Bool[Array, ""] | bool = False,
    share: Float[Array, ""] | float = 1.0,
  ) -> tuple[Mapping, Mapping]:
    """Units to mark and thresholds that bring the MACs down to `goal`.

    Where parameters and tokens are selected together, each removes half,
    parameters more where the tokens cannot.

    Args:
      state: before.
      selected: modes that are raised.
      goal: MACs, as a fraction of dense.
      select: validation examples [chunks, c, ...].
      key: of random scores.
      back: see `move_thetas`.
      share: the part of the units to mark that is marked now; see `mark`.
    """
    is_token, removable = self.is_token, self.removable(state)
    total = jnp.maximum(state.macs - goal, 0.0)
    tokens = jnp.any(selected & is_token)
    units = jnp.any(selected & ~is_token)
    by_tokens = jnp.sum(jnp.where(selected & is_token, removable, 0.0))
    room = jnp.sum(jnp.where(selected, removable, 0.0))
    usual = settings_lib.STAGE_SHARE * by_tokens
    # A step that hurries may take as much of the tokens as it takes of all.
    hurried = total * by_tokens / jnp.maximum(room, total)
    most = jnp.where(total > settings_lib.STAGE_SHARE * room, hurried, usual)
    half = jnp.maximum(total / 2, total - most)
    need = jnp.where(units, jnp.where(tokens, half, total), 0.0)
    marked = self.mark(state, selected, need, key, share=share)
    masks = masks_lib.soft(state.masks, marked, 1.0)
    thetas = self.move_thetas(state, masks, selected, goal, select, back)
    return marked, thetas

  def goal(
    self,
    state: state_lib.SearchState,
    selected: Bool[Array, " m"],
    removable: Float[Array, " m"],
  ) -> Float[Array, ""]:
    """The MACs that a stage of the selected modes aims at.

    With `unit_cost=upop` all aim at the final target: `share` sets how much of
    the way a stage goes.
    """
    if self.recipe.fade == "search":
      gone = masks_lib.gone(self.progress(state))
      if self.recipe.unit_cost == "upop":
        gone = 1.0
      goal = 1.0 - gone * (1.0 - self.settings.target)
      return jnp.where(jnp.any(selected), goal, state.macs)
    share = self.pace(state, removable).share
    most = share * jnp.sum(jnp.where(selected, removable, 0.0))
    step = jnp.minimum(self.settings.stage_macs, most)
    return jnp.maximum(self.settings.target, state.macs - step)

"""Many searches in one jit: what tells them apart are arrays.

The members of a sweep share the model, the data and every shape. Their ratio,
seed, rates and constants of MPS are leaves with a leading member axis [s]. On
accelerators that axis is vmapped and split over the devices. On one CPU the
members run one after the other inside the same program: a vmapped branch would
run both of its sides, and there is nothing to win in width.

A member goes through the stages of a run of its own, and as many steps of
fine-tuning, those that its search left included. It is fine-tuned masked, at
its thresholds, for a compact model has shapes of its own; what drift took below
its target it gets back, before its fine-tuning and after it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from comp_jax.train import finite, fit, search
from comp_jax.train import stage as stage_lib
from comp_jax.train import state as state_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
  """One search of a sweep.

  Attributes:
    ratio: fraction of the dense MACs to remove.
    seed: of the order of the data, and of the choices.
    learning_rate: of the search.
    finetune_rate: peak of the masked fine-tuning.
    least_step: of its settings.
    strategy: fields of `mps.Options` that replace the recipe's.
  """

  ratio: float
  seed: int
  learning_rate: float
  finetune_rate: float
  least_step: float
  strategy: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
  """The members over one model, task and recipe.

  Attributes:
    stage: of any member: what differs is replaced.
    num_stages: stages that the distance to a target is cut into.
    plan: lengths of the searches.
    stage_steps: training steps of a stage.
    optimizer: learning rate -> optimiser of the search.
    finetune: of the masked fine-tuning; its rate is replaced.
    microbatches: of a batch of that.
    members: the searches.
    mesh: devices that split the members evenly.
  """

  stage: stage_lib.Stage
  num_stages: int
  plan: search.Plan
  stage_steps: int
  optimizer: Callable[[Any], optax.GradientTransformation]
  finetune: fit.Schedule
  microbatches: int
  members: Sequence[Member]
  mesh: jax.sharding.Mesh

  @property
  def seeds(self) -> tuple[int, ...]:
    """The data orders that the members share."""
    return tuple(dict.fromkeys(member.seed for member in self.members))

  @property
  def in_turn(self) -> bool:
    """Whether the members run one after the other."""
    return self.mesh.size == 1 and self.mesh.devices.flat[0].platform == "cpu"

  def values(self) -> dict[str, Any]:
    """What tells the members apart, as arrays [s].

    `finetune_steps` are those of a search that needed all of its stages.
    """
    ratio = np.array([m.ratio for m in self.members], np.float32)
    rows = [self.seeds.index(m.seed) for m in self.members]
    pick = lambda name: np.array(  # noqa: E731
      [getattr(m, name) for m in self.members], np.float32
    )
    return {
      "target": 1.0 - ratio,
      "stage_macs": ratio / self.num_stages,
      "seed": np.array([m.seed for m in self.members], np.uint32),
      "data": np.array(rows, np.int32),
      "learning_rate": pick("learning_rate"),
      "finetune_rate": pick("finetune_rate"),
      "least_step": pick("least_step"),
      "finetune_steps": np.full(len(ratio), self.finetune.steps, np.float32),
      "strategy": {
        name: np.array([m.strategy[name] for m in self.members], np.float32)
        for name in self.members[0].strategy
      },
    }

  def of(self, values: Mapping[str, Any]) -> stage_lib.Stage:
    """The stage of one member."""
    recipe, settings = self.stage.recipe, self.stage.settings
    return dataclasses.replace(
      self.stage,
      recipe=dataclasses.replace(
        recipe,
        strategy=dataclasses.replace(recipe.strategy, **values["strategy"]),
      ),
      settings=dataclasses.replace(
        settings,
        target=values["target"],
        stage_macs=values["stage_macs"],
        least_step=values["least_step"],
      ),
      optimizer=self.optimizer(values["learning_rate"]),
    )

  def over(self, function: Callable) -> Callable:
    """The function of one member, for all of them."""
    if self.in_turn:
      return lambda *trees: jax.lax.map(lambda row: function(*row), trees)
    return jax.vmap(function)

  def initial(self, params: Mapping, select: Mapping) -> state_lib.SearchState:
    """The dense states [s]: one validation, then a key for each."""
    state = self.stage.initial(params, select, 0)
    seeds = self.values()["seed"]
    spread = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (len(seeds), *x.shape)),
      dataclasses.replace(state, memory=None, key=None),
    )
    keys = jax.vmap(jax.random.key)(seeds)
    begin = self.stage.objective.memory.initial
    memory = jax.vmap(begin, (None, 0))(params, keys)
    return dataclasses.replace(spread, memory=memory, key=keys)

  def probe(self, values: Mapping, states, batches: Mapping, select: Mapping):
    """The states with a first cost for every mode; see `stages`."""

    def probe(v, s):
      return self.of(v).probe(s, _of_order(batches, v), select)

    return self.over(probe)(values, states)

  def settle(self, values: Mapping, states, select: Mapping):
    """The states at their targets."""

    def settle(v, s):
      return self.of(v).settle(s, select, give_back=True)

    return self.over(settle)(values, states)

  def retuned(
    self, values: Mapping, params, masks, thetas, select: Mapping
  ) -> tuple[Mapping, jax.Array]:
    """Thresholds [s] of tuned weights at their targets, and the MACs [s]."""

    def retuned(v, *model):
      moved, _, macs = self.of(v).retuned(*model, select)
      return moved, macs

    return self.over(retuned)(values, params, masks, thetas)

  def stages(
    self,
    values: Mapping,
    states: state_lib.SearchState,
    live: jax.Array,
    batches: Mapping,
    select: Mapping,
    prune: jax.Array,
  ) -> tuple[state_lib.SearchState, state_lib.StageRecord]:
    """One stage of every live member; the others stand still.

    Args:
      values: see `values`.
      states: [s, ...].
      live: [s].
      batches: [orders, steps, b, ...].
      select: validation examples [chunks, c, ...].
      prune: False for a warm-up.
    """

    def one(values, state, live):
      stage = self.of(values)

      def run(state):
        return stage(state, _of_order(batches, values), select, prune)

      return _where(live, run, state)

    return self.over(one)(values, states, live)

  def chunk(
    self,
    values: Mapping,
    tuned: tuple,
    frozen: tuple,
    steps: jax.Array,
    batches: Mapping,
  ) -> tuple[tuple, tuple[jax.Array, jax.Array]]:
    """Steps of members' masked fine-tuning; losses, what `finite` says.

    Args:
      values: see `values`.
      tuned: weights, optimiser states and memories [s, ...].
      frozen: hard masks and thresholds [s, ...].
      steps: of each member [s], up to a chunk; the others stand still.
      batches: [orders, chunk, b, ...].
    """
    objective = dataclasses.replace(
      self.stage.objective, microbatches=self.microbatches
    )

    def one(values, tuned, frozen, steps):
      optimizer = dataclasses.replace(
        self.finetune,
        learning_rate=values["finetune_rate"],
        horizon=values["finetune_steps"],
      ).optimizer()
      execution = objective.execution(*frozen)

      def step(carry, batch):
        return objective.advance(optimizer, carry, batch, execution)

      own = _of_order(batches, values)

      def run(tuned):
        tuned, losses = fit.advance(step, tuned, own, steps)
        return tuned, (losses, finite.everywhere(tuned))

      return _where(steps > 0, run, tuned)

    return self.over(one)(values, tuned, frozen, steps)


def _of_order(batches: Mapping, values: Mapping) -> Mapping:
  """The batches of a member's data order, out of those of all orders."""
  return jax.tree.map(lambda x: x[values["data"]], batches)


def _where(live: jax.Array, run: Callable, state: Any) -> tuple[Any, Any]:
  """What `run` makes of a live member's state; another's stays, and zeros."""
  _, found = jax.eval_shape(run, state)
  nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)
  return jax.lax.cond(live, run, lambda state: (state, nothing), state)

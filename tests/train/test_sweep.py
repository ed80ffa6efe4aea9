"""A sweep's members do what runs of their own would do."""

import dataclasses

import jax
import numpy as np
import pytest

from comp_jax.models import families
from comp_jax.train import (
  checkpoints,
  fit,
  metrics,
  preemption,
  search,
  sharding,
  sweep,
  sweep_loop,
)
from tests.train import kit

PLAN = search.Plan(warmup_stages=1, max_stages=3, save_every=100)
STAGES = 6
SCHEDULE = fit.Schedule(steps=2, chunk=1, learning_rate=1e-3)
MEMBERS = tuple(
  sweep.Member(
    ratio=ratio,
    seed=seed,
    learning_rate=rate,
    finetune_rate=1e-3,
    least_step=least,
    strategy={
      "explore": explore,
      "explore_within": within,
      "scarcity": scarcity,
    },
  )
  for ratio, seed, rate, least, explore, within, scarcity in (
    (0.5, 0, 1e-3, 0.1, 0.2, 100.0, 0.0),
    (0.3, 7, 1e-3, 0.1, 0.2, 100.0, 2.0),
    (0.5, 7, 5e-4, 0.3, 0.9, 1.5, 0.0),
    # Has nothing to remove.
    (0.0, 0, 1e-3, 0.1, 0.2, 100.0, 0.0),
  )
)


def optimizer(rate):
  return fit.adamw(rate, 0.05, 1.0)


def batches(seed):
  def start_at(start):
    index = start
    while True:
      pairs = kit.pairs(kit.STEPS * kit.BATCH, 1000 * seed + index)
      yield {
        k: v.reshape(kit.STEPS, kit.BATCH, *v.shape[1:])
        for k, v in pairs.items()
      }
      index += 1

  return start_at


def tuning(seed):
  return lambda start: (
    {k: v[:1] for k, v in batch.items()} for batch in batches(seed)(50 + start)
  )


def make(devices=1, recipe="comp", members=MEMBERS, cost="eq8"):
  return sweep.Sweep(
    stage=kit.make_stage(recipe, ratio=0.5, stages=STAGES, cost=cost),
    num_stages=STAGES,
    plan=PLAN,
    stage_steps=kit.STEPS,
    optimizer=optimizer,
    finetune=SCHEDULE,
    microbatches=1,
    members=members,
    mesh=sharding.make_mesh(jax.devices()[:devices]),
  )


class Watch(preemption.Watch):
  """Asks to stop once `after` times were asked for."""

  def __init__(self, after=10**6):
    super().__init__()
    self.left = after

  def requested(self):
    self.left -= 1
    return self.left == 0


def run(folder, *, devices=1, watch=None, notes=None, members=MEMBERS):
  return sweep_loop.run(
    make(devices, members=members),
    families.initial_params(kit.spec(), 0),
    jax.device_get(kit.select()),
    batches,
    tuning,
    checkpoints=lambda name: checkpoints.Checkpoints(folder / name),
    watch=watch or Watch(),
    note=lambda phase, rows: None if notes is None else notes.append(phase),
  )


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
  notes, folder = [], tmp_path_factory.mktemp("sweep")
  found, traces = run(folder, notes=notes)
  # A sweep stopped after its search does not search again.
  with checkpoints.Checkpoints(folder / "search") as saved:
    assert saved.latest() == max(len(member.history) for member in found)
  return found, traces, notes


def alone(folder, member):
  """The same search and fine-tuning as a run of its own."""
  stage = kit.make_stage(ratio=member.ratio, stages=STAGES)
  strategy = dataclasses.replace(stage.recipe.strategy, **member.strategy)
  stage = dataclasses.replace(
    stage,
    settings=dataclasses.replace(stage.settings, least_step=member.least_step),
    recipe=dataclasses.replace(stage.recipe, strategy=strategy),
    optimizer=optimizer(member.learning_rate),
  )
  with checkpoints.Checkpoints(folder / "checkpoints") as saved:
    found = search.search(
      stage,
      lambda p, s: stage.initial(p, s, member.seed),
      families.initial_params(kit.spec(), 0),
      PLAN,
      batches(member.seed),
      kit.select(),
      mesh=sharding.make_mesh(jax.devices()[:1]),
      rules=sharding.REPLICATED,
      checkpoints=saved,
      writer=lambda first: metrics.MetricWriter(folder, first),
      watch=Watch(),
    )
  # A model that stays masked gets back what went below its target.
  settle = jax.jit(
    lambda state: stage.settle(state, kit.select(), give_back=True)
  )
  state = settle(found.state)
  found = dataclasses.replace(found, state=state)
  # Steps that the search did not need are trained.
  spare = (PLAN.total - found.stages) * kit.STEPS
  schedule = dataclasses.replace(SCHEDULE, steps=SCHEDULE.steps + spare)
  tuner = schedule.optimizer()
  execution = stage.objective.execution(state.masks, state.thetas)

  @jax.jit
  def tune(carry, batch):
    return stage.objective.advance(tuner, carry, batch, execution)[0]

  tuned = state.params, tuner.init(state.params), state.memory
  source = tuning(member.seed)(0)
  for _ in range(schedule.chunks):
    tuned = tune(tuned, {k: v[0] for k, v in next(source).items()})
  # These weights at the target again.
  thetas, _, macs = jax.jit(stage.retuned)(
    tuned[0], state.masks, state.thetas, kit.select()
  )
  state = dataclasses.replace(state, thetas=thetas, macs=macs)
  return stage, dataclasses.replace(found, state=state), tuned[0]


def hold(member, stage, found, params):
  """Nothing; fails unless a member did what this run of its own did."""
  assert [row["mode"] for row in member.history] == [
    row["mode"] for row in found.history
  ]
  for ours, theirs in zip(member.history, found.history, strict=True):
    for key in ("macs", "metric", "loss", "metric_immediate"):
      np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-5)
  state = found.state
  assert member.macs == pytest.approx(float(state.macs), rel=1e-5)
  jax.tree.map(
    np.testing.assert_array_equal, member.masks, jax.device_get(state.masks)
  )
  validate = jax.jit(stage.validate)
  ours, _ = validate(member.params, member.masks, member.thetas, kit.select())
  theirs, _ = validate(params, state.masks, state.thetas, kit.select())
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)
  assert not member.failed


@pytest.mark.slow
def test_a_member_equals_a_run_of_its_own(swept, tmp_path):
  # The one that differs in everything.
  hold(swept[0][2], *alone(tmp_path, MEMBERS[2]))


@pytest.mark.slow
def test_sixteen_points_are_one_compilation_and_sixteen_runs(tmp_path):
  """Four ratios by four seeds; held against runs of each ratio and seed."""
  members = tuple(
    sweep.Member(
      ratio=ratio,
      seed=seed,
      learning_rate=1e-3,
      finetune_rate=1e-3,
      least_step=0.1,
      strategy={},
    )
    for ratio in (0.3, 0.4, 0.5, 0.6)
    for seed in range(4)
  )
  found, traces = run(tmp_path / "swept", members=members)
  assert traces == {"stage_step": 1, "finetune_step": 1}
  # Orders and keys of their own: no two seeds have one loss.
  losses = {member.history[0]["loss"] for member in found}
  assert len(losses) == 4
  for place in (0, 5, 10, 15):
    folder = tmp_path / str(place)
    hold(found[place], *alone(folder, members[place]))


def test_a_member_that_has_arrived_stands_still(swept):
  still = swept[0][3]
  assert [row["mode"] for row in still.history] == ["warmup"]
  assert still.macs == 1.0
  assert all(np.all(mask == 1) for mask in jax.tree.leaves(still.masks))


def test_one_compilation_serves_all(swept):
  _, traces, notes = swept
  assert traces == {"stage_step": 1, "finetune_step": 1}
  # The member that had nothing to remove trains through its three stages.
  assert notes.count("finetune") == SCHEDULE.steps + 3 * kit.STEPS


def test_fine_tuning_has_microbatches_of_its_own_and_its_steps_alone():
  """A contrastive loss sees the negatives of a microbatch: another number."""
  swept = dataclasses.replace(make(members=MEMBERS[:2]), microbatches=2)
  params, select = families.initial_params(kit.spec(), 0), kit.select()
  states = swept.initial(params, select)
  tuner = SCHEDULE.optimizer()
  tuned = (states.params, jax.vmap(tuner.init)(states.params), states.memory)
  batch = next(batches(0)(0))
  stacked = jax.tree.map(lambda x: np.stack([x, x]), batch)
  after, (losses, _) = jax.jit(swept.chunk)(
    swept.values(),
    tuned,
    (states.masks, states.thetas),
    np.array([1, 0]),
    stacked,
  )
  alone = dataclasses.replace(swept.stage.objective, microbatches=2)
  first = lambda tree: jax.tree.map(lambda x: x[0], tree)  # noqa: E731
  execution = alone.execution(first(states.masks), first(states.thetas))
  step = jax.jit(lambda state, one: alone.advance(tuner, state, one, execution))
  _, loss = step(first(tuned), first(batch))
  np.testing.assert_allclose(losses[0], [loss, 0], rtol=1e-5)
  assert not losses[1].any()
  # The optimiser's own count of its steps.
  counts = [x for x in jax.tree.leaves(after[1]) if x.dtype == np.int32]
  assert counts and all(count.tolist() == [1, 0] for count in counts)
  # The other stands still.
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x[1], y[1]),
    after[0],
    states.params,
  )


def test_a_member_that_diverges_is_named_and_the_others_go_on(swept, tmp_path):
  spoilt = list(MEMBERS)
  spoilt[0] = dataclasses.replace(MEMBERS[0], learning_rate=np.inf)
  spoilt[2] = dataclasses.replace(MEMBERS[2], finetune_rate=np.inf)
  found, _ = run(tmp_path, members=spoilt)
  assert found[0].failed == "pruning: the loss is not finite at step 1"
  assert [row["mode"] for row in found[0].history] == ["warmup"]
  # After an update that no loss of its chunk has seen.
  assert found[2].failed.startswith("finetune: weights")
  assert found[2].failed.endswith("not finite after step 0")
  for index in (1, 3):
    assert not found[index].failed
    jax.tree.map(
      np.testing.assert_array_equal, found[index].params, swept[0][index].params
    )


@pytest.mark.parametrize(
  ("recipe", "cost"),
  [
    ("upop", "eq8"),
    ("sjp_tokens_first", "eq8"),
    ("comp", "paired"),
    ("comp_lookahead", "paired"),
  ],
)
def test_other_recipes_and_costs_can_be_swept(recipe, cost):
  swept = make(recipe=recipe, cost=cost)
  params = families.initial_params(kit.spec(), 0)
  values, select = swept.values(), kit.select()
  states = jax.eval_shape(swept.initial, params, select)
  orders = len(swept.seeds)
  stacked = jax.tree.map(lambda x: np.stack([x] * orders), next(batches(0)(0)))
  after, _ = jax.eval_shape(
    swept.stages, values, states, np.ones(4, bool), stacked, select, True
  )
  assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(
    lambda x: x.shape, states
  )


@pytest.mark.slow
def test_devices_share_the_members(swept, tmp_path):
  found, traces = run(tmp_path, devices=2)
  assert traces["stage_step"] == 1
  for one, two in zip(swept[0], found, strict=True):
    assert [row["mode"] for row in one.history] == [
      row["mode"] for row in two.history
    ]
    assert one.macs == pytest.approx(two.macs, rel=1e-5)


@pytest.mark.slow
def test_a_stopped_sweep_goes_on(swept, tmp_path):
  """Stopped in the search, then in the fine-tuning."""
  for after in (2, 3):
    with pytest.raises(fit.Interrupted):
      run(tmp_path, watch=Watch(after))
  found, _ = run(tmp_path)
  for whole, resumed in zip(swept[0], found, strict=True):
    jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
    strip = lambda rows: [{**row, "seconds": 0} for row in rows]  # noqa: E731
    assert strip(whole.history) == strip(resumed.history)

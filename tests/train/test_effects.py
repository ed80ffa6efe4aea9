"""What a cut does: validation, and paired costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.tasks import retrieval
from comp_jax.train import compiled, effects, search
from tests.train import kit

ON, OFF = jnp.asarray(True), jnp.asarray(False)
TWO = ("vision_params", "language_params")


def paired_stage(recipe="comp"):
  return kit.make_stage(recipe, allowed=TWO, cost="paired")


@pytest.fixture(scope="module")
def paired():
  """A stage that learns paired costs, and its probe: compiled once for all."""
  stage = paired_stage()
  return compiled.Compiled(stage), jax.jit(stage.probe)


@pytest.fixture(scope="module")
def warm(paired):
  """The state after a warm-up stage, its record, and the next batches."""
  run, _ = paired
  source = kit.batches(0)
  return *run(initial(), next(source), kit.select(), OFF), next(source)


def initial():
  return kit.initial(paired_stage())


def test_a_metric_of_comparisons_hides_no_diverged_output():
  stage = kit.make_stage()
  metrics = retrieval.TASK.metrics
  for name in ("loss", "recall"):
    stage = dataclasses.replace(stage, metric=metrics[name])
    state = kit.initial(stage)
    assert np.isfinite(state.metric), name
    broken = jax.tree.map(lambda x: x * jnp.nan, state.params)
    validate = jax.jit(stage.validate)
    metric, _ = validate(broken, stage.ones, stage.off, kit.select())
    assert np.isnan(metric), name


def test_a_paired_cost_is_against_the_same_steps_without_the_cut(paired, warm):
  (run, _), (state, warm_up, batches) = paired, warm
  stage, select = paired_stage(), kit.select()
  # A warm-up is the steps without the cut.
  np.testing.assert_allclose(warm_up.metric_uncut, warm_up.metric, rtol=1e-6)
  # Tokens that are dropped already come and go while the weights train.
  tokens = jnp.asarray([m == "vision_tokens" for m in stage.prunable.modes])
  goal = state.macs - 0.1
  propose, validate = jax.jit(stage.propose), jax.jit(stage.validate)
  thetas = propose(state, tokens, goal, select, state.key)[1]
  metric, counts = validate(state.params, state.masks, thetas, select)
  state = dataclasses.replace(
    state,
    thetas=thetas,
    metric=metric,
    counts=counts,
    macs=stage.macs(state.masks, counts),
  )
  uncut, _ = run(state, batches, select, OFF)
  after, record = run(state, batches, select, ON)
  np.testing.assert_allclose(record.metric_uncut, uncut.metric, rtol=1e-6)
  row = search.stage_row(1, jax.device_get(record), stage, False, 0.0)
  assert row["metric_uncut"] == float(record.metric_uncut)
  row = search.stage_row(0, jax.device_get(warm_up), stage, True, 0.0)
  assert row["metric_uncut"] is None
  assert float(uncut.metric) != float(record.metric_before)
  assert float(uncut.macs) != float(record.macs_before)
  paired_cost = (uncut.metric - after.metric) / (uncut.macs - after.macs)
  np.testing.assert_allclose(record.cost, paired_cost, rtol=1e-3)
  assert float(after.strategy.cost[int(record.mode)]) == float(record.cost)
  assert run.compilations == 1


def test_first_costs_are_of_the_kind_that_is_learnt(paired, warm):
  """Trial steps are trained too: a mode costs what its stage then costs."""
  (run, probe), (state, _, batches) = paired, warm
  probed = probe(state, batches, kit.select())
  kit.same_bits(probed.params, state.params)
  _, record = run(probed, batches, kit.select(), ON)
  first = float(probed.strategy.cost[int(record.mode)])
  assert abs(first - float(record.immediate_cost)) > 0.1
  np.testing.assert_allclose(first, record.cost, rtol=1e-3)


def test_trials_side_by_side_cost_what_they_cost_in_turn():
  stage, select = kit.make_stage(ratio=0.4), kit.select()
  state, batches = kit.initial(stage), next(kit.batches(0))
  # At twice the weights every trial moves the metric: no cost is a difference
  # of two that are next to equal, which rounding would decide.
  params = jax.tree.map(lambda x: 2 * x, state.params)
  metric, _ = jax.jit(stage.validate)(params, state.masks, stage.off, select)
  state = dataclasses.replace(state, params=params, metric=metric)
  wide = dataclasses.replace(stage, side_by_side=True)
  tried = jnp.array([True, True, True, False])

  def costs(stage):
    found = jax.jit(stage.trial_costs, static_argnums=2)(
      state, tried, None, batches, select, jax.random.key(1)
    )
    return np.asarray(found)

  np.testing.assert_allclose(costs(wide), costs(stage), rtol=1e-4)
  assert costs(wide)[-1] == 0 and (costs(wide)[:-1] != 0).all()


def test_lookahead_tries_and_learns_paired_costs(paired, warm):
  (_, probe), (state, _, batches) = paired, warm
  trained = np.asarray(probe(state, batches, kit.select()).strategy.cost)
  stage = paired_stage("comp_lookahead")
  run = compiled.Compiled(stage)
  _, record = run(state, batches, kit.select(), ON)
  mode = int(record.mode)
  (other,) = {stage.prunable.modes.index(m) for m in TWO} - {mode}
  np.testing.assert_allclose(record.costs[other], trained[other], rtol=1e-3)
  np.testing.assert_allclose(record.cost, trained[mode], rtol=1e-3)
  np.testing.assert_allclose(record.costs[mode], trained[mode], rtol=1e-3)


def test_a_trial_whose_macs_came_back_is_priced_before_its_training(
  paired, warm, monkeypatch
):
  (_, probe), (state, _, batches) = paired, warm
  mode = paired_stage().prunable.modes.index("language_params")

  def first(probe):
    return probe(state, batches, kit.select()).strategy.cost[mode]

  plain = kit.make_stage(allowed=TWO, cost="immediate")
  before = first(jax.jit(plain.probe))
  assert first(probe) != before
  monkeypatch.setattr(effects, "STAYED", 10.0)
  anew = dataclasses.replace(paired_stage())  # Not what is traced already.
  np.testing.assert_allclose(first(jax.jit(anew.probe)), before, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["round_robin", "together"])
def test_who_learns_no_cost_trains_no_twin(schedule):
  stage = kit.make_stage(cost="paired")
  assert stage.paired
  recipe = dataclasses.replace(stage.recipe, schedule=schedule)
  assert not dataclasses.replace(stage, recipe=recipe).paired

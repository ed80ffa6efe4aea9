"""The stage: goals are met, floors hold, nothing is traced twice."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import masks as masks_lib
from comp_jax.core import mps
from comp_jax.train import compiled, effects
from comp_jax.train import search as search_lib
from tests.train import kit

ON, OFF = jnp.asarray(True), jnp.asarray(False)


@pytest.fixture(scope="module")
def search():
  """A whole search: the stage, its states and its records."""
  stage = kit.make_stage(ratio=0.3)
  run = compiled.Compiled(stage)
  state = kit.initial(stage)
  source, select = kit.batches(0), kit.select()
  states, records = [state], []
  state, record = run(state, next(source), select, OFF)
  states.append(state)
  records.append(record)
  batches = next(source)
  state = jax.jit(stage.probe)(state, batches, select)
  for _ in range(14):
    state, record = run(state, batches, select, ON)
    batches = next(source)
    states.append(state)
    records.append(record)
  return stage, states, records, run


def test_a_search_is_traced_once(search):
  assert search[3].compilations == 1


def test_warm_up_trains_and_prunes_nothing(search):
  _, states, records, _ = search
  assert records[0].mode == -1 and not records[0].active
  assert float(states[1].macs) == pytest.approx(1.0, abs=1e-6)
  jax.tree.map(lambda m: np.testing.assert_array_equal(m, 1), states[1].masks)
  before, after = states[0].params, states[1].params
  kernel = lambda p: p["vision_projection"]["kernel"]  # noqa: E731
  assert np.abs(np.asarray(kernel(before) - kernel(after))).max() > 0
  assert int(states[1].strategy.stage) == 1


@pytest.mark.parametrize("mode", ["vision_params", "language_params"])
def test_a_parameter_stage_lands_on_its_goal_within_a_neuron(search, mode):
  stage, states, _, _ = search
  state = states[1]
  selected = jnp.asarray([m == mode for m in stage.prunable.modes])
  goal = stage.goal(state, selected, stage.removable(state))
  marked, thetas = jax.jit(stage.propose)(
    state, selected, goal, kit.select(), state.key
  )
  assert float(thetas["vision"]) == float(state.thetas["vision"])
  unit_macs = stage.prunable.unit_macs(state.masks, state.counts)
  tower = "vision" if mode == "vision_params" else "text"
  neuron = float(jnp.max(unit_macs[tower]["mlp"])) / stage.settings.dense_macs
  macs = float(
    stage.macs(masks_lib.soft(state.masks, marked, 1.0), state.counts)
  )
  assert float(goal) - neuron - 1e-5 <= macs <= float(goal) + 1e-5
  other = "text" if tower == "vision" else "vision"
  assert max(float(m.max()) for m in jax.tree.leaves(marked[other])) == 0


def test_removed_units_stay_removed_and_floors_hold(search):
  stage, states, _, _ = search
  for before, after in zip(states[:-1], states[1:], strict=True):
    jax.tree.map(
      lambda b, a: np.testing.assert_array_equal(np.minimum(b, a), a),
      before.masks,
      after.masks,
    )
  for group in stage.prunable.groups:
    tower, name = group.name.split("/")
    left = np.asarray(states[-1].masks[tower][name]).sum(axis=-1)
    assert (left >= group.floor).all()


def test_the_search_reaches_its_target_and_then_stands_still(search):
  stage, states, records, _ = search
  assert float(states[-1].macs) <= stage.settings.target + 2e-3
  if not bool(records[-1].active):
    kit.same_bits(states[-1].params, states[-2].params)


def test_thresholds_never_fall(search):
  _, states, _, _ = search
  for before, after in zip(states[:-1], states[1:], strict=True):
    for tower, theta in before.thetas.items():
      assert float(after.thetas[tower]) >= float(theta)


@pytest.mark.parametrize("mode", ["vision_tokens", "language_tokens"])
def test_a_token_stage_meets_its_goal(mode):
  stage = kit.make_stage(allowed=(mode,), ratio=0.1, stages=1)
  state = kit.initial(stage)
  selected = jnp.asarray([m == mode for m in stage.prunable.modes])
  goal = stage.goal(state, selected, stage.removable(state))
  marked, thetas = jax.jit(stage.propose)(
    state, selected, goal, kit.select(), state.key
  )
  assert max(float(m.max()) for m in jax.tree.leaves(marked)) == 0
  validate = jax.jit(stage.validate)
  metric, counts = validate(state.params, state.masks, thetas, kit.select())
  macs = float(stage.macs(state.masks, counts))
  assert macs <= float(goal) + 1e-6
  # The smallest threshold that does: a little less of it does not.
  tower = stage.prunable.token_modes[mode]
  less = {**thetas, tower: 0.9 * thetas[tower]}
  _, counts = validate(state.params, state.masks, less, kit.select())
  assert float(stage.macs(state.masks, counts)) > float(goal)


def test_thresholds_in_use_follow_when_units_go():
  """Fewer heads score more evenly: the same theta could keep more tokens."""
  stage = kit.make_stage(ratio=0.3)
  modes, select = stage.prunable.modes, kit.select()
  state = kit.initial(stage)
  tokens, params = (
    jnp.asarray([m == mode for m in modes])
    for mode in ("vision_tokens", "vision_params")
  )
  propose, validate = jax.jit(stage.propose), jax.jit(stage.validate)
  thetas = propose(state, tokens, state.macs - 0.1, select, state.key)[1]
  assert float(thetas["vision"]) > 0
  state = dataclasses.replace(state, thetas=thetas)
  macs = stage.macs(
    state.masks, validate(state.params, state.masks, thetas, select)[1]
  )
  move_thetas = jax.jit(stage.move_thetas)
  # The goal is met: nothing moves.
  same = move_thetas(state, state.masks, params, macs + 1e-3, select)
  assert {t: float(v) for t, v in same.items()} == {
    t: float(v) for t, v in thetas.items()
  }
  # It is not: the threshold in use rises until it is, the other stays off.
  goal = macs - 0.05
  new = move_thetas(state, state.masks, params, goal, select)
  assert float(new["vision"]) > float(thetas["vision"])
  assert float(new["text"]) == 0.0
  counts = validate(state.params, state.masks, new, select)[1]
  reached = float(stage.macs(state.masks, counts))
  assert float(goal) - 0.05 < reached <= float(goal) + 1e-4
  # Where tokens are selected too, they alone do: others stay where they are.
  in_use = dict.fromkeys(thetas, thetas["vision"])
  state = dataclasses.replace(state, thetas=in_use)
  both = move_thetas(state, state.masks, params | tokens, goal, select)
  assert float(both["vision"]) > float(in_use["vision"])
  assert float(both["text"]) == float(in_use["text"])


def test_probe_commits_nothing():
  stage = kit.make_stage()
  state = kit.initial(stage)
  probed = jax.jit(stage.probe)(state, next(kit.batches(0)), kit.select())
  assert np.isfinite(np.asarray(probed.strategy.cost)).all()
  assert len(set(np.asarray(probed.strategy.cost).tolist())) > 1
  kit.same_bits(dataclasses.replace(probed, strategy=state.strategy), state)


def _stayed(record) -> float:
  """The part of the MACs removed by a stage that its training left so."""
  lost = record.metric_before - record.metric_immediate
  removed = lost / record.immediate_cost
  return float((record.macs_before - record.macs) / removed)


def test_a_mode_learns_what_its_stage_cost(search):
  _, states, records, _ = search
  first_visits = 0
  # The probe lies between the warm-up and the first stage.
  for state, after, record in zip(
    states[1:-1], states[2:], records[1:], strict=True
  ):
    mode = int(record.mode)
    if record.active and not state.strategy.visited[mode]:
      first_visits += 1
      stayed = _stayed(record) >= effects.STAYED
      cost = record.cost if stayed else record.immediate_cost
      assert float(after.strategy.cost[mode]) == float(cost)
  assert first_visits


@pytest.fixture(scope="module")
def trained():
  """A stage of vision tokens before it learns what that cost."""
  stage = kit.make_stage(allowed=("vision_tokens",), ratio=0.3)
  state, batches, select = (
    kit.initial(stage),
    next(kit.batches(0)),
    kit.select(),
  )
  cut = jax.jit(stage.cut)(state, batches, select, ON)
  return stage, *jax.jit(stage.advance)(cut, batches), select


def test_macs_that_came_back_are_not_divided_by(trained, monkeypatch):
  """Token counts drift while weights train: Eq. 8 would divide by little."""
  monkeypatch.setattr(effects, "STAYED", 10.0)
  stage, *cut = trained
  anew = dataclasses.replace(stage)  # Not what is traced already.
  after, record = jax.jit(anew.learn)(*cut)
  assert _stayed(record) < 10.0 and record.cost != record.immediate_cost
  assert after.strategy.cost[int(record.mode)] == record.immediate_cost


def test_the_immediate_cost_is_learnt_where_it_is_asked_for(trained):
  stage, *cut = trained
  settings = dataclasses.replace(stage.settings, cost="immediate")
  stage = dataclasses.replace(stage, settings=settings)
  after, record = jax.jit(stage.learn)(*cut)
  assert record.active and record.cost != record.immediate_cost
  assert after.strategy.cost[int(record.mode)] == record.immediate_cost


def test_a_search_that_fades_throughout_runs_all_its_stages():
  """Masks that still fade may touch the target before they are hard."""
  stage = kit.make_stage("upop", ratio=0.5, stages=4)
  assert stage.due == 4 and kit.make_stage(stages=4).due == 0
  arrived = {"macs_fraction": 0.5, "mode": "vision_params"}
  warm = {"macs_fraction": 1.0, "mode": "warmup"}
  for ran in range(1, 6):
    history = [warm, *[arrived] * ran]
    assert search_lib.finished(history, 0.5, stage.due) == (ran >= 4)
    assert search_lib.finished(history, 0.5)
  state = kit.initial(stage)
  state = dataclasses.replace(state, macs=jnp.float32(0.4))
  for number, runs in ((1, True), (4, True), (5, False)):
    strategy = dataclasses.replace(
      state.strategy, stage=jnp.asarray(number, state.strategy.stage.dtype)
    )
    now = dataclasses.replace(state, strategy=strategy)
    assert bool(stage.active(now)) == runs
    assert not kit.make_stage().active(now)


def test_what_is_left_of_a_kind_does_not_depend_on_the_other():
  stage = kit.make_stage()
  dense = kit.weightless(stage, {"vision": [17], "text": [9, 5]})
  modes = stage.prunable.modes
  left = lambda s: dict(zip(modes, np.asarray(stage.left(s)), strict=True))  # noqa: E731
  assert left(dense) == dict.fromkeys(modes, 1.0)
  # Half of the neurons above the floor, all heads: two kinds of unit.
  group = next(g for g in stage.prunable.groups if g.name == "vision/mlp")
  mlp = np.ones((group.layers, group.units), np.float32)
  mlp[:, : (group.units - group.floor) // 2] = 0
  masks = {**dense.masks, "vision": {**dense.masks["vision"], "mlp": mlp}}
  # And of the image's pool of 16, 8 after each layer.
  counts = np.array(dense.counts["vision"])
  counts[:, 1:] = 9
  fewer = dataclasses.replace(dense, masks=masks)
  found = left(fewer)
  assert 0.5 < found["vision_params"] < 1.0
  assert found["vision_tokens"] == 1.0
  both = dataclasses.replace(
    fewer, counts={**dense.counts, "vision": jnp.asarray(counts)}
  )
  # Each unit saves less now, but there are as many.
  assert left(both)["vision_params"] == found["vision_params"]
  assert 0.3 < left(both)["vision_tokens"] < 0.6
  assert left(both)["language_params"] == left(both)["language_tokens"] == 1.0


@pytest.mark.parametrize(
  ("scarcity", "chosen"), [(0.0, "vision_params"), (2.0, "language_params")]
)
def test_scarcity_leaves_a_mode_of_which_much_is_gone(scarcity, chosen):
  stage = kit.make_stage()
  strategy = mps.Options(explore=0.0, scarcity=scarcity)
  recipe = dataclasses.replace(stage.recipe, strategy=strategy)
  stage = dataclasses.replace(stage, recipe=recipe)
  dense = kit.weightless(stage, {"vision": [17], "text": [9, 5]})
  vision = jax.tree.map(jnp.zeros_like, dense.masks["vision"])
  known = {"vision_params": 1.0, "language_params": 1.5}
  costs = jnp.array([known.get(m, 9.0) for m in stage.prunable.modes])
  state = dataclasses.replace(
    dense,
    masks={**dense.masks, "vision": vision},
    strategy=dataclasses.replace(dense.strategy, cost=costs),
  )
  live = jnp.zeros(costs.shape, bool)
  mode, _, selected = stage.choose(state, live, jax.random.key(0))
  assert stage.prunable.modes[int(mode)] == chosen
  assert np.flatnonzero(selected) == [mode]


@pytest.mark.slow
def test_lookahead_chooses_by_trial_steps_of_its_own_state():
  three = ("vision_params", "language_params", "vision_tokens")
  stage = kit.make_stage("comp_lookahead", ratio=0.4, allowed=three)
  run, probe = compiled.Compiled(stage), jax.jit(stage.probe)
  source, select = kit.batches(0), kit.select()
  state, _ = run(kit.initial(stage), next(source), select, OFF)
  assert not np.asarray(state.strategy.cost).any()
  for batches in itertools.islice(source, 4):
    expected = np.asarray(probe(state, batches, select).strategy.cost)
    state, record = run(state, batches, select, ON)
    live = ~np.asarray(record.exhausted)
    costs = np.asarray(record.costs)
    np.testing.assert_allclose(costs[live], expected[live], rtol=1e-3)
    # Exhausted modes (the one that may not prune) are not tried.
    assert costs[-1] == 0 and not live[-1]
    mode = int(record.mode)
    np.testing.assert_allclose(record.immediate_cost, costs[mode], rtol=1e-3)
    cheapest = np.flatnonzero(live)[np.argmin(costs[live])]
    assert record.explored or mode == cheapest
  assert run.compilations == 1


@pytest.mark.parametrize("recipe", ["uniform", "magnitude", "random"])
def test_baselines_split_the_macs_between_units_and_tokens(recipe):
  stage = kit.make_stage(recipe, ratio=0.2, stages=1)
  state = kit.initial(stage)
  ones = jnp.ones(len(stage.prunable.modes), bool)
  goal = stage.goal(state, ones, stage.removable(state))
  marked, thetas = jax.jit(stage.propose)(
    state, ones, goal, kit.select(), state.key
  )
  assert float(thetas["vision"]) == float(thetas["text"]) > 0
  masks = masks_lib.soft(state.masks, marked, 1.0)
  by_units = 1.0 - float(stage.macs(masks, state.counts))
  assert by_units == pytest.approx((1.0 - float(goal)) / 2, abs=5e-3)
  if recipe == "uniform":
    left = np.asarray(masks["vision"]["mlp"]).mean(axis=-1)
    assert np.ptp(left) < 0.05


def test_searches_are_vmapped():
  """Two members with weights of their own raise thresholds as if alone."""
  stage = kit.make_stage()
  select = kit.select()
  first = kit.initial(stage)
  params = jax.tree.map(lambda x: 1.1 * x, first.params)
  members = [first, dataclasses.replace(first, params=params)]
  modes = jnp.arange(len(stage.prunable.modes))

  def propose(state, mode):
    goal = jnp.asarray(0.93)
    return stage.propose(state, modes == mode, goal, select, state.key)

  chosen = jnp.asarray([0, 2])
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *members)
  together = jax.jit(jax.vmap(propose))(stacked, chosen)
  for index, member in enumerate(members):
    alone = jax.jit(propose)(member, chosen[index])
    jax.tree.map(
      lambda t, a, i=index: np.testing.assert_allclose(t[i], a, atol=1e-5),
      together,
      alone,
    )

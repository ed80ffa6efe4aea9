"""What a task remembers travels with the loops: resumed, sharded, renewed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core.execution import DENSE
from comp_jax.models import families
from comp_jax.tasks import library, task
from comp_jax.train import (
  checkpoints,
  compiled,
  fit,
  metrics,
  sharding,
  step,
)
from tests.models import model_kit
from tests.train import kit, test_search, test_sweep

OPTIONS = task.Options(queue=16, momentum=0.9, ramp=4)
JOINT = model_kit.spec(readout="joint")
SCHEDULE = fit.Schedule(steps=4, chunk=1, learning_rate=1e-2)


def _batches(start):
  for index in range(start, 10):
    rng = np.random.default_rng(index)
    ids, mask = model_kit.texts(rng, 8)
    batch = {
      "image": rng.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8),
      "text_ids": ids,
      "text_mask": mask,
      "concept": rng.integers(0, 6, 8).astype(np.int32),
    }
    yield {name: value[None] for name, value in batch.items()}


def _fit(
  folder,
  *,
  devices=1,
  rules=sharding.REPLICATED,
  watch=None,
  schedule=SCHEDULE,
  batches=_batches,
):
  """Weights after the schedule, and the state of the last checkpoint."""
  todo = library.of(JOINT, OPTIONS)
  objective = step.Objective(
    prunable=families.prunable(JOINT), loss=todo.loss, memory=todo.memory(JOINT)
  )
  params = jax.tree.map(jnp.asarray, model_kit.params(JOINT))
  memory = objective.memory.initial(params, jax.random.key(0))
  folder.mkdir(parents=True, exist_ok=True)
  with checkpoints.Checkpoints(folder / "checkpoints") as saved:
    fit.fit(
      objective,
      params,
      memory,
      DENSE,
      schedule,
      batches,
      mesh=sharding.make_mesh(jax.devices()[:devices]),
      rules=rules,
      checkpoints=saved,
      writer=lambda first: metrics.MetricWriter(folder, first),
      watch=watch or test_search.Watch(),
      what="train",
    )
    like = (params, schedule.optimizer().init(params), memory)
    return saved.restore_latest(like)[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  return _fit(tmp_path_factory.mktemp("whole"))


def test_training_resumes_with_the_same_bits(whole, tmp_path):
  with pytest.raises(fit.Interrupted):
    _fit(tmp_path, watch=test_search.Watch(2))
  kit.same_bits(_fit(tmp_path), whole)
  memory = whole[2]
  assert int(memory["step"]) == 4 and int(memory["pointer"]) == 0
  assert np.all(np.asarray(memory["concept"]) >= 0)


def test_a_last_chunk_has_the_steps_that_are_left(tmp_path):
  """Three steps, and a cosine over three, however they are cut."""

  def in_pairs(start):
    each = _batches(2 * start)
    for first, second in zip(each, each, strict=False):
      yield {k: np.concatenate([first[k], second[k]]) for k in first}

  single = dataclasses.replace(SCHEDULE, steps=3)
  pairs = dataclasses.replace(single, chunk=2)
  assert [pairs.taken(index) for index in range(3)] == [2, 1, 0]
  ours = _fit(tmp_path / "two", schedule=pairs, batches=in_pairs)
  theirs = _fit(tmp_path / "one", schedule=single)
  assert int(ours[2]["step"]) == 3
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    ours[:2],
    theirs[:2],
  )


def test_training_gives_its_buffers_away(tmp_path, monkeypatch):
  """Weights, moments and memory: none is held twice."""
  call, given = compiled.Compiled.__call__, []

  def spied(run, state, *others):
    result = call(run, state, *others)
    given.append([x.is_deleted() for x in jax.tree.leaves(state)])
    return result

  monkeypatch.setattr(compiled.Compiled, "__call__", spied)
  _fit(tmp_path)
  assert len(given) == SCHEDULE.chunks
  assert all(map(all, given))


def test_negatives_and_queues_are_those_of_the_whole_batch(whole, tmp_path):
  """Whatever the number of devices, and however the memory is placed."""
  other = _fit(tmp_path, devices=4, rules=sharding.FULLY_SHARDED)
  for name in ("image", "text", "concept", "pointer"):
    np.testing.assert_allclose(
      other[2][name], whole[2][name], rtol=0, atol=1e-5
    )
  head = lambda state: state[0]["head"]["kernel"]  # noqa: E731
  np.testing.assert_allclose(head(other), head(whole), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_search_remembers_and_resumes_with_the_same_bits(tmp_path):
  """Two towers, with the momentum contrast of CLIP's retrieval."""
  todo = library.of(kit.spec(), OPTIONS)
  stage = kit.make_stage(ratio=0.3)
  objective = dataclasses.replace(
    stage.objective, loss=todo.loss, memory=todo.memory(kit.spec())
  )
  stage = dataclasses.replace(stage, objective=objective)
  found = test_search.run(tmp_path / "whole", stage=stage)
  with pytest.raises(fit.Interrupted):
    test_search.run(tmp_path / "parts", stage=stage, watch=test_search.Watch(2))
  resumed = test_search.run(tmp_path / "parts", stage=stage)
  kit.same_bits(resumed.state, found.state)
  memory = found.state.memory
  assert int(memory["step"]) == found.stages * kit.STEPS
  # The twins follow the weights, masked or not, and stay behind.
  twin = memory["twins"]["vision_projection"]["kernel"]
  weight = found.state.params["vision_projection"]["kernel"]
  start = families.initial_params(kit.spec(), 0)["vision_projection"]["kernel"]
  assert 0 < np.max(np.abs(twin - start)) < np.max(np.abs(weight - start))


def test_every_member_of_a_sweep_remembers_for_itself():
  """Shapes alone: that the programs of a sweep carry it along."""
  group = test_sweep.make()
  todo = library.of(kit.spec(), OPTIONS)
  objective = dataclasses.replace(
    group.stage.objective, loss=todo.loss, memory=todo.memory(kit.spec())
  )
  stage = dataclasses.replace(group.stage, objective=objective)
  group = dataclasses.replace(group, stage=stage)
  params = families.initial_params(kit.spec(), 0)
  states = jax.eval_shape(group.initial, params, kit.select())
  members = len(group.members)
  assert states.memory["image"].shape == (members, 16, 8)
  assert states.memory["key"].shape == (members,)
  orders = len(group.seeds)
  batch = jax.tree.map(lambda x: jnp.stack([x] * orders), next(kit.batches(0)))
  live, values = jnp.ones(members, bool), group.values()
  after, _ = jax.eval_shape(
    group.stages, values, states, live, batch, kit.select(), live[0]
  )
  same = lambda a, b: jax.tree.map(  # noqa: E731
    lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), a, b
  )
  assert all(jax.tree.leaves(same(after, states)))
  moments = jax.eval_shape(jax.vmap(SCHEDULE.optimizer().init), states.params)
  tuned = states.params, moments, states.memory
  frozen = states.masks, states.thetas
  steps = jnp.full(members, kit.STEPS)
  again, found = jax.eval_shape(
    group.chunk, values, tuned, frozen, steps, batch
  )
  losses, sound = found
  assert all(jax.tree.leaves(same(again, tuned)))
  assert losses.shape == (members, kit.STEPS) and sound.shape == (members,)

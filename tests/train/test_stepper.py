"""Stages on the devices: buffers are given away, nothing compiles twice."""

import jax
import jax.numpy as jnp
import pytest

from comp_jax.models import families
from comp_jax.train import sharding, stepper
from tests.train import kit, test_search

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def programs():
  """Grows by one for each program that XLA makes, or reads from its cache."""
  made = []

  def listen(event, *_, **__):
    if event == COMPILED:
      made.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield made
  jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("parts", [1, kit.STEPS])
def test_a_stage_gives_its_buffers_away_and_compiles_once(parts, programs):
  stage = test_search.make_stage()
  start = lambda p, s: stage.initial(p, s, 0)  # noqa: E731
  mesh, select = sharding.make_mesh(jax.devices()[:1]), kit.select()
  params = families.initial_params(kit.spec(), 0)
  abstract = jax.eval_shape(start, params, select)
  run = stepper.Stepper(
    stage, parts, mesh, sharding.REPLICATED, abstract, select
  )
  state = jax.jit(start, out_shardings=run.placed)(params, select)
  select = jax.device_put(select, sharding.batch_sharding(mesh, 1))

  def source():
    for batches in test_search.batches_of(0):
      size = kit.STEPS // parts
      for part in range(parts):
        piece = slice(part * size, (part + 1) * size)
        yield jax.tree.map(lambda x, p=piece: x[p], batches)

  batches, made = source(), []
  for prune in (False, True, True):
    before = state
    state, record = run(state, batches, select, jnp.asarray(prune))
    jax.block_until_ready(record)
    assert all(x.is_deleted() for x in jax.tree.leaves(before.params))
    assert all(x.is_deleted() for x in jax.tree.leaves(before.optimizer))
    made.append(len(programs))
  assert run.compilations == 1
  assert 0 < made[0] == made[1] == made[2]

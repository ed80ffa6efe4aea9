"""The last adjustment before the freeze: at the target, by the least."""

import dataclasses

import jax
import jax.numpy as jnp

from tests.train import kit


def test_settle_removes_what_drift_left_above_the_target():
  stage = kit.make_stage(ratio=0.03, stages=1)
  settle = jax.jit(stage.settle)
  settled = settle(kit.initial(stage), kit.select())
  assert float(settled.macs) <= stage.settings.target + 1e-6
  again = settle(settled, kit.select())
  kit.same_bits(again.masks, settled.masks)


def test_settle_gives_tokens_back_where_no_compaction_will():
  stage, select = kit.make_stage(ratio=0.05), kit.select()
  state, target = kit.initial(stage), stage.settings.target
  tokens = jnp.asarray([m == "vision_tokens" for m in stage.prunable.modes])
  goal = jnp.asarray(target - 0.05)
  thetas = stage.propose(state, tokens, goal, select, state.key)[1]
  counts = stage.validate(state.params, state.masks, thetas, select)[1]
  macs = stage.macs(state.masks, counts)
  below = dataclasses.replace(state, thetas=thetas, counts=counts, macs=macs)
  assert macs <= goal
  settle = jax.jit(stage.settle, static_argnames="give_back")
  kit.same_bits(settle(below, select).thetas, thetas)
  settled = settle(below, select, give_back=True)
  assert 0 < float(settled.thetas["vision"]) < float(thetas["vision"])
  assert float(settled.thetas["text"]) == 0
  kit.same_bits(settled.masks, state.masks)
  # A token of one of the 16 examples is about 1e-3 of the MACs.
  assert target - 5e-3 < float(settled.macs) <= target


def test_settle_gives_back_what_fewer_heads_took_too_much():
  """Heads and tokens go at once; fewer heads let fewer tokens pass."""
  stage, select = kit.make_stage(ratio=0.3), kit.select()
  state, target = kit.initial(stage), stage.settings.target
  tokens = jnp.asarray([m == "vision_tokens" for m in stage.prunable.modes])
  goal = jnp.asarray(0.9)
  thetas = stage.propose(state, tokens, goal, select, state.key)[1]
  counts = stage.validate(state.params, state.masks, thetas, select)[1]
  macs = stage.macs(state.masks, counts)
  state = dataclasses.replace(state, thetas=thetas, counts=counts, macs=macs)
  settle = jax.jit(stage.settle, static_argnames="give_back")
  assert settle(state, select).macs < 0.995 * target
  assert 0.995 * target < settle(state, select, give_back=True).macs <= target

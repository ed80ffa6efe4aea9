"""The last adjustment before the freeze: at the target, by the least."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from comp_jax.train import effects
from tests.train import kit

STAGE = kit.make_stage


def aimed(target):
  """The stage at a target that may be traced: one program serves them all."""
  settings = dataclasses.replace(STAGE().settings, target=target)
  return dataclasses.replace(STAGE(), settings=settings)


@functools.cache
def start():
  return kit.initial(STAGE()), kit.select()


@functools.partial(jax.jit, static_argnames="give_back")
def settle(state, target, give_back=False):
  return aimed(target).settle(state, start()[1], give_back=give_back)


@jax.jit
def cut(state, modes, goal):
  """The state whose tokens alone went as far as a goal; nothing is trained."""
  stage, select = STAGE(), start()[1]
  thetas = stage.propose(state, modes, goal, select, state.key)[1]
  _, counts = stage.validate(state.params, state.masks, thetas, select)
  macs = stage.macs(state.masks, counts)
  return dataclasses.replace(state, thetas=thetas, counts=counts, macs=macs)


@jax.jit
def retuned(state, thetas, target):
  stage, select = aimed(target), start()[1]
  return stage.retuned(state.params, state.masks, thetas, select)


def modes(word):
  return jnp.asarray([word in mode for mode in STAGE().prunable.modes])


def test_settle_removes_what_drift_left_above_the_target():
  settled = settle(start()[0], 0.97)
  assert float(settled.macs) <= 0.97 + 1e-6
  again = settle(settled, 0.97)
  kit.same_bits(again.masks, settled.masks)


def test_settle_gives_tokens_back_where_no_compaction_will():
  state, target = start()[0], 0.95
  below = cut(state, modes("vision_tokens"), target - 0.05)
  assert below.macs <= target - 0.05
  kit.same_bits(settle(below, target).thetas, below.thetas)
  settled = settle(below, target, give_back=True)
  assert 0 < float(settled.thetas["vision"]) < float(below.thetas["vision"])
  assert float(settled.thetas["text"]) == 0
  kit.same_bits(settled.masks, state.masks)
  # A token of one of the 16 examples is about 1e-3 of the MACs.
  assert target - 5e-3 < float(settled.macs) <= target


def test_settle_gives_back_what_fewer_heads_took_too_much():
  """Heads and tokens go at once; fewer heads let fewer tokens pass."""
  state, target = cut(start()[0], modes("vision_tokens"), 0.9), 0.7
  assert settle(state, target).macs < 0.995 * target
  settled = settle(state, target, give_back=True)
  assert 0.995 * target < settled.macs <= target


@pytest.mark.parametrize("drift", [0.5, 1.0, 3.0])
def test_thresholds_of_other_weights_return_to_the_target(drift):
  """Whichever way the weights let more or fewer tokens pass."""
  target = 0.8
  state = cut(start()[0], modes("tokens"), target)
  moved = {tower: drift * theta for tower, theta in state.thetas.items()}
  found, counts, macs = retuned(state, moved, target)
  ratios = {tower: float(found[tower] / moved[tower]) for tower in moved}
  assert ratios["vision"] == pytest.approx(ratios["text"], rel=1e-5)
  expected = STAGE().macs(state.masks, counts)
  assert float(macs) == pytest.approx(float(expected), rel=1e-6)
  assert (1 - 4 * effects.NEAR) * target <= float(macs) <= target
  # It stands there already; and where no tokens go there is nothing to move.
  kit.same_bits(retuned(state, found, target)[0], found)
  off, _, macs = retuned(state, STAGE().off, target)
  assert float(macs) == 1.0
  kit.same_bits(off, STAGE().off)

"""Baselines that remove tokens alone: goals are met, units stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.train import costs
from tests.train import kit


@pytest.mark.parametrize("recipe", ["madtp", "evit"])
def test_a_stage_meets_its_goal_with_one_theta_for_all_towers(recipe):
  stage = kit.make_stage(recipe, ratio=0.2, stages=1)
  select = kit.select()
  state = kit.initial(stage)
  assert stage.modes == ("vision_tokens", "language_tokens")
  assert stage.objective.policy.rule == recipe
  selected = jnp.asarray([m in stage.modes for m in stage.prunable.modes])

  @jax.jit
  def run(state):
    goal = stage.goal(state, selected, stage.removable(state))
    marked, thetas = stage.propose(state, selected, goal, select, state.key)
    metric, counts = stage.validate(state.params, state.masks, thetas, select)
    return goal, marked, thetas, counts, stage.macs(state.masks, counts)

  goal, marked, thetas, counts, macs = run(state)
  assert max(float(m.max()) for m in jax.tree.leaves(marked)) == 0
  assert float(thetas["vision"]) == float(thetas["text"]) > 0
  assert float(goal) - 0.05 < float(macs) <= float(goal) + 1e-6
  # Every sample has its own count.
  if recipe == "madtp":
    assert len(np.unique(counts["vision"][:, -1])) > 1


def test_what_tokens_cannot_remove_is_known_beforehand():
  stage = kit.make_stage("madtp")
  lengths = costs.valid_tokens(kit.spec(), kit.select())
  both = costs.floor(kit.make_stage("comp"), lengths)
  assert both < costs.floor(stage, lengths) < 1.0

"""Baselines that remove tokens alone: goals are met, units stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import comp_jax
from comp_jax.train import costs, pruning
from tests.train import kit, test_five_modes

config, data_dir = test_five_modes.config, test_five_modes.data_dir
TOKENS = ("vision_tokens", "language_tokens")


@pytest.mark.parametrize(
  ("recipe", "modes"),
  [
    ("madtp", TOKENS),
    ("evit", TOKENS),
    ("tome", TOKENS[:1]),
    ("crossget", TOKENS[:1]),
  ],
)
def test_a_stage_meets_its_goal_with_one_theta_for_its_towers(recipe, modes):
  stage = kit.make_stage(recipe, ratio=0.2, stages=1)
  select = kit.select()
  state = kit.initial(stage)
  assert stage.modes == modes
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
  text = float(thetas["vision"]) if modes == TOKENS else 0.0
  assert float(thetas["vision"]) > 0 and float(thetas["text"]) == text
  assert float(goal) - 0.05 < float(macs) <= float(goal) + 1e-6
  # Every sample has its own count.
  if recipe == "madtp":
    assert len(np.unique(counts["vision"][:, -1])) > 1


def test_what_tokens_cannot_remove_is_known_beforehand():
  stage = kit.make_stage("madtp")
  lengths = costs.valid_tokens(kit.spec(), kit.select())
  both = costs.floor(kit.make_stage("comp"), lengths)
  assert both < costs.floor(stage, lengths) < 1.0
  # A matching leaves half of the tokens in every layer.
  images = costs.floor(kit.make_stage("madtp", allowed=TOKENS[:1]), lengths)
  assert images < costs.floor(kit.make_stage("tome"), lengths) < 1.0


@pytest.mark.slow
def test_tome_from_a_config_to_a_compact_model(config, tmp_path):
  """Tokens merge into their likenesses, the last MACs come from neurons."""
  c = config.copy_and_resolve_references()
  c.recipe.name, c.ratio = "tome", 0.2
  c.prune.num_stages = 3
  c.evaluate.rows = ("dense", "compacted", "finetuned")
  report, _ = pruning.run(c, tmp_path)
  stages = [row["mode"] for row in report["stages"]]
  assert stages[0] == "warmup" and set(stages[1:]) == {"vision_tokens"}
  assert report["compilations"]["stage_step"] == 1
  macs = report["macs"]
  assert 0.995 * macs["target"] <= macs["final"] <= macs["target"]
  kept = report["kept"]
  assert kept["vision"]["heads"] == [4, 4] and kept["text"]["heads"] == [4, 4]
  assert kept["vision"]["tokens_static"][-1] < 17
  loaded = comp_jax.load(tmp_path / "model", task="matching")
  policy = loaded.policies["vision"]
  assert (policy.rule, policy.combine) == ("tome", "match")
  assert list(policy.keep) == kept["vision"]["tokens_static"]
  accuracy = report["metrics"]["finetuned"]["val"]["accuracy"]
  assert 0.0 <= accuracy <= 1.0

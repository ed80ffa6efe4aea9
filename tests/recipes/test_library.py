"""The named recipes: what tells each of them from CoMP."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import mps
from comp_jax.recipes import library
from tests.train import kit


def _differences(recipe, other):
  """The fields, those of the strategy included, in which two recipes differ."""

  def flat(x):
    fields = dataclasses.asdict(x)
    return {**fields.pop("strategy"), **fields}

  a, b = flat(recipe), flat(other)
  return {key for key in a if a[key] != b[key]} - {"name"}


@pytest.mark.parametrize(
  "name, field",
  [
    ("comp_wanda", "score"),
    ("comp_lookahead", "schedule"),
    ("comp_no_cip", "cip"),
    ("comp_no_cit", "cit"),
    ("comp_no_cost", "cost_aware"),
    ("comp_no_exploration", "explore"),
    ("comp_no_history", "history"),
    ("round_robin", "schedule"),
    ("all_modes_together", "schedule"),
  ],
)
def test_an_ablation_switches_off_one_thing(name, field):
  comp, recipe = library.build("comp"), library.build(name)
  assert recipe.name == name
  assert _differences(recipe, comp) == {field}


def test_greedy_is_without_exploration_and_history():
  """Table 5 adds them one by one: greedy, then exploration, then history."""
  greedy, comp = library.build("comp_greedy"), library.build("comp")
  assert _differences(greedy, comp) == {"explore", "history"}
  assert _differences(greedy, library.build("comp_no_history")) == {"explore"}


def test_fields_are_replaced_singly():
  overrides = {"score": "wanda", "strategy": {"explore": 0.5, "history": None}}
  recipe = library.build("comp_no_history", overrides)
  assert recipe.score == "wanda"
  assert recipe.strategy == mps.Options(explore=0.5, history=0.0)


def test_one_estimator_serves_all_that_have_no_score_of_their_own():
  """What is held against CoMP by Wanda is not scored by Taylor unasked."""
  for name, own in library.RECIPES.items():
    taken = library.build(name, estimator="wanda")
    assert taken.score == (own.score or "wanda"), name
    assert _differences(taken, own) <= {"score"}
    # A score that is asked for goes before it.
    asked = library.build(name, {"score": "magnitude"}, estimator="wanda")
    assert asked.score == "magnitude"
  # What a recipe adds to CoMP or takes away is still all that it changes.
  comp = library.build("comp", estimator="wanda")
  control = library.build("all_modes_together", estimator="wanda")
  assert _differences(comp, control) == {"schedule"}
  assert _differences(library.build("comp_wanda"), comp) == set()
  # A recipe without a score is no recipe yet.
  with pytest.raises(ValueError, match="library.build"):
    _ = library.RECIPES["comp"].estimator
  # UPop's gradients of masks are its method, not an estimator of CoMP's.
  assert library.build("upop", estimator="wanda").score == "taylor"
  with pytest.raises(ValueError, match="estimator must be one of"):
    library.build("comp", estimator="magnitude")


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="recipe must be one of"):
    library.build("guess")
  with pytest.raises(ValueError, match="schedule must be one of"):
    library.build("comp", {"schedule": "guess"})


def test_schedules_select_one_mode_or_all():
  """Parameters of both towers come first in the modes, then tokens."""
  strategy = dataclasses.replace(
    mps.initial(4),
    cost=jnp.array([3.0, 1.0, 0.5, 2.0]),
    last=jnp.array([1, 4, 3, 2], jnp.int32),
    stage=jnp.int32(5),
  )
  for schedule, macs, exhausted, expected in (
    ("mps", 0.9, [0], [2]),
    ("round_robin", 0.9, [0], [3]),
    ("together", 0.9, [0], [1, 2, 3]),
    # The target is 0.5: half of the way is 0.75, to the nearest stage of 0.1.
    ("params_first", 0.9, [0], [1]),
    ("params_first", 0.79, [], [2, 3]),
    ("params_first", 0.9, [0, 1], [2, 3]),
    ("tokens_first", 0.81, [], [2, 3]),
    ("tokens_first", 0.7, [], [0, 1]),
    ("tokens_first", 0.7, [0, 1], [2, 3]),
  ):
    stage = kit.make_stage(
      "comp", stages=5, schedule=schedule, strategy=(("explore", 0.0),)
    )
    state = dataclasses.replace(
      kit.weightless(stage, {"vision": [17], "text": [9]}),
      strategy=strategy,
      macs=jnp.float32(macs),
    )
    gone = jnp.array([m in exhausted for m in range(4)])
    _, explored, selected = stage.choose(state, gone, jax.random.key(0))
    assert np.flatnonzero(selected).tolist() == expected, (schedule, macs)
    assert not explored


def test_a_recipe_knows_its_kind_of_modes():
  stage = kit.make_stage("upop", allowed=("vision_params", "vision_tokens"))
  assert stage.modes == ("vision_params",)
  stage = kit.make_stage("comp", prunes="tokens")
  assert stage.modes == ("vision_tokens", "language_tokens")


@pytest.mark.parametrize(
  "fields",
  [
    {"rule": "guess"},
    {"prunes": "guess"},
    {"accumulate": "guess"},
    {"fade": "guess"},
    {"fade": "search"},
    # Units marked for the whole way would leave nothing to tokens.
    {"fade": "search", "schedule": "together"},
    {"unit_cost": "guess"},
    {"unit_cost": "upop"},
  ],
)
def test_wrong_fields_are_named(fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    library.build("comp", fields)

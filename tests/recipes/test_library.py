"""The named recipes: what tells each of them from CoMP."""

import dataclasses

import jax
import jax.numpy as jnp
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


def test_fields_are_replaced_singly():
  overrides = {"score": "wanda", "strategy": {"explore": 0.5, "history": None}}
  recipe = library.build("comp_no_history", overrides)
  assert recipe.score == "wanda"
  assert recipe.strategy == mps.Options(explore=0.5, history=0.0)


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match="recipe must be one of"):
    library.build("guess")
  with pytest.raises(ValueError, match="schedule must be one of"):
    library.build("comp", {"schedule": "guess"})


def test_schedules_select_one_mode_or_all():
  strategy = dataclasses.replace(
    mps.initial(4),
    cost=jnp.array([3.0, 1.0, 0.5, 2.0]),
    last=jnp.array([1, 4, 3, 2], jnp.int32),
    stage=jnp.int32(5),
  )
  exhausted = jnp.array([True, False, False, False])
  overrides = {"strategy": {"explore": 0.0}}
  for schedule, expected in (
    ("mps", [False, False, True, False]),
    ("round_robin", [False, False, False, True]),
    ("together", [False, True, True, True]),
  ):
    stage = kit.make_stage("comp", schedule=schedule, **overrides)
    _, explored, selected = stage.choose(strategy, exhausted, jax.random.key(0))
    assert selected.tolist() == expected and not explored

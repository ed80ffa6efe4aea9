"""Which points a sweep has, and which of them one program serves."""

import pytest

from comp_jax import errors
from comp_jax.cli import configs, points


@pytest.fixture(scope="module")
def config():
  return configs.load("configs/emoji_tiny.py")


def test_axes_have_the_config_s_types(config):
  assert points.axes(
    config,
    [
      "ratios=0.5,0.7",
      "seeds=0:3,9",
      "recipes=comp,uniform",
      "recipe.cip=true",
    ],
  ) == {
    "ratio": [0.5, 0.7],
    "seed": [0, 1, 2, 9],
    "recipe.name": ["comp", "uniform"],
    "recipe.cip": [True],
  }


def test_what_changes_programs_makes_groups(config):
  groups = points.split(
    points.axes(config, ["recipes=comp,uniform", "ratios=0.5,0.7", "seeds=0:2"])
  )
  assert [g.fixed for g in groups] == [
    {"recipe.name": "comp"},
    {"recipe.name": "uniform"},
  ]
  assert list(groups[0].points) == [
    {"ratio": ratio, "seed": seed} for ratio in (0.5, 0.7) for seed in (0, 1)
  ]


def test_constants_of_mps_make_points_of_one_group(config):
  constants = ["explore", "history", "explore_within", "scarcity"]
  axes = [f"recipe.strategy.{name}=0.5,2" for name in constants]
  (group,) = points.split(
    points.axes(config, [*axes, "prune.least_step=0.1,1"])
  )
  assert not group.fixed
  assert len(group.points) == 2 ** (len(constants) + 1)


@pytest.mark.parametrize(
  ("text", "named"),
  [
    ("ratios", "KEY=VALUE"),
    ("ratio=", "KEY=VALUE"),
    ("rato=0.5", "did you mean --config.ratio"),
    ("prune=1", "is a section"),
    ("seeds=a", "not of type int"),
    ("seeds=1,1", "given twice"),
    ("data.report_splits=test", "cannot be swept"),
    ("seeds=3:3", "seeds=3:3: stands for no value"),
  ],
)
def test_bad_axes_are_named(config, text, named):
  with pytest.raises(errors.UserError, match=named):
    points.axes(config, [text])


def test_points_are_added_as_groups_of_their_own(config):
  make = lambda *texts: points.split(points.axes(config, texts))  # noqa: E731
  there = make("recipes=comp,uniform", "seeds=0:2")
  more = points.grown(there, make("recipes=random,uniform,comp", "seeds=0:3"))
  assert more[:2] == there
  assert [(g.name, g.fixed["recipe.name"], g.points) for g in more[2:]] == [
    ("group_2", "random", [{"seed": 0}, {"seed": 1}, {"seed": 2}]),
    ("group_3", "uniform", [{"seed": 2}]),
    ("group_4", "comp", [{"seed": 2}]),
  ]
  again = make("recipes=comp,uniform,random", "seeds=0:3")
  assert points.grown(more, again) == more
  with pytest.raises(errors.UserError, match="recipe.name=uniform seed=0"):
    points.grown(there, make("recipes=comp", "seeds=0:3"))

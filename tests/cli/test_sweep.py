"""What `sweep` makes of its command line."""

import pytest

from comp_jax import errors
from comp_jax.cli import shell, sweep, verbs


@pytest.fixture(scope="module")
def config():
  return shell.load_config("configs/emoji_tiny.py")


def test_axes_have_the_config_s_types(config):
  assert sweep.axes(
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
  groups = sweep.split(
    sweep.axes(config, ["recipes=comp,uniform", "ratios=0.5,0.7", "seeds=0:2"])
  )
  assert [g.fixed for g in groups] == [
    {"recipe.name": "comp"},
    {"recipe.name": "uniform"},
  ]
  assert list(groups[0].points) == [
    {"ratio": ratio, "seed": seed} for ratio in (0.5, 0.7) for seed in (0, 1)
  ]


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
  ],
)
def test_bad_axes_are_named(config, text, named):
  with pytest.raises(errors.UserError, match=named):
    sweep.axes(config, [text])


def test_a_mistake_ends_in_one_line(tmp_path, capsys):
  code = verbs.main(
    ["sweep", "--config", "configs/emoji_tiny.py", "--sweep", "ratios=0.5"]
    + ["--workdir", str(tmp_path), "--processes", "0"]
  )
  assert code == 2
  assert capsys.readouterr().err.startswith("error: --processes")
  assert not list(tmp_path.iterdir())

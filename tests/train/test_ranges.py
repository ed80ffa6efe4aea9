"""Values of a config outside their ranges end in one line, before all else."""

import math
import pathlib
import re

import pytest

from comp_jax import errors
from comp_jax.cli import configs
from comp_jax.train import dense, prepare, ranges, sweep_group

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def config(monkeypatch):
  monkeypatch.chdir(ROOT)
  return configs.load("configs/emoji_tiny.py")


def set_value(config, key, value):
  config.update_from_flattened_dict({key: value})


@pytest.mark.parametrize(
  "path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem
)
def test_every_config_is_within_them(path):
  if path.stem not in ("common", "published"):
    ranges.check(configs.load(str(path)))


def test_every_range_is_of_a_key_that_there_is(config):
  assert ranges.ALLOWED.keys() <= dict(configs.keys(config)).keys()


@pytest.mark.parametrize(
  ("key", "value", "allowed"),
  [
    ("ratio", 1.0, "in [0, 1)"),
    ("ratio", -0.1, "in [0, 1)"),
    ("seed", -1, "in [0, 4294967296)"),
    ("model.granularity", "row", "head or channel"),
    ("model.dtype", "float23", "one of float32, bfloat16, float16"),
    ("recipe.strategy.explore", 2.0, "in [0, 1]"),
    ("recipe.strategy.temperature", 0.0, "above 0"),
    ("prune.cost", "eq9", "one of eq8, immediate, paired"),
    ("prune.num_stages", 0, "1 or more"),
    ("prune.stage_steps", 0, "1 or more"),
    ("prune.microbatches", 0, "1 or more"),
    ("prune.save_every", 0, "1 or more"),
    ("prune.learning_rate", math.nan, "0 or more"),
    ("finetune.learning_rate", -1e-3, "0 or more"),
    ("train.learning_rate", math.inf, "0 or more"),
    ("finetune.chunk", 0, "1 or more"),
    ("finetune.tokens", "dynamic", "static or threshold"),
  ],
)
def test_values_outside_are_named_by_both_programs(
  config, tmp_path, key, value, allowed
):
  set_value(config, key, value)
  said = re.escape(f"config.{key} must be {allowed}, not {value!r}")
  with pytest.raises(errors.UserError, match=f"^{said}$"):
    prepare.prepare(config)
  with pytest.raises(errors.UserError, match=said):
    dense.run(config, tmp_path / "run")
  assert not list(tmp_path.iterdir())


def test_all_of_them_at_once_and_in_a_sweep(config, tmp_path):
  config.seed, config.finetune.chunk = -3, 0
  with pytest.raises(errors.UserError, match=r"chunk .*; config\.seed"):
    ranges.check(config)
  config.seed, config.finetune.chunk = 0, 1
  with pytest.raises(errors.UserError, match="explore must be in .* not 1.5"):
    sweep_group.run(config, [{"recipe.strategy.explore": 1.5}], tmp_path / "g")


@pytest.mark.parametrize(
  "field",
  ["score", "reduce", "standardise", "rule", "combine", "schedule", "prunes"],
)
def test_words_that_a_recipe_does_not_know(config, field):
  config.recipe[field] = "x"
  with pytest.raises(errors.UserError, match=f"config.recipe: {field} must be"):
    prepare.prepare(config)


def test_scores_that_need_data_need_a_warm_up(config):
  config.prune.warmup_stages = 0
  with pytest.raises(errors.UserError, match="warmup_stages must be 1 or more"):
    prepare.prepare(config)
  config.recipe.score = "magnitude"
  assert prepare.prepare(config).plan.warmup_stages == 0


@pytest.mark.parametrize("section", ["prune", "finetune", "train"])
def test_batches_beyond_the_training_examples(config, tmp_path, section):
  config[section].batch_size = 80_000
  run = prepare.prepare
  if section == "train":
    run = lambda config: dense.run(config, tmp_path / "run")  # noqa: E731
  with pytest.raises(
    errors.UserError, match=f"{section}.batch_size is 80000, train has only"
  ):
    run(config)
  assert not list(tmp_path.iterdir())

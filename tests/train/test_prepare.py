"""A user's mistakes: one error each that names what and where."""

import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from comp_jax import errors
from comp_jax.cli import configs
from comp_jax.interop import store
from comp_jax.train import costs, prepare

ROOT = pathlib.Path(__file__).parents[2]


def test_the_highest_ratio_is_one_that_is_then_taken():
  for floor in (0.2994, 0.2996, 0.3, 0.0):
    assert 1 - floor - 1e-3 < costs.most(floor) <= 1 - floor


@pytest.fixture
def config(monkeypatch):
  monkeypatch.chdir(ROOT)
  return configs.load("configs/emoji_tiny.py")


def test_a_ratio_beyond_the_floors_says_the_floor(config):
  config.ratio = 0.999
  with pytest.raises(errors.UserError, match="the ratio can be at most 0.9"):
    prepare.prepare(config)


def test_fewer_modes_raise_the_floor(config):
  config.ratio = 0.7
  config.prune.modes = ("language_params",)
  with pytest.raises(errors.UserError, match="the ratio can be at most 0.1"):
    prepare.prepare(config)


def test_a_mode_that_the_model_does_not_have(config):
  config.prune.modes = ("cross_params", "vision_tokens")
  with pytest.raises(errors.UserError, match="no mode cross_params; it has"):
    prepare.prepare(config)


def test_a_chunk_that_select_cannot_fill(config):
  config.prune.validation = config.prune.validation_chunk = 100_000
  with pytest.raises(errors.UserError, match=r"_chunk is 100000, .* has only"):
    prepare.prepare(config)
  # The smaller of the two is the one to change.
  config.prune.validation = 90_000
  with pytest.raises(errors.UserError, match="validation is 90000, select has"):
    prepare.prepare(config)


def test_a_stage_comes_in_whole_parts(config):
  assert prepare.prepare(config).plan.parts == 1
  config.prune.stage_steps, config.prune.chunk = 6, 2
  assert prepare.part_steps(config) == 2
  assert prepare.prepare(config).plan.parts == 3
  config.prune.chunk = 7
  assert prepare.prepare(config).plan.parts == 1
  config.prune.chunk = 4
  with pytest.raises(errors.UserError, match="chunk is 4, which does not div"):
    prepare.prepare(config)
  config.prune.chunk, config.prune.cost = 2, "paired"
  with pytest.raises(errors.UserError, match="cost=paired trains twice"):
    prepare.prepare(config)


def test_fewer_examples_than_asked_for_are_told(config):
  assert not prepare.prepare(config).warnings
  config.prune.validation = 100_000
  job = prepare.prepare(config)
  (told,) = job.warnings
  chosen = job.select["concept"].size
  assert "config.prune.validation asks for 100000 examples: modes" in told
  assert f"chosen on {chosen}, whole chunks" in told
  # Fewer than select has, and no whole number of chunks.
  config.prune.validation, config.prune.validation_chunk = 150, 64
  job = prepare.prepare(config)
  assert (
    "asks for 150" in job.warnings[0] and "chosen on 128" in job.warnings[0]
  )


def test_stages_that_are_too_few_are_told_before_the_search(config):
  config.prune.max_stages = 12
  (told,) = prepare.prepare(config).warnings
  # Its recorded run took 17 (docs/records/emoji_tiny).
  assert "max_stages is 12: a search for a ratio of 0.7 needs about 17" in told
  # Twelve stages of a sixteenth of the way each: no share makes them enough.
  said = "at most 20% of what its mode has left; "
  assert config.prune.num_stages == 16
  assert f"{said}what is left in the end goes at once, untrained" in told
  config.prune.num_stages, config.prune.max_stages = 8, 9
  (told,) = prepare.prepare(config).warnings
  assert f"{said}they take a larger part than that" in told
  config.prune.max_stages, config.prune.keep_pace = 12, False
  config.prune.num_stages = 16
  assert "goes at once, untrained" in prepare.prepare(config).warnings[0]
  config.ratio, config.prune.num_stages = 0.4, 8
  assert not prepare.prepare(config).warnings
  # All modes at once take what a stage should.
  config.ratio, config.recipe.name = 0.7, "uniform"
  assert not prepare.prepare(config).warnings
  # Tokens alone do not.
  config.ratio, config.recipe.name, config.prune.keep_pace = 0.8, "madtp", True
  (told,) = prepare.prepare(config).warnings
  assert "about 14 stages" in told and "they take a larger" in told
  config.ratio = 0.7
  assert not prepare.prepare(config).warnings


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("answers", 0, "task.answers must be 1 or more, not 0"),
    ("answer_length", 2, "task.answer_length must be 3 or more, not 2"),
    ("rank", -2, "task.rank must be 0 or more, not -2"),
    ("distill", 1.5, "task.distill must be at most 1, not 1.5"),
  ],
)
def test_numbers_of_a_protocol_outside_their_range(
  config, name, value, message
):
  config.task[name] = value
  with pytest.raises(errors.UserError, match=message):
    prepare.prepare(config)


def test_cit_with_channels(config):
  config.model.granularity = "channel"
  with pytest.raises(errors.UserError, match="config.recipe.cit=False"):
    prepare.prepare(config)


def test_rows_of_the_table_that_do_not_exist(config):
  for rows in (("dense", "polished"), ("finetuned",)):
    config.evaluate.rows = rows
    with pytest.raises(errors.UserError, match="evaluate.rows must hold dense"):
      prepare.prepare(config)


def test_an_unknown_recipe_and_a_bad_field(config):
  config.recipe.name = "comb"
  with pytest.raises(errors.UserError, match="recipe must be one of"):
    prepare.prepare(config)
  config.recipe.name = "comp"
  config.recipe.standardise = "zscore"
  with pytest.raises(errors.UserError, match="standardise must be one of"):
    prepare.prepare(config)
  config.recipe.standardise, config.recipe.estimator = "z_model", "wand"
  with pytest.raises(errors.UserError, match="estimator must be one of"):
    prepare.prepare(config)


def test_a_batch_that_the_devices_cannot_share(config):
  config.prune.batch_size = 12
  with pytest.raises(
    errors.UserError, match="config.prune.batch_size: .*12 .* 8 devices"
  ):
    prepare.prepare(config)


def test_a_missing_checkpoint(config, tmp_path):
  config.checkpoint = str(tmp_path / "nothing")
  missing = "config.checkpoint: .*nothing: no such folder"
  with pytest.raises(errors.UserError, match=missing):
    prepare.prepare(config)
  config.checkpoint = ""
  with pytest.raises(errors.UserError, match="config.checkpoint is empty"):
    prepare.prepare(config)


def test_a_corrupt_checkpoint(config, tmp_path):
  folder = tmp_path / "model"
  shutil.copytree(ROOT / config.checkpoint, folder)
  data = (folder / "model.safetensors").read_bytes()
  (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
  config.checkpoint = str(folder)
  with pytest.raises(errors.UserError, match="model.safetensors"):
    prepare.prepare(config)


def test_a_checkpoint_that_holds_nan_is_refused_before_anything(
  config, tmp_path
):
  dense = store.load(ROOT / config.checkpoint)
  params = jax.tree.map(np.array, dense.params)
  params["text"]["embedding_norm"]["bias"][3] = np.nan
  config.checkpoint = str(tmp_path / "model")
  store.save(
    config.checkpoint,
    params=params,
    spec=dense.spec,
    policies={},
    tokenizer_json=dense.tokenizer_json,
    recipe={},
  )
  told = "not finite, in 1 of its arrays, the first text/embedding_norm/bias"
  with pytest.raises(errors.UserError, match=told):
    prepare.prepare(config)


def test_a_checkpoint_of_another_architecture_lists_what_differs(config):
  config.model.preset = "dinov2_s14_minilm"
  config.model.image_size = 112
  with pytest.raises(errors.UserError) as caught:
    prepare.prepare(config)
  text = str(caught.value)
  # Path, the shape there, the shape wanted.
  assert "text/embedding_norm/bias: (96,), the model has (384,)" in text
  assert "46 of 47 arrays do not fit" in text


def test_a_checkpoint_may_have_more_positions_than_the_texts_need(config):
  config.data.text_length = 16
  config.prune.least_step = 0.3
  assert config.prune.keep_pace
  job = prepare.prepare(config)
  assert job.stage.settings.least_step == 0.3
  assert job.stage.settings.max_stages == config.prune.max_stages
  assert job.spec.text.max_length == 24
  assert job.select["text_ids"].shape[-1] == 16


def test_missing_data_says_how_to_get_it(config, monkeypatch, tmp_path):
  monkeypatch.setenv("COMP_JAX_DATA", str(tmp_path))
  config.data.name = "flickr8k"
  with pytest.raises(errors.UserError, match="config.data.dir"):
    prepare.prepare(config)


def test_the_command_line_shows_one_line_and_leaves_nothing(tmp_path):
  workdir = tmp_path / "run"
  done = subprocess.run(
    [
      sys.executable,
      "prune.py",
      "--config=configs/emoji_tiny.py",
      f"--workdir={workdir}",
      "--config.ratio=1.5",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stderr.startswith("error: config.ratio")
  assert done.stderr.count("\n") == 1
  assert not workdir.exists()

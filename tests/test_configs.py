"""The full-size configs: the paper's experiments, by file and ratio."""

import importlib
import pathlib
import re

import pytest

from comp_jax import errors
from comp_jax.cli import configs
from comp_jax.recipes import library
from comp_jax.report import paper

ROOT = pathlib.Path(__file__).parents[1]
# Epochs of a phase where the parameters shrink 2, 4 and other times, steps of
# an epoch (spec `upop.md` 3.1).
EPOCHS = {
  "nlvr2_blip": ({2: 15, 3: 20, 4: 23, 5: 24, 10: 27}, 337),
  "coco_blip_retrieval": ({2: 6, 4: 9}, 2213),
  "flickr30k_blip_retrieval": ({2: 12, 4: 18}, 566),
  "coco_clip_retrieval": ({2: 6, 4: 9}, 2213),
  "flickr30k_clip_retrieval": ({2: 12, 4: 18}, 566),
  "coco_blip_caption": ({2: 5, 4: 8}, 2213),
  # Batches of train alone: val is reported.
  "vqa2_blip": ({2: 10, 4: 15}, 1712),
}


def _all_steps(config):
  """Of a whole job, whose search leaves the stages it does not need."""
  prune = config.prune
  search = (prune.warmup_stages + prune.max_stages) * prune.stage_steps
  return search + config.finetune.steps


def read(name, ratio=None):
  file = str(ROOT / "configs" / f"{name}.py")
  return configs.load(file if ratio is None else f"{file}:{ratio}")


@pytest.mark.parametrize("name", EPOCHS)
def test_a_ratio_brings_upops_epochs(name):
  epochs, steps = EPOCHS[name]
  for times, phase in epochs.items():
    config = read(name, f"{1 - 1 / times:.4f}")
    assert config.ratio == pytest.approx(1 - 1 / times, abs=1e-4)
    assert _all_steps(config) == 2 * phase * steps
    # Whole stages.
    found = config.prune.num_stages * config.prune.stage_steps
    assert found == pytest.approx(phase * steps, abs=config.prune.num_stages)
    # Of whole parts, which are neither single steps nor many.
    assert config.prune.stage_steps % config.prune.chunk == 0
    assert 3 <= config.prune.chunk <= 8
    # Fine-tuning keeps most of its phase where a search takes all its stages.
    assert 2 / 3 * phase * steps < config.finetune.steps < phase * steps
  for section in (config.prune, config.finetune):
    assert (section.clip, section.decay) == (0.0, "all")


def test_between_them_the_nearest_compression_counts():
  # 3.4 times is nearer to 3 than to 4 (in parts removed it is nearer to 4), 6.7
  # and 6.9 times nearer to 5 than to 10.
  for ratio, epochs in ((0.71, 20), (0.8, 24), (0.85, 24), (0.855, 24)):
    assert _all_steps(read("nlvr2_blip", ratio)) == 2 * epochs * 337


@pytest.mark.parametrize("name", EPOCHS)
def test_without_a_ratio_it_is_one_that_the_paper_has(name):
  ratio = 0.75 if "clip" in name else 0.7
  assert read(name).ratio == ratio
  assert read(name).to_dict() == read(name, ratio).to_dict()


@pytest.mark.parametrize("name", EPOCHS)
def test_its_docstring_has_the_numbers_that_tables_show(name):
  text = importlib.import_module(f"configs.{name}").__doc__
  metric = "cider" if "caption" in name else "i2t_r1"
  metric = "accuracy" if "nlvr2" in name else metric
  for recipe in library.RECIPES:
    for ratio in (0.5, 0.7, 0.75, 0.8, 0.85):
      number = paper.published(name, "test", metric, recipe, ratio)
      # The ablation is not an experiment of its own.
      if number is None or recipe in ("comp_greedy", "comp_no_history"):
        continue
      (line,) = re.findall(rf"^  :{ratio} .*$", text, re.MULTILINE)
      assert f"{100 * number:.4g}" in line, (recipe, line)


@pytest.mark.parametrize("text", ["half", "0", "1.0", "nan", "-0.5", ""])
def test_another_text_after_the_colon_is_refused(text):
  with pytest.raises(errors.UserError, match="nlvr2_blip.py: the text after"):
    read("nlvr2_blip", text)

"""Captioning and question answering from data to what the loops make."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from comp_jax import errors
from comp_jax.data import sources, tokenizers
from comp_jax.interop import store
from comp_jax.models import presets, specs
from comp_jax.tasks import caption, caption_score
from comp_jax.train import answers, dense, prepare, pruning, setup
from configs import common
from tests.models import model_kit
from tests.train import test_five_modes

COLOURS = test_five_modes.COLOURS
WORDS = list(COLOURS)
LENGTH = 12


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """Photos of one colour: its name is the answer, and the caption."""
  folder = tmp_path_factory.mktemp("colours")
  rng = np.random.default_rng(0)
  questions = {"train": [], "val": []}
  captions = {"train": [], "val": []}
  for number in range(56):
    word = WORDS[number % 3]
    split = "train" if number < 48 else "val"
    (folder / f"{number}.jpg").write_bytes(
      test_five_modes.jpeg(COLOURS[word], rng)
    )
    entry = {"image": f"{number}.jpg"}
    questions[split].append(
      entry
      | {"question_id": number, "question": "What colour is it?"}
      | {"answer": [word] * 8 + ["a thing"] * 2}
    )
    captions[split].append(entry | {"caption": [f"A {word} thing."] * 5})
  for split in questions:
    (folder / f"vqa_{split}.json").write_text(json.dumps(questions[split]))
    (folder / f"coco_karpathy_{split}.json").write_text(
      json.dumps(captions[split])
    )
  return folder


def _model(name, tokenizer):
  """A decoder that looks at the image, or at a question about it."""
  options = {"width": 16, "depth": 2, "heads": 4, "mlp": 48}
  cross = {"norm_first": False, "norm_eps": 1e-12, "source_width": 16}
  words = {
    "vocab_size": tokenizer.vocab_size,
    "max_length": LENGTH,
    "sep_id": tokenizer.sep_id,
  }
  vision = specs.VitSpec(
    image_size=16,
    patch_size=8,
    encoder=specs.encoder(norm_first=True, norm_eps=1e-6, **options),
    readout="tokens",
  )
  decoder = specs.DecoderSpec(
    bos_id=tokenizer.cls_id,
    encoder=specs.encoder(causal=True, **cross, **options),
    **words,
  )
  if name == "coco_caption":
    return specs.CaptionSpec(vision=vision, text=decoder)
  text = specs.BertSpec(
    readout="tokens", encoder=specs.encoder(**cross, **options), **words
  )
  return specs.VqaSpec(vision=vision, text=text, answer=decoder)


def _config(data_dir, folder, name):
  """A small model with random weights, and a run of it on these photos."""
  vocabulary = [f"what colour is it? a {word} thing" for word in WORDS]
  tokenizer = tokenizers.train_wordpiece([*vocabulary, caption.PROMPT] * 9, 99)
  spec = _model(name, tokenizer)
  c = common.get_config()
  c.name = name
  c.ratio = 0.3
  c.checkpoint = str(folder.mktemp(name) / "model")
  store.save(
    c.checkpoint,
    params=model_kit.params(spec),
    spec=spec,
    policies={},
    tokenizer_json=tokenizer.to_json(),
    recipe={"name": "random"},
  )
  c.data.name, c.data.dir = name, str(data_dir)
  c.data.text_length = LENGTH
  c.data.report_splits = ("val",)
  c.model.image_size = 16
  c.model.min_neurons = 4
  c.recipe.name = "uniform"
  c.prune.num_stages, c.prune.max_stages, c.prune.stage_steps = 3, 6, 1
  c.prune.batch_size = 8
  c.prune.validation = c.prune.validation_chunk = c.prune.calibration = 8
  c.finetune.steps = c.finetune.chunk = 2
  c.finetune.batch_size = 8
  c.finetune.warmup = 0
  c.evaluate.batch_size = 8
  c.evaluate.rows = ("dense", "finetuned")
  return c


@pytest.fixture(scope="module")
def questions(data_dir, tmp_path_factory):
  c = _config(data_dir, tmp_path_factory, "vqa2")
  c.task.answers, c.task.answer_length = 3, 5
  return c


@pytest.fixture(scope="module")
def captions(data_dir, tmp_path_factory):
  return _config(data_dir, tmp_path_factory, "coco_caption")


def test_questions_with_their_answers_reach_the_search(questions):
  job = prepare.prepare(questions)
  shapes = {key: job.select[key].shape for key in job.select}
  assert shapes["text_ids"] == (1, 8, LENGTH)
  assert shapes["answer_ids"] == shapes["answer_mask"] == (1, 8, 3, 5)
  # Two answers were given, by eight and by two of ten.
  np.testing.assert_allclose(
    job.select["answer_weight"], np.tile([0.8, 0.2, 0.0], (1, 8, 1))
  )
  assert job.stage.modes == (
    "vision_params",
    "language_params",
    "cross_params",
    "vision_tokens",
    "language_tokens",
  )


def test_a_checkpoint_may_have_more_positions_than_questions_and_answers(
  questions, monkeypatch
):
  """Published ones have 512 for each."""
  spec = store.load(questions.checkpoint).spec

  def preset(max_length, **options):
    sides = {
      name: dataclasses.replace(getattr(spec, name), max_length=max_length)
      for name in ("text", "answer")
    }
    return dataclasses.replace(spec, **sides)

  monkeypatch.setitem(presets.NAMES, "blip_vqa", preset)
  c = questions.copy_and_resolve_references()
  c.model.preset = "blip_vqa"
  c.data.text_length = LENGTH - 4
  loaded = setup.load_dense(c, c.checkpoint)
  assert loaded.spec.text.max_length == loaded.spec.answer.max_length == LENGTH
  c.model.preset = ""
  c.task.answer_length = LENGTH + 1
  with pytest.raises(errors.UserError, match="answer_length is 13, .* has 12"):
    setup.load_dense(c, c.checkpoint)


@pytest.mark.slow
def test_a_whole_run_compiles_its_evaluation_once(questions, tmp_path):
  c = questions.copy_and_resolve_references()
  c.evaluate.rows = ("dense", "masked", "finetuned")
  report, _ = pruning.run(c, tmp_path)
  assert report["compilations"]["evaluate"] == 1


def test_answers_are_ranked(questions):
  """A model that believes in one word chooses it, whatever is asked."""
  c = questions.copy_and_resolve_references()
  c.task.rank = 4
  job = prepare.prepare(c)
  assert len(job.data.splits["val"].answers) == 4
  word = WORDS[1]
  ids, _ = job.data.tokenizer.encode([word], 3)
  params = jax.tree.map(np.array, job.dense.params)
  params["answer"]["output_bias"][ids[0, 1]] = 50.0
  evaluate = setup.Evaluator(job.task, job.spec, job.mesh)
  found = evaluate(c, job.data, params)["val"]
  # Of eight photos, three have its colour.
  assert found.metrics["accuracy"] == pytest.approx(3 / 8)
  usual = job.data.splits["train"].answers[0]
  share = [WORDS[number % 3] for number in range(48, 56)].count(usual) / 8
  assert found.metrics["question_only"] == pytest.approx(share)


def test_each_question_gets_an_answer(questions, captions):
  c = questions.copy_and_resolve_references()
  c.task.rank = 4
  loaded = store.load(c.checkpoint)
  found = answers.answers(c, loaded, "val")
  splits = sources.open_source("vqa2", dir=c.data.dir)
  val = splits["val"]
  assert list(found) == [val[index]["id"] for index in range(len(val))]
  assert set(found.values()) <= set(val.answers[:4])
  with pytest.raises(errors.UserError, match="caption model answers no"):
    answers.answers(c, store.load(captions.checkpoint), "val")
  c.model.image_size = 32
  with pytest.raises(errors.UserError, match="image_size is 32, .* 16 pixels"):
    answers.answers(c, loaded, "val")


def test_questions_of_the_server_are_answered_and_never_scored(
  questions, data_dir, tmp_path
):
  folder = tmp_path / "vqa"
  shutil.copytree(data_dir, folder)
  c = questions.copy_and_resolve_references()
  c.task.rank, c.data.dir = 4, str(folder)
  loaded = store.load(c.checkpoint)
  with pytest.raises(errors.UserError, match=r"no split 'test'.* vqa_test.js"):
    answers.answers(c, loaded, "test")
  rows = [
    {"question_id": 90 + n, "image": f"{n}.jpg", "question": "What?"}
    for n in range(11)
  ]
  (folder / "vqa_test.json").write_text(json.dumps(rows))
  found = answers.answers(c, loaded, "test")
  assert list(found) == [str(row["question_id"]) for row in rows]
  known = sources.open_source("vqa2", dir=str(folder))["train"].answers
  assert set(found.values()) <= set(known)
  for rank in (0, 4):
    c.task.rank, c.data.report_splits = rank, ("val", "test")
    with pytest.raises(errors.UserError, match="test of vqa2 has no answers"):
      prepare.prepare(c)
  c.data.report_splits = ("val",)
  whole = (folder / "7.jpg").read_bytes()
  (folder / "7.jpg").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(errors.UserError, match="example 97: its picture cannot"):
    answers.answers(c, loaded, "test")


def test_captions_are_trained_and_scored(
  captions, data_dir, tmp_path, monkeypatch
):
  judged = []

  def scores(written, references):
    judged.append((written, references))
    return {"bleu_1": 0.5, "cider": 1.25}

  monkeypatch.setattr(caption_score, "scorers", lambda: None)
  monkeypatch.setattr(caption_score, "scores", scores)
  c = captions.copy_and_resolve_references()
  c.train.start = c.checkpoint
  c.train.steps = c.train.chunk = 60
  c.train.batch_size, c.train.warmup, c.train.learning_rate = 8, 4, 1e-2
  c.data.augment.flip = 0.0
  results = dense.run(c, tmp_path)
  assert list(results["val"].items()) == [("cider", 1.25), ("bleu_1", 0.5)]
  [(written, references)] = judged
  assert references["55.jpg"] == [f"A {WORDS[55 % 3]} thing."] * 5
  assert written.keys() == references.keys()
  # It has seen colours: blind, no more than a third could be right.
  right = [
    f"a {WORDS[int(photo.removesuffix('.jpg')) % 3]} thing" == text
    for photo, text in written.items()
  ]
  assert np.mean(right) > 0.5


def test_what_does_not_fit_is_named_before_anything_is_written(
  captions, questions, monkeypatch
):
  monkeypatch.setattr(caption_score, "scorers", lambda: None)
  for config, data, message in (
    (captions, "vqa2", "has answers and has no captions to score by"),
    (questions, "coco_caption", "has no answers and has captions to score by"),
    (captions, "coco", "coco has no captions to score by"),
  ):
    other = config.copy_and_resolve_references()
    other.data.name = data
    with pytest.raises(errors.UserError, match=message):
      prepare.prepare(other)

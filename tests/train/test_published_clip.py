"""A published CLIP folder, from Hugging Face to a fine-tuned model."""

import shutil

import numpy as np
import pytest
import tokenizers

import comp_jax
from comp_jax import errors
from comp_jax.data import tokenizers as tokenizers_lib
from comp_jax.train import dense, prepare
from configs import common

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip(
  "transformers", reason="transformers is not installed"
)

START, END = "<|startoftext|>", "<|endoftext|>"


def _tokenizer() -> tokenizers.Tokenizer:
  """CLIP's kind of tokenizer over single characters."""
  letters = "abcdefghijklmnopqrstuvwxyz"
  vocabulary = [*letters, *(f"{x}</w>" for x in letters), START, END]
  made = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      {token: i for i, token in enumerate(vocabulary)},
      [],
      unk_token=END,
      end_of_word_suffix="</w>",
    )
  )
  made.normalizer = tokenizers.normalizers.Lowercase()
  made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  made.add_special_tokens([START, END])
  made.post_processor = tokenizers.processors.TemplateProcessing(
    single=f"{START} $A {END}",
    special_tokens=[(t, made.token_to_id(t)) for t in (START, END)],
  )
  return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("published")
  tokenizer = _tokenizer()
  shared = {"num_hidden_layers": 1, "projection_dim": 8}
  config = transformers.CLIPConfig(
    text_config={
      "hidden_size": 16,
      "intermediate_size": 48,
      "num_attention_heads": 2,
      "vocab_size": tokenizer.get_vocab_size(),
      "max_position_embeddings": 20,
      "eos_token_id": tokenizer.token_to_id(END),
      "bos_token_id": tokenizer.token_to_id(START),
      "pad_token_id": tokenizer.token_to_id(END),
      **shared,
    },
    vision_config={
      "hidden_size": 16,
      "intermediate_size": 48,
      "num_attention_heads": 2,
      "image_size": 32,
      "patch_size": 16,
      **shared,
    },
    projection_dim=8,
  )
  transformers.CLIPModel(config).save_pretrained(path)
  tokenizer.save(str(path / "tokenizer.json"))
  return path


@pytest.fixture
def config(folder):
  c = common.get_config()
  c.name = "clip"
  c.ratio = 0.3
  c.checkpoint = c.train.start = str(folder)
  c.data.name = "emoji"
  c.data.text_length = 16
  c.model.image_size = 32
  c.prune.batch_size = c.finetune.batch_size = c.train.batch_size = 8
  c.prune.validation = c.prune.validation_chunk = 8
  c.prune.calibration = 8
  c.train.steps = c.train.chunk = 2
  c.train.warmup = 0
  c.evaluate.batch_size = 128
  return c


def test_texts_end_where_clip_reads_them(folder):
  tokenizer = tokenizers_lib.load(folder / "tokenizer.json")
  ids, mask = tokenizer.encode(["ab", "abcdefghijkl"], 6)
  end = tokenizer.sep_id
  assert ids[0][mask[0]].tolist()[-1] == end == ids[1][-1]
  assert mask.sum(axis=1).tolist() == [4, 6]


def test_it_prunes_and_trains_as_it_was_published(config, tmp_path):
  job = prepare.prepare(config)
  assert job.stage.prunable.modes == (
    "vision_params",
    "language_params",
    "vision_tokens",
    "language_tokens",
  )
  typo = config.copy_and_resolve_references()
  typo.train.rates = (("visoin/.*", 0.5),)
  with pytest.raises(errors.UserError, match="visoin"):
    dense.run(typo, tmp_path / "run")
  assert not (tmp_path / "run").exists()
  results = dense.run(config, tmp_path / "run")
  assert set(results["select"]) >= {"t2i_r10", "i2t_r10"}
  loaded = comp_jax.load(tmp_path / "run" / "model")
  assert loaded.spec.text.kind == "clip"
  ids, mask = tokenizers_lib.load(loaded.tokenizer_json).encode(["dog"], 16)
  assert np.all(np.isfinite(loaded.encode_text(ids, mask)))


def test_what_does_not_fit_is_named(config, folder, tmp_path):
  config.data.text_length = 21
  with pytest.raises(errors.UserError, match="has 20 positions"):
    prepare.prepare(config)
  bare = tmp_path / "bare"
  shutil.copytree(folder, bare)
  (bare / "tokenizer.json").unlink()
  config.checkpoint = str(bare)
  with pytest.raises(errors.UserError, match="brings no tokenizer"):
    prepare.prepare(config)

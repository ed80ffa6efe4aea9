"""The dense models that the repository holds."""

import pathlib

import jax
import numpy as np
import pytest

from comp_jax.data import emoji, images, nlvr_emoji, records, tokenizers
from comp_jax.interop import load
from comp_jax.models import families

ASSETS = pathlib.Path(__file__).parents[2] / "assets"
FAST = {"xla_backend_optimization_level": 0}


def test_the_model_for_pairs_tells_true_from_false_in_an_unseen_style():
  rows = records.read_parquet(
    ASSETS / "emoji" / emoji.FILE, ("code", "style", "name", "group", "webp")
  )
  pictures = {
    row["code"]: row["webp"] for row in rows if row["style"] == "fluent3d"
  }
  drawings = [
    nlvr_emoji.Emoji(name=row["name"], group=row["group"], file=row["code"])
    for row in rows
    if row["style"] == "fluent3d"
    and row["group"] not in ("flags", "components")
  ]
  claims = nlvr_emoji.Generator(drawings, seed=5, forms=["side"])
  claims = claims.statements(128)
  model = load.load(ASSETS / "nlvr_emoji")
  pixels = [
    [images.resize(pictures[one.file], 64) for one in claim.pair]
    for claim in claims
  ]
  text_ids, text_mask = tokenizers.load(model.tokenizer_json).encode(
    [claim.sentence for claim in claims], 32
  )
  batch = {
    "image": np.array(pixels),
    "text_ids": text_ids,
    "text_mask": text_mask,
  }
  run = jax.jit(
    lambda params, batch: families.module(model.spec).apply(
      {"params": params}, batch
    )[0]["logits"],
    compiler_options=FAST,
  )
  said = np.argmax(run(model.params, batch), axis=-1)
  labels = np.array([claim.label for claim in claims])
  assert np.mean(said == labels) > 0.65


@pytest.mark.parametrize("name", ["emoji_tiny", "nlvr_emoji"])
def test_a_card_names_the_size_of_its_model(name):
  model = load.load(ASSETS / name)
  size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
  assert (
    f"{size / 1e6:.2f} M parameters"
    in (ASSETS / name / "README.md").read_text()
  )

"""Hugging Face's config.json: what is read of it, and what is refused."""

import pytest

from comp_jax import errors
from comp_jax.interop import hf_config


def test_what_is_not_said_is_as_transformers_has_it():
  assert hf_config.clip({}, "x") == hf_config.blip({}, "x", "vqa") == {}
  options = hf_config.clip({"model_type": "clip"}, "x")
  assert options == {
    "heads": (12, 8),
    "norm_eps": (1e-5, 1e-5),
    "activations": ("quick_gelu", "quick_gelu"),
    "eot_id": 49407,
  }
  text = {"hidden_act": "quick_gelu", "bos_token_id": 5}
  config = {"text_config": text, "vision_config": {"num_attention_heads": 16}}
  options = {
    "heads": (16, 8),
    "norm_eps": (1e-5, 1e-12),
    "activations": ("gelu", "quick_gelu"),
  }
  assert hf_config.blip(config, "x", "nlvr") == options
  options |= {"bos_id": 5, "sep_id": 102}
  assert hf_config.blip(config, "x", "caption") == options


@pytest.mark.parametrize("key", ["vision_config", "text_config"])
@pytest.mark.parametrize("model", ["clip", "blip"])
@pytest.mark.parametrize(
  ("value", "message"),
  [
    ({"hidden_act": "relu"}, 'hidden_act is "relu", wanted gelu or quick_gelu'),
    ({"hidden_act": "gelu_new"}, 'is "gelu_new", wanted gelu or quick_gelu'),
    ({"hidden_act": None}, "hidden_act is null, wanted gelu or quick_gelu"),
    ({"hidden_act": ["gelu"]}, "wanted gelu or quick_gelu"),
    ({"layer_norm_eps": None}, "layer_norm_eps is null, wanted a number in"),
    ({"layer_norm_eps": "x"}, 'layer_norm_eps is "x", wanted a number in'),
    ({"layer_norm_eps": float("nan")}, "is NaN, wanted a number in"),
    ({"layer_norm_eps": -1}, "is -1, wanted a number in"),
    ({"num_attention_heads": 1.5}, "is 1.5, wanted a whole number above 0"),
    ({"num_attention_heads": True}, "is true, wanted a whole number above 0"),
  ],
)
def test_what_no_model_has_is_named(key, model, value, message):
  read = {
    "clip": hf_config.clip,
    "blip": lambda *config: hf_config.blip(*config, "matching"),
  }
  with pytest.raises(errors.UserError) as caught:
    read[model]({key: value}, "folder")
  error = str(caught.value)
  assert error.startswith(f"folder/config.json: {key}.") and message in error


def test_ids_of_tokens_are_whole_and_all_problems_are_named():
  text = {"bos_token_id": None, "sep_token_id": "[SEP]"}
  with pytest.raises(
    errors.UserError, match="bos_token_id is null.*; text_con"
  ):
    hf_config.blip({"text_config": text}, "x", "vqa")
  assert hf_config.blip({"text_config": text}, "x", "retrieval")
  with pytest.raises(errors.UserError, match="eos_token_id is -1, wanted a to"):
    hf_config.clip({"text_config": {"eos_token_id": -1}}, "x")
  legacy = {"text_config": {"eos_token_id": 2}}
  assert hf_config.clip(legacy, "x")["eot_id"] is None

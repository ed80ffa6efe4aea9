"""What Hugging Face's config.json tells that the shapes do not."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from comp_jax import errors
from comp_jax.models import published, specs

FILE = "config.json"
_TOWERS = ("vision_config", "text_config")
# Defaults of transformers, by tower: of CLIPVisionConfig, CLIPTextConfig,
_CLIP = (
  {
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-5,
    "hidden_act": "quick_gelu",
  },
  {
    "num_attention_heads": 8,
    "layer_norm_eps": 1e-5,
    "hidden_act": "quick_gelu",
    "eos_token_id": 49407,
  },
)
# BlipVisionConfig and BlipTextConfig; the ids where there is a decoder.
_BLIP = (
  {"num_attention_heads": 12, "layer_norm_eps": 1e-5, "hidden_act": "gelu"},
  {"num_attention_heads": 8, "layer_norm_eps": 1e-12, "hidden_act": "gelu"},
)
_DECODER_IDS = {
  "bos_token_id": published.BLIP_WORDS - 2,
  "sep_token_id": published.SEP,
}


def read(folder: pathlib.Path) -> dict[str, Any]:
  """The config of a folder.

  Raises:
    UserError: no JSON object whose towers are objects.
  """
  path = folder / FILE
  try:
    config = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise errors.UserError(f"{path}: not readable as JSON ({error})") from error
  if not isinstance(config, dict) or not all(
    isinstance(config.get(name, {}), dict) for name in _TOWERS
  ):
    raise errors.UserError(
      f"{path}: not a JSON object with {' and '.join(_TOWERS)} as objects"
    )
  return config


def clip(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Options of `clip.two_tower`; none without a config.

  Args:
    config: as read.
    where: the folder, for messages.

  Raises:
    UserError: names each value that the model cannot have.
  """
  if not config:
    return {}
  sides = _sides(config, where, _CLIP)
  # transformers takes the highest id where the config still has the wrong 2.
  end = sides[1]["eos_token_id"]
  return {**_untold(sides), "eot_id": None if end == 2 else end}


def blip(config: Mapping[str, Any], where: str, does: str) -> dict[str, Any]:
  """Options of the reader of a BLIP; see `clip`.

  Args:
    config: as read.
    where: the folder, for messages.
    does: what its checkpoint is for.
  """
  if not config:
    return {}
  if does not in ("caption", "vqa"):
    return _untold(_sides(config, where, _BLIP))
  sides = _sides(config, where, (_BLIP[0], _BLIP[1] | _DECODER_IDS))
  return {
    **_untold(sides),
    "bos_id": sides[1]["bos_token_id"],
    "sep_id": sides[1]["sep_token_id"],
  }


def _untold(sides) -> dict[str, Any]:
  """Fields of `shapes.Untold`."""
  pair = lambda key: tuple(side[key] for side in sides)  # noqa: E731
  return {
    "heads": pair("num_attention_heads"),
    "norm_eps": pair("layer_norm_eps"),
    "activations": pair("hidden_act"),
  }


def _sides(config, where, defaults) -> list[dict[str, Any]]:
  """The values of both towers, all of them valid."""
  sides, problems = [], []
  for tower, known in zip(_TOWERS, defaults, strict=True):
    given = config.get(tower, {})
    side = {key: given.get(key, value) for key, value in known.items()}
    problems += [
      f"{tower}.{key} is {json.dumps(value)}, wanted {wanted}"
      for key, value in side.items()
      if (wanted := _wanted(key, value))
    ]
    sides.append(side)
  if problems:
    raise errors.UserError(f"{where}/{FILE}: {'; '.join(problems)}")
  return sides


def _wanted(key: str, value: Any) -> str:
  """What a value should be; empty where it is."""
  whole = isinstance(value, int) and not isinstance(value, bool)
  if key == "hidden_act":
    return "" if value in specs.ACTIVATIONS else " or ".join(specs.ACTIVATIONS)
  if key == "layer_norm_eps":
    number = whole or isinstance(value, float)
    return "" if number and 0 <= value < 1 else "a number in [0, 1)"
  if key == "num_attention_heads":
    return "" if whole and value > 0 else "a whole number above 0"
  return "" if whole and value >= 0 else "a token id"

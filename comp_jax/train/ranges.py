"""What single values of a config may be: one table, asked before all else.

What depends on several fields, the model or the data is checked where they are.
"""

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any

import ml_collections

from comp_jax import errors
from comp_jax.train import fit
from comp_jax.train import settings as settings_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
  """Finite numbers from `low` to `high`; an open end is left out itself."""

  low: float = 0
  high: float = math.inf
  open_low: bool = False
  open_high: bool = False

  def __contains__(self, value: Any) -> bool:
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
      return False
    above = value > self.low if self.open_low else value >= self.low
    below = value < self.high if self.open_high else value <= self.high
    return above and below

  def __str__(self) -> str:
    if self.high == math.inf:
      return f"above {self.low}" if self.open_low else f"{self.low} or more"
    opening, closing = "[("[self.open_low], "])"[self.open_high]
    return f"in {opening}{self.low}, {self.high}{closing}"


class Choice(tuple):
  """Some words."""

  def __str__(self) -> str:
    return " or ".join(self) if len(self) < 3 else "one of " + ", ".join(self)


_ANY, _SOME = Range(), Range(low=1)
_ABOVE, _SHARE = Range(open_low=True), Range(high=1)
# A section that trains.
_TRAINS = {
  "steps": _ANY,
  "chunk": _SOME,
  "batch_size": _SOME,
  "microbatches": _SOME,
  "learning_rate": _ANY,
  "weight_decay": _ANY,
  "clip": _ANY,
  "decay": Choice(fit.DECAYS),
  "warmup": _ANY,
  "save_every": _SOME,
}
ALLOWED: Mapping[str, Range | Choice] = {
  # The fraction of MACs to remove.
  "ratio": Range(high=1, open_high=True),
  # What the pipelines' generators take.
  "seed": Range(high=2**32, open_high=True),
  # [CLS], a word, [SEP].
  "data.text_length": Range(low=3),
  "model.image_size": _SOME,
  "model.granularity": Choice(("head", "channel")),
  "model.dtype": Choice(("float32", "bfloat16", "float16")),
  "model.unroll": _SOME,
  "model.min_heads": _ANY,
  "model.min_neurons": _ANY,
  "recipe.strategy.explore": _SHARE,
  "recipe.strategy.temperature": _ABOVE,
  "recipe.strategy.history": _SHARE,
  "recipe.strategy.max_interval": _SOME,
  "recipe.strategy.explore_within": _SOME,
  "recipe.strategy.scarcity": _ANY,
  "prune.num_stages": _SOME,
  "prune.max_stages": _SOME,
  "prune.warmup_stages": _ANY,
  "prune.least_step": _ANY,
  "prune.stage_steps": _SOME,
  "prune.chunk": _ANY,
  "prune.batch_size": _SOME,
  "prune.microbatches": _SOME,
  "prune.learning_rate": _ANY,
  "prune.weight_decay": _ANY,
  "prune.clip": _ANY,
  "prune.decay": Choice(fit.DECAYS),
  "prune.validation": _SOME,
  "prune.validation_chunk": _SOME,
  "prune.calibration": _SOME,
  "prune.cost": Choice(settings_lib.COSTS),
  "prune.save_every": _SOME,
  **{f"finetune.{key}": allowed for key, allowed in _TRAINS.items()},
  "finetune.tokens": Choice(("static", "threshold")),
  **{f"train.{key}": allowed for key, allowed in _TRAINS.items()},
  "train.ridge_examples": _ANY,
  "evaluate.batch_size": _SOME,
}


def check(config: ml_collections.ConfigDict) -> None:
  """Raises a UserError that names every value outside its range."""
  check_values(_flat(config.to_dict()))


def check_values(values: Mapping[str, Any]) -> None:
  """The same of dotted keys; those that are not in the table are not asked.

  None leaves a recipe's own value.
  """
  wrong = [
    f"config.{key} must be {ALLOWED[key]}, not {value!r}"
    for key, value in values.items()
    if key in ALLOWED and value is not None and value not in ALLOWED[key]
  ]
  if wrong:
    raise errors.UserError("; ".join(wrong))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """The values of a nested dict by their dotted keys."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat

"""What the experiments of the paper's Tables 1 and 2 share: full-size models.

Each is its file at a ratio: `--config=configs/nlvr2_blip.py:0.85` removes 85 %
of the MACs, and trains for as many steps as UPop did for that much, search and
fine-tuning together. (`--config.ratio` alone leaves the steps as they are.)
Effective batch 256, rates, weight decay (of every parameter), no clipping and
the epochs are UPop's; bf16 and recomputed layers save memory. None has run on
an accelerator yet.
"""

import math
from collections.abc import Mapping

import ml_collections

from configs import common

# Most steps whose batches go to the devices at once. Two such parts of NLVR2's
# pairs are 3.6 GB; a whole stage of them is 15 GB at 0.7, of VQAv2 up to 45 GB.
_CHUNK = 8


def get_config(ratio: str) -> ml_collections.ConfigDict:
  c = common.get_config()
  c.ratio = _fraction(ratio)
  c.data.augment.operations = 2
  c.model.image_size = 384
  c.model.dtype = "bfloat16"
  c.model.remat = True
  c.recipe.name = "comp_wanda"
  c.recipe.estimator = "wanda"
  c.prune.num_stages = 100
  c.prune.max_stages = 130
  c.prune.batch_size = 256
  c.prune.learning_rate = 1e-5
  c.prune.clip = 0.0
  c.prune.decay = "all"
  c.prune.validation = 512
  c.prune.validation_chunk = 64
  c.finetune.batch_size = 256
  c.finetune.learning_rate = 1e-5
  c.finetune.clip = 0.0
  c.finetune.decay = "all"
  c.finetune.warmup = 0
  c.finetune.chunk = _CHUNK
  c.finetune.save_every = 60
  # The paper's execution; the static counts of the deployed model are measured
  # beside it.
  c.finetune.tokens = "threshold"
  c.evaluate.batch_size = 64
  c.evaluate.rows = (
    "dense",
    "compacted",
    "finetuned",
    "finetuned_threshold",
  )
  return c


def set_phases(
  c: ml_collections.ConfigDict, epochs: Mapping[float, int], steps: int
) -> None:
  """Sets the lengths of search and fine-tuning: UPop's two equal phases.

  A search that needs more than its planned stages takes them from fine-tuning,
  which gets those that were not needed: the sum is UPop's either way.

  Args:
    c: whose ratio counts.
    epochs: of each phase, by the fraction of the parameters that UPop removed
      in them; the nearest compression (on a logarithmic scale) is taken.
    steps: of an epoch.
  """
  distance = lambda p: abs(math.log((1 - p) / (1 - c.ratio)))  # noqa: E731
  phase = epochs[min(epochs, key=distance)] * steps
  least = phase // c.prune.num_stages
  # Of the two nearest lengths of a stage the one that comes in larger parts.
  c.prune.chunk, c.prune.stage_steps = max(
    (max(part for part in range(1, _CHUNK + 1) if length % part == 0), length)
    for length in (least, least + 1)
  )
  stages = c.prune.warmup_stages + c.prune.max_stages
  c.finetune.steps = 2 * phase - stages * c.prune.stage_steps


def _fraction(ratio: str) -> float:
  try:
    value = float(ratio)
  except ValueError:
    value = math.nan
  if not 0 < value < 1:
    raise ValueError(
      f"the text after the file's name is the ratio, above 0 and below 1, not "
      f"{ratio!r}"
    )
  return value

"""What the experiments of the paper's Tables 1 and 2 share: full-size models.

Effective batch 256 and the learning rates are UPop's; bf16 and recomputed
layers save memory. None of it has run on an accelerator yet.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
  c = common.get_config()
  c.data.augment.operations = 2
  c.model.image_size = 384
  c.model.dtype = "bfloat16"
  c.model.remat = True
  c.recipe.name = "comp_wanda"
  c.prune.num_stages = 100
  c.prune.max_stages = 130
  c.prune.stage_steps = 100
  c.prune.batch_size = 256
  c.prune.learning_rate = 1e-5
  c.prune.validation = 512
  c.prune.validation_chunk = 64
  c.finetune.batch_size = 256
  c.finetune.learning_rate = 1e-5
  c.finetune.warmup = 0
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

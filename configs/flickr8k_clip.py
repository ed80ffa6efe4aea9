"""Flickr8k retrieval with a published CLIP, from its Hugging Face folder.

The folder holds config.json, the weights and tokenizer.json, as
openai/clip-vit-base-patch32 is published. CLIP is pruned from its pretrained
weights; fine-tune it first with train.py for the best numbers.

  python train.py --config=configs/flickr8k_clip.py \\
    --config.train.start=CLIP --config.data.dir=DIR --workdir=runs/clip_dense
  python prune.py --config=configs/flickr8k_clip.py \\
    --config.checkpoint=runs/clip_dense/model --config.data.dir=DIR \\
    --workdir=runs/clip_comp_0.7 --config.ratio=0.7

Meant for an accelerator; `prune.py --dry_run` says what it needs. The
published weights were not at hand when this was written, so there are no
expected numbers here.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
  c = common.get_config()
  c.name = "flickr8k_clip"
  c.data.name = "flickr8k"
  c.data.text_length = 77
  c.data.report_splits = ("select", "dev")
  c.model.image_size = 224
  c.model.dtype = "bfloat16"
  c.prune.num_stages = 30
  c.prune.max_stages = 45
  c.prune.stage_steps = 20
  c.prune.batch_size = 256
  c.prune.learning_rate = 1e-5
  c.prune.weight_decay = 0.2
  c.prune.validation = 512
  c.prune.validation_chunk = 256
  c.finetune.steps = 500
  c.finetune.batch_size = 256
  c.finetune.learning_rate = 1e-5
  c.finetune.weight_decay = 0.2
  c.train.steps = 500
  c.train.batch_size = 256
  c.train.learning_rate = 1e-5
  c.train.weight_decay = 0.2
  c.train.warmup = 50
  return c

"""Flickr8k image-text matching: BLIP in small, all five modes.

DINOv2 ViT-S/14 and MiniLM-L6, whose layers get new cross-attention to the
image tokens. `select` pairs choose, val reports; chance is 0.50.

  make pretrained
  python train.py --config=configs/flickr8k_itm.py \\
    --config.data.dir=DIR --workdir=runs/itm_dense
  python prune.py --config=configs/flickr8k_itm.py \\
    --config.data.dir=DIR --workdir=runs/itm_comp_0.7 --config.ratio=0.7

It has not been run to the end yet, so there are no expected numbers here.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
  c = common.get_config()
  c.name = "flickr8k_itm"
  c.checkpoint = "runs/itm_dense/model"
  c.data.name = "flickr8k_itm"
  c.data.text_length = 24
  c.data.report_splits = ("select", "val")
  c.model.preset = "dinov2_s14_minilm_itm"
  c.model.pretrained = True
  c.model.image_size = 112
  c.prune.num_stages = 12
  c.prune.max_stages = 16
  c.prune.stage_steps = 5
  c.prune.batch_size = 32
  c.prune.learning_rate = 2e-5
  c.prune.validation = 256
  c.prune.validation_chunk = 64
  c.prune.calibration = 32
  c.prune.save_every = 4
  c.finetune.steps = 120
  c.finetune.chunk = 20
  c.finetune.batch_size = 32
  c.finetune.warmup = 10
  c.finetune.learning_rate = 1e-4
  c.train.steps = 400
  c.train.chunk = 20
  c.train.batch_size = 32
  c.train.learning_rate = 1e-4
  c.train.warmup = 40
  c.train.save_every = 5
  c.evaluate.batch_size = 64
  return c

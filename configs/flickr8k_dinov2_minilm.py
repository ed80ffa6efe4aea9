"""Flickr8k retrieval with DINOv2 ViT-S/14 and MiniLM-L6 at 112 pixels.

Dense fine-tuning of the pretrained pair, then CoMP. Reported on dev (1,000
images, 5,000 captions); `select` (1,000 training images held out by a fixed
hash) is all that choices see.

  make pretrained
  python train.py --config=configs/flickr8k_dinov2_minilm.py \\
    --config.data.dir=DIR --workdir=runs/flickr_dense
  python prune.py --config=configs/flickr8k_dinov2_minilm.py \\
    --config.data.dir=DIR --workdir=runs/flickr_comp_0.7 --config.ratio=0.7

The budget is meant for two CPU cores. It has not been run to the end yet, so
there are no expected numbers here.
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
  c = common.get_config()
  c.name = "flickr8k_dinov2_minilm"
  c.checkpoint = "runs/flickr_dense/model"
  c.data.name = "flickr8k"
  c.data.text_length = 24
  c.data.report_splits = ("dev",)
  c.model.preset = "dinov2_s14_minilm"
  c.model.pretrained = True
  c.model.image_size = 112
  c.prune.num_stages = 10
  c.prune.max_stages = 13
  c.prune.stage_steps = 4
  c.prune.batch_size = 32
  c.prune.learning_rate = 1e-5
  c.prune.validation = 128
  c.prune.validation_chunk = 64
  c.prune.calibration = 32
  c.prune.save_every = 4
  c.finetune.steps = 80
  c.finetune.chunk = 20
  c.finetune.batch_size = 48
  c.finetune.warmup = 10
  c.finetune.learning_rate = 1e-4
  c.train.steps = 180
  c.train.chunk = 20
  c.train.batch_size = 48
  c.train.learning_rate = 5e-5
  c.train.warmup = 20
  c.train.ridge_examples = 1500
  c.train.save_every = 5
  c.evaluate.batch_size = 64
  return c

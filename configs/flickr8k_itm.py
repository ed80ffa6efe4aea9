"""Flickr8k image-text matching: BLIP in small, all five modes.

The towers of the contrastive `flickr8k_dinov2_minilm`, whose text layers get
new cross-attention to the image tokens. It begins silent and compares as the
joint space does, pictures stay frozen, so 400 steps are enough: 23 minutes
beside other work. `select` pairs choose, val reports; chance is 0.50.

  make pretrained
  (first the dense model of configs/flickr8k_dinov2_minilm.py)
  python train.py --config=configs/flickr8k_itm.py \\
    --config.data.dir=DIR --workdir=runs/itm_dense
  python prune.py --config=configs/flickr8k_itm.py \\
    --config.data.dir=DIR --workdir=runs/itm_comp_0.7 --config.ratio=0.7

Dense: val accuracy 0.873, AUC 0.936 (select 0.884, 0.948), one seed. Pruned by
0.7 (seed 0): 0.804 and 0.880, `uniform` 0.792 and 0.868. By 0.85
(--config.finetune.steps=182; seeds 0 and 1): 0.709 and 0.782, `uniform` (with
--config.prune.max_stages=22 --config.finetune.steps=150, as many steps in all)
0.699 and 0.762; 23 to 30 minutes of one core each
(docs/results/flickr8k_pairs.md).
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
  c.model.image_size = 112
  # Their signed Taylor scores need more examples than a stage has here: see
  # `flickr8k_dinov2_minilm`.
  c.recipe.name = "comp_wanda"
  c.recipe.estimator = "wanda"
  c.recipe.strategy.explore_within = 3.0
  c.prune.num_stages = 10
  c.prune.max_stages = 14
  c.prune.stage_steps = 4
  c.prune.batch_size = 32
  c.prune.learning_rate = 1e-5
  c.prune.validation = 256
  c.prune.validation_chunk = 64
  c.prune.calibration = 32
  c.prune.cost = "immediate"
  c.prune.save_every = 4
  c.finetune.steps = 166
  c.finetune.chunk = 10
  c.finetune.batch_size = 48
  c.finetune.warmup = 10
  # The only rate that was run to the end; at 5e-5 the loss rose at first.
  c.finetune.learning_rate = 1e-5
  # The towers know each other already; only how the text looks is new.
  c.train.towers = "runs/flickr_dense/model"
  c.train.rates = (
    ("vision/.*", 0.0),
    ("text/encoder/layers/.*cross/.*", 1.0),
    ("text/.*", 0.1),
  )
  c.train.steps = 400
  c.train.chunk = 20
  c.train.batch_size = 48
  c.train.learning_rate = 3e-4
  c.train.warmup = 20
  c.train.save_every = 5
  c.evaluate.batch_size = 64
  return c

"""BLIP's retrieval in small, on emoji: momentum contrast, matching, re-ranking.

The towers of `assets/emoji_tiny` with new cross-attention, all five modes.
`nlvr_emoji` begins with what this one learns, as BLIP's NLVR2 does with BLIP.
T2I / I2T R@10 on the unseen style, one seed: dense 0.282 / 0.207 (13 minutes of
two CPU cores), pruned by 0.7 without a pace 0.256 / 0.197 (docs/results.md).

  python train.py --config=configs/emoji_blip_retrieval.py \\
    --workdir=runs/emoji_blip
  python prune.py --config=configs/emoji_blip_retrieval.py \\
    --workdir=runs/emoji_blip_comp_0.7 --config.ratio=0.7
"""

import ml_collections

from configs import emoji_tiny


def get_config() -> ml_collections.ConfigDict:
  c = emoji_tiny.get_config()
  c.name = "emoji_blip_retrieval"
  c.checkpoint = "runs/emoji_blip/model"
  c.task.queue = 512
  c.task.rerank = 32
  c.model.preset = "tiny_retrieval"
  c.model.remat = False
  c.recipe.name = "comp_wanda"
  c.recipe.estimator = "wanda"
  # Without a pace, at the 0.1 of the other configs, MPS spent 18 of 22 stages
  # on ever smaller steps of two modes, and never arrived.
  c.prune.least_step = 0.25
  c.finetune.learning_rate = 5e-4
  c.train.towers = "assets/emoji_tiny"
  c.train.learning_rate = 5e-4
  c.train.steps = 1000
  return c

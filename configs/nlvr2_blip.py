"""BLIP on NLVR2 at 384 pixels: the paper's main experiment (its Table 1).

Published test accuracy by the ratio after the file's name, GMACs beside it:

  dense  83.08 (132.54)
  :0.7   CoMP 81.37 (39.72), MADTP 80.78 (39.63), UPop 68.76 (39.93)
  :0.8   CoMP 79.62 (25.97), MADTP 77.61 (26.46), joint 77.44 (26.61)
  :0.85  CoMP 76.08 (20.26), MADTP 72.57 (20.57), UPop 62.10, joint 63.09

These are the papers' numbers, not ours: the weights and the images were not at
hand when this was written; "joint" is MADTP and then UPop. Recipe: spec of
UPop, effective batch 256, learning rate 3e-6, 20 epochs of 337 steps per phase
at 0.7 and 24 at 0.8 and 0.85.

  python -m comp_jax convert --source model_base_nlvr.pth --task nlvr \\
    --tokenizer DIR_OF_BERT --to runs/blip_nlvr
  python prune.py --config=configs/nlvr2_blip.py:0.7 \\
    --config.data.dir=NLVR2 --workdir=runs/nlvr2_comp_0.7
"""

import ml_collections

from configs import common, published

# By the fraction of the parameters that UPop removed in them.
EPOCHS = {0.5: 15, 2 / 3: 20, 0.75: 23, 0.8: 24, 0.9: 27}


def get_config(ratio: str = "0.7") -> ml_collections.ConfigDict:
  c = published.get_config(ratio)
  c.name = "nlvr2_blip"
  c.checkpoint = "runs/blip_nlvr"
  c.data.name = "nlvr2"
  # 40 words: the published code cuts no tokens.
  c.data.text_length = 64
  c.data.augment.swap = 0.5
  c.data.report_splits = ("dev", "test")
  c.model.preset = "blip_nlvr"
  c.prune.learning_rate = 3e-6
  c.prune.metric = "accuracy"
  c.finetune.learning_rate = 3e-6
  published.set_phases(c, EPOCHS, 337)
  # An evaluation is one forward pass per pair of images: all rows.
  c.evaluate.rows = common.get_config().evaluate.rows
  return c

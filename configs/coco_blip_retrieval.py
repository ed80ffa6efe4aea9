"""BLIP on COCO retrieval at 384 pixels, Karpathy's test split (5,000 images).

Published image-to-text R@1, by the ratio after the file's name:

  dense  81.9 (text-to-image 64.3)
  :0.7   CoMP 76.2, MADTP 73.9
  UPop at half the parameters  77.4 (59.8)

These are the papers' numbers, not ours: weights and photos were not at hand
when this was written. Recipe: spec of UPop, effective batch 256, learning rate
1e-5, 9 epochs of 2,213 steps per phase (6 at 0.5).

  python -m comp_jax convert --source model_base_retrieval_coco.pth \\
    --task retrieval --tokenizer DIR_OF_BERT --to runs/blip_coco
  python prune.py --config=configs/coco_blip_retrieval.py:0.7 \\
    --config.data.dir=COCO --workdir=runs/coco_comp_0.7

Evaluation keeps the image tokens of a split on the devices (4.4 GB for 5,000
dense images) and judges up to 7.7 million pairs: `config.task.rerank=0` gives
the recalls of the joint space alone.
"""

import ml_collections

from configs import published


def get_config(ratio: str = "0.7") -> ml_collections.ConfigDict:
  c = published.get_config(ratio)
  c.name = "coco_blip_retrieval"
  c.checkpoint = "runs/blip_coco"
  c.data.name = "coco"
  c.data.text_length = 35
  c.data.report_splits = ("val", "test")
  c.task.queue = 57600
  c.task.ramp = 2213
  c.task.rerank = 256
  published.set_phases(c, {0.5: 6, 0.75: 9}, 2213)
  return c

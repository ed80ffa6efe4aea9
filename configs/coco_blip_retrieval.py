"""BLIP on COCO retrieval at 384 pixels, Karpathy's test split (5,000 images).

Published image-to-text R@1: dense 81.9 (text-to-image 64.3); at ratio 0.7
MADTP 73.9, CoMP 76.2; UPop at half the parameters 77.4 (59.8). These are the
papers' numbers, not ours: weights and photos were not at hand when this was
written. Recipe: spec of UPop, effective batch 256, learning rate 1e-5, 6
epochs of 2,213 steps per phase.

  python -m comp_jax convert --source model_base_retrieval_coco.pth \\
    --task retrieval --tokenizer DIR_OF_BERT --to runs/blip_coco
  python prune.py --config=configs/coco_blip_retrieval.py \\
    --config.data.dir=COCO --workdir=runs/coco_comp_0.7 --config.ratio=0.7

Evaluation keeps the image tokens of a split on the devices (4.4 GB for 5,000
dense images) and judges up to 7.7 million pairs: `config.task.rerank=0` gives
the recalls of the joint space alone.
"""

import ml_collections

from configs import published


def get_config() -> ml_collections.ConfigDict:
  c = published.get_config()
  c.name = "coco_blip_retrieval"
  c.checkpoint = "runs/blip_coco"
  c.data.name = "coco"
  c.data.text_length = 35
  c.data.report_splits = ("val", "test")
  c.task.queue = 57600
  c.task.ramp = 2213
  c.task.rerank = 256
  c.finetune.steps = 6 * 2213
  return c

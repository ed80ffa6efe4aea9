"""BLIP on Flickr30K retrieval at 384 pixels, the test split of 1,000 images.

Published image-to-text R@1: dense 96.8 (text-to-image 86.9); at ratio 0.7
MADTP 92.6, CoMP 94.4; UPop at half the parameters 92.2 (82.0). These are the
papers' numbers, not ours: weights and photos were not at hand when this was
written. Recipe: spec of UPop, 12 epochs of 566 steps per phase.

  python -m comp_jax convert --source model_base_retrieval_flickr.pth \\
    --task retrieval --tokenizer DIR_OF_BERT --to runs/blip_flickr30k
  python prune.py --config=configs/flickr30k_blip_retrieval.py \\
    --config.data.dir=FLICKR30K --workdir=runs/flickr30k_comp_0.7
"""

import ml_collections

from configs import coco_blip_retrieval


def get_config() -> ml_collections.ConfigDict:
  c = coco_blip_retrieval.get_config()
  c.name = "flickr30k_blip_retrieval"
  c.checkpoint = "runs/blip_flickr30k"
  c.data.name = "flickr30k"
  c.task.ramp = 566
  c.task.rerank = 128
  c.prune.stage_steps = 50
  c.finetune.steps = 12 * 566
  return c

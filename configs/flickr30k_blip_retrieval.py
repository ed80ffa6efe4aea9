"""BLIP on Flickr30K retrieval at 384 pixels, the test split of 1,000 images.

Published image-to-text R@1, by the ratio after the file's name:

  dense  96.8 (text-to-image 86.9)
  :0.7   CoMP 94.4, MADTP 92.6
  UPop at half the parameters  92.2 (82.0)

These are the papers' numbers, not ours: weights and photos were not at hand
when this was written. Recipe: spec of UPop, 18 epochs of 566 steps per phase
(12 at 0.5).

  python -m comp_jax convert --source model_base_retrieval_flickr.pth \\
    --task retrieval --tokenizer DIR_OF_BERT --to runs/blip_flickr30k
  python prune.py --config=configs/flickr30k_blip_retrieval.py:0.7 \\
    --config.data.dir=FLICKR30K --workdir=runs/flickr30k_comp_0.7
"""

import ml_collections

from configs import coco_blip_retrieval, published

# By the fraction of the parameters that UPop removed in them.
EPOCHS = {0.5: 12, 0.75: 18}


def get_config(ratio: str = "0.7") -> ml_collections.ConfigDict:
  c = coco_blip_retrieval.get_config(ratio)
  c.name = "flickr30k_blip_retrieval"
  c.checkpoint = "runs/blip_flickr30k"
  c.data.name = "flickr30k"
  c.task.ramp = 566
  c.task.rerank = 128
  published.set_phases(c, EPOCHS, 566)
  return c

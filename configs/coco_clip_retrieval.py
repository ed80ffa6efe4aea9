"""CLIP ViT-L/14@336 on COCO retrieval, Karpathy's test split.

Published image-to-text R@1, by the ratio after the file's name:

  dense  71.5 (text-to-image 56.8)
  :0.75  CoMP 68.7, MADTP 66.2 (notes on this row disagree)
  UPop at half the parameters  70.8 (53.1)

These are the papers' numbers, not ours: weights and photos were not at hand
when this was written. Trained by momentum contrast like BLIP
(`config.task.queue=0` contrasts the batch with itself); no re-ranking.
Recipe: spec of UPop. Flickr30K: `configs/flickr30k_clip_retrieval.py`.

  python -m comp_jax convert --source clip_large_retrieval_coco.pth \\
    --task retrieval --tokenizer DIR_OF_CLIP --to runs/clip_coco
  python prune.py --config=configs/coco_clip_retrieval.py:0.75 \\
    --config.data.dir=COCO --workdir=runs/coco_clip_comp_0.75
"""

import ml_collections

from configs import coco_blip_retrieval


def get_config(ratio: str = "0.75") -> ml_collections.ConfigDict:
  c = coco_blip_retrieval.get_config(ratio)
  c.name = "coco_clip_retrieval"
  c.checkpoint = "runs/clip_coco"
  c.data.text_length = 77
  c.model.image_size = 336
  c.prune.weight_decay = 0.2
  c.finetune.weight_decay = 0.2
  return c

"""Two pictures and a sentence: NLVR2 in small, from emoji, all five modes.

The data are made by a seeded generator in NLVR2's own format and read by the
loader of NLVR2 itself. A reader of the text alone reaches 0.50; one that
recognises everything in the text and in one of the two images 0.78.

  python -m comp_jax data nlvr_emoji --to DIR
  python prune.py --config=configs/nlvr_emoji.py --config.data.dir=DIR \\
    --workdir=runs/nlvr_comp_0.7 --config.ratio=0.7

Accuracy on dev, one seed, without a pace, read with the full stops that are
cleaned away now: dense 0.672, `comp_wanda` 0.674 at 0.7 and 0.659 at 0.85,
`uniform` 0.682 and 0.680 (docs/results.md); 21 to 28 minutes each, two at a
time on two CPU cores.
Without full stops at 0.85: 0.660 (`--config.prune.cost=paired` and
`--config.prune.least_step=0.25`) and 0.666.

The dense checkpoint lies in `assets/nlvr_emoji`. It was trained as BLIP's is:
first single pictures and texts (`emoji_blip_retrieval`), then statements about
one of two pictures, then all of them. Without these lessons the loss was still
that of guessing (0.69) after hundreds of steps.

  python train.py --config=configs/emoji_blip_retrieval.py \\
    --workdir=runs/emoji_blip
  python -m comp_jax data nlvr_emoji --forms side --train 12000 \\
    --to SIDES
  python train.py --config=configs/nlvr_emoji.py --config.data.dir=SIDES \\
    --config.train.steps=200 --workdir=runs/nlvr_sides
  python train.py --config=configs/nlvr_emoji.py --config.data.dir=DIR \\
    --config.train.start=runs/nlvr_sides/model --config.seed=1 \\
    --workdir=runs/nlvr_dense
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
  c = common.get_config()
  c.name = "nlvr_emoji"
  c.checkpoint = "assets/nlvr_emoji"
  c.data.name = "nlvr2"
  c.data.text_length = 32
  c.data.report_splits = ("select", "dev")
  c.data.augment.crop_scale = (0.7, 1.0)
  c.data.augment.jitter = 0.2
  # Left and right are said of images, not of what is drawn: flips are safe.
  c.model.preset = "tiny_nlvr"
  c.recipe.name = "comp_wanda"
  c.recipe.estimator = "wanda"
  c.prune.num_stages = 12
  c.prune.max_stages = 22
  c.prune.stage_steps = 25
  # In 25 steps training moves the metric more than a stage's pruning does.
  c.prune.cost = "immediate"
  c.prune.validation = 512
  c.prune.validation_chunk = 128
  c.prune.calibration = 64
  c.prune.learning_rate = 2e-4
  c.finetune.steps = 400
  c.finetune.learning_rate = 5e-4
  c.train.towers = "runs/emoji_blip/model"
  c.train.learning_rate = 5e-4
  c.train.steps = 1500
  c.train.batch_size = 64
  c.train.warmup = 50
  return c

"""`nlvr_emoji` at a budget that leaves room for five seeds of many recipes.

52 steps of search and 60 of fine-tuning, of 32 statements each: about two
minutes of one CPU core for a point. Accuracy on dev, means of five seeds
(docs/results/nlvr_grid.md): dense 0.670; at 0.7 CoMP 0.652, `uniform` 0.629,
`sjp_together` and `madtp` 0.659. At 0.85, with finetune.steps=92, CoMP 0.639;
with as many steps in all (prune.max_stages=20) `uniform` 0.625, `sjp_together`
0.628.

  python -m comp_jax data nlvr_emoji --to DIR
  python -m comp_jax sweep --config=configs/nlvr_emoji_grid.py \\
    --workdir=runs/nlvr_grid --sweep data.dir=DIR ratios=0.7,0.85 seeds=0:5 \\
    recipes=comp_wanda,uniform,sjp_together,madtp
"""

import ml_collections

from configs import nlvr_emoji


def get_config() -> ml_collections.ConfigDict:
  c = nlvr_emoji.get_config()
  c.name = "nlvr_emoji_grid"
  c.data.report_splits = ("select", "dev")
  c.evaluate.rows = ("dense", "finetuned")
  c.prune.num_stages = 8
  c.prune.max_stages = 12
  c.prune.stage_steps = 4
  c.prune.batch_size = 32
  c.prune.validation = 128
  c.prune.calibration = 16
  c.finetune.steps = 60
  c.finetune.batch_size = 32
  c.finetune.warmup = 10
  return c

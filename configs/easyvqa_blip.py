"""Questions about one coloured shape: BLIP's question answering in small.

  pip install --no-deps easy-vqa==1.0
  python train.py --config=configs/easyvqa_blip.py --workdir=runs/easyvqa_dense
  python prune.py --config=configs/easyvqa_blip.py \\
    --workdir=runs/easyvqa_comp_0.7 --config.ratio=0.7
"""

import ml_collections

from configs import common


def get_config() -> ml_collections.ConfigDict:
  c = common.get_config()
  c.name = "easyvqa_blip"
  c.checkpoint = "runs/easyvqa_dense/model"
  c.data.name = "easy_vqa"
  c.data.text_length = 16
  c.data.report_splits = ("test",)
  # Colours and whole shapes are asked for: nothing is tinted or cut.
  c.data.augment.crop_scale = (1.0, 1.0)
  c.task.answers = 1
  c.task.answer_length = 4
  # All there are.
  c.task.rank = 13
  c.model.preset = "tiny_vqa"
  c.prune.num_stages = 16
  c.prune.max_stages = 22
  c.prune.stage_steps = 10
  c.prune.validation = 512
  c.prune.validation_chunk = 128
  c.prune.calibration = 64
  c.prune.learning_rate = 3e-4
  c.finetune.steps = 200
  c.finetune.learning_rate = 5e-4
  c.train.steps = 2400
  c.train.batch_size = 32
  c.train.warmup = 100
  return c

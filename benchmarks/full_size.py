"""One pruning stage of BLIP-base for NLVR2 at 384 pixels, and what it leaves.

  python benchmarks/full_size.py --workdir=DIR
  python benchmarks/forward.py --dense=DIR/dense --compact=DIR/run/model \\
    --batch=1 --rounds=10

The weights are random and the statements are of emoji: this measures whether
the whole job fits a small machine, and how long it takes, not what it finds.
A single stage goes all the way to the ratio.
"""

import pathlib
import resource

import jax
import numpy as np
from absl import app, flags

from comp_jax.cli import configs
from comp_jax.data import nlvr_emoji, tokenizers
from comp_jax.interop import store
from comp_jax.models import families, presets
from comp_jax.train import pruning

_ROOT = pathlib.Path(__file__).parents[1]
WORKDIR = flags.DEFINE_string("workdir", None, "Folder to make.", required=True)
RATIO = flags.DEFINE_float("ratio", 0.85, "Fraction of the MACs to remove.")
STEPS = flags.DEFINE_integer("steps", 2, "Training steps of the stage.")
BATCH = flags.DEFINE_integer("batch", 2, "Examples per step.")


def write_dense(path: pathlib.Path, max_length: int) -> None:
  """A BLIP-base for NLVR2 with random weights."""
  spec = presets.spec("blip_nlvr", max_length=max_length)
  params = jax.tree.map(np.asarray, families.initial_params(spec, seed=0))
  store.save(
    path,
    params=params,
    spec=spec,
    policies={},
    tokenizer_json=tokenizers.minilm().to_json(),
    recipe={"name": "random"},
  )


def main(_):
  workdir = pathlib.Path(WORKDIR.value)
  if not (workdir / "data").exists():
    emoji = _ROOT / "assets" / "emoji"
    nlvr_emoji.write(emoji, workdir / "data", train=64, dev=4)
  config = configs.load(str(_ROOT / "configs" / "nlvr2_blip.py"))
  if not (workdir / "dense").exists():
    write_dense(workdir / "dense", config.data.text_length)
  config.checkpoint = str(workdir / "dense")
  config.ratio = RATIO.value
  config.data.dir = str(workdir / "data")
  config.data.report_splits = ("dev",)
  config.model.dtype = "float32"
  # All modes at once: one stage can go all the way.
  config.recipe.name = "all_modes_together"
  config.recipe.score = "wanda"
  config.prune.num_stages = config.prune.max_stages = 1
  config.prune.warmup_stages = 1
  config.prune.stage_steps = STEPS.value
  config.prune.batch_size = BATCH.value
  config.prune.validation = config.prune.calibration = 4
  config.prune.validation_chunk = 2
  config.finetune.steps = config.finetune.chunk = 1
  config.finetune.tokens = "static"
  config.finetune.batch_size = BATCH.value
  config.evaluate.batch_size = 2
  config.evaluate.rows = ("dense", "finetuned")
  report, _ = pruning.run(config, workdir / "run")
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  macs, seconds = report["macs"], report["seconds"]
  print(f"{jax.device_count()} x {jax.devices()[0].device_kind}")
  print(f"MACs {macs['dense'] / 1e9:.2f} G -> {macs['final'] / 1e9:.2f} G")
  print(
    f"two stages of {STEPS.value} steps of {BATCH.value}: "
    f"{seconds['prune']:.0f} s"
  )
  print(f"the whole job: {seconds['total']:.0f} s, {peak:.1f} GiB at most")


if __name__ == "__main__":
  app.run(main)

"""Wall time of the compact model against the dense one, beside their MACs.

  python benchmarks/forward.py --compact=runs/demo/model
  python benchmarks/forward.py --dense=DIR --compact=DIR --batch=1

Both run in this process, in turn, on the same random batch; the ratio of the
medians is what to quote.
"""

import statistics
import time

import jax
import numpy as np
from absl import app, flags

import comp_jax
from comp_jax.core import cost
from comp_jax.models import families, towers

DENSE = flags.DEFINE_string("dense", "assets/emoji_tiny", "Dense model.")
COMPACT = flags.DEFINE_string("compact", "runs/demo/model", "Compact model.")
BATCH = flags.DEFINE_integer("batch", 32, "Examples per forward.")
TEXT = flags.DEFINE_integer("text_length", 20, "Valid tokens of each text.")
# Tokens of the answer that a question-answering model is asked about.
ANSWER = 5
ROUNDS = flags.DEFINE_integer("rounds", 30, "Timed forwards of each model.")


def macs(model) -> float:
  """MACs of one example, its text of TEXT tokens."""
  counts = {}
  tokens_of = {
    "vision": [model.spec.vision.tokens] * model.spec.images,
    "text": [TEXT.value] * model.spec.readings,
    "answer": [ANSWER],
  }
  for tower in model.spec.towers:
    policy = model.policies.get(tower)
    counts[tower] = cost.static_counts(
      np.array(tokens_of[tower]),
      None if policy is None else policy.keep,
      getattr(model.spec, tower).encoder.depth,
    )
  return float(families.macs(model.spec, None, counts))


def main(_):
  models = {
    "dense": comp_jax.load(DENSE.value),
    "compact": comp_jax.load(COMPACT.value),
  }
  rng = np.random.default_rng(0)
  example = towers.example(models["dense"].spec)["image"]
  shape = (BATCH.value, *example.shape[1:])
  images = rng.integers(0, 255, shape, np.uint8)
  ids = rng.integers(5, 1000, (BATCH.value, TEXT.value), np.int32)
  ids[:, 0], ids[:, -1] = 2, models["dense"].spec.text.sep_id
  answers = np.broadcast_to(ids[:, None, :ANSWER], (BATCH.value, 1, ANSWER))
  batch = {
    "image": images,
    "text_ids": ids,
    "text_mask": np.ones(ids.shape, bool),
    "answer_ids": answers,
    "answer_mask": np.ones(answers.shape, bool),
  }
  seconds = {name: [] for name in models}
  for model in models.values():
    jax.block_until_ready(model(batch))
  for _ in range(ROUNDS.value):
    for name, model in models.items():
      began = time.perf_counter()
      jax.block_until_ready(model(batch))
      seconds[name].append(time.perf_counter() - began)
  median = {name: statistics.median(row) for name, row in seconds.items()}
  cost_of = {name: macs(model) for name, model in models.items()}
  for name in models:
    print(
      f"{name:8} {cost_of[name] / 1e6:8.2f} M MACs per example  "
      f"{median[name] * 1e3:8.2f} ms per batch of {BATCH.value} "
      f"(min {min(seconds[name]) * 1e3:.2f}, "
      f"max {max(seconds[name]) * 1e3:.2f})"
    )
  print(
    f"compact / dense: MACs {cost_of['compact'] / cost_of['dense']:.3f}, "
    f"wall time {median['compact'] / median['dense']:.3f} "
    f"on {jax.devices()[0].device_kind}"
  )


if __name__ == "__main__":
  app.run(main)

"""A realistic report and samples, with no model behind them."""

import collections.abc

import numpy as np
import pytest

from tests.report import kit

_MODES = (
  "vision_tokens",
  "vision_params",
  "vision_tokens",
  "language_params",
  "vision_params",
  "language_tokens",
  "vision_tokens",
  "vision_params",
  "vision_params",
  "language_params",
  "vision_tokens",
  "vision_params",
)
_ALL = ("vision_params", "language_params", "vision_tokens", "language_tokens")


def _metrics(level: float, loss: float) -> dict[str, float]:
  return {
    "t2i_r1": 0.40 * level,
    "t2i_r5": 0.80 * level,
    "t2i_r10": level,
    "i2t_r1": 0.45 * level,
    "i2t_r5": 0.85 * level,
    "i2t_r10": 1.05 * level,
    "loss": loss,
  }


def _stages(dense: float, target: float) -> list[dict]:
  rng = np.random.default_rng(0)
  costs = {
    "vision_params": 0.9,
    "language_params": 2.1,
    "vision_tokens": 0.5,
    "language_tokens": 14.0,
  }
  macs, metric = dense, -1.62
  thresholds = {"vision": 0.0, "text": 0.0}
  stages = []
  step = (dense - target) / len(_MODES)
  for index, mode in enumerate(("warmup", *_MODES)):
    before, metric_before = macs, metric
    cost = immediate = None
    if mode == "warmup":
      metric_immediate, metric = metric, metric + 0.04
    else:
      macs -= step * float(rng.uniform(0.9, 1.1)) if index < 12 else 0
      macs = target * 0.998 if index == 12 else macs
      drop = costs[mode] * (before - macs) / dense
      metric_immediate = metric - 1.6 * drop
      metric -= 0.4 * drop * float(rng.uniform(-0.5, 1.6))
      fraction = (before - macs) / dense
      cost = (metric_before - metric) / fraction
      immediate = (metric_before - metric_immediate) / fraction
      costs[mode] = 0.4 * costs[mode] + 0.6 * cost
      if mode == "vision_tokens":
        thresholds["vision"] += 0.14
      if mode == "language_tokens":
        thresholds["text"] += 0.4
    stages.append(
      {
        "index": index,
        "mode": mode,
        "explored": index in (4, 6),
        "macs": macs,
        "macs_before": before,
        "metric": metric,
        "metric_before": metric_before,
        "metric_immediate": metric_immediate,
        "cost": cost,
        "immediate_cost": immediate,
        "costs": dict(costs),
        "thresholds": dict(thresholds),
        "exhausted": {m: m == "language_tokens" and index > 6 for m in _ALL},
        "loss": 1.1 + 0.03 * index,
        "seconds": 19.5,
      }
    )
  return stages


def make_report(seed: int = 0, recipe: str = "comp", **changes) -> dict:
  """A valid report of a 12-stage run at ratio 0.7."""
  dense = 1.437e9
  target = 0.3 * dense
  report = {
    "format": 1,
    "name": "emoji_tiny",
    "recipe": recipe,
    "ratio": 0.7,
    "seed": seed,
    "created": "2026-05-01T12:00:00+00:00",
    "macs": {
      "dense": dense,
      "target": target,
      "masked": 0.998 * target,
      "compacted": 0.997 * target,
      "final": 0.997 * target,
      "convention": "inference",
      "padded_final": 1.12 * target,
    },
    "params": {"dense": 1_050_000, "final": 610_000},
    "metrics": {
      row: {
        split: _metrics(level * scale, loss)
        for split, scale in (("select", 1.2), ("test", 1.0))
      }
      for row, level, loss in (
        ("dense", 0.312, 1.52),
        ("masked", 0.221, 1.98),
        ("compacted", 0.214, 2.02),
        ("finetuned", 0.287 + 0.01 * seed, 1.66),
        ("finetuned_threshold", 0.290, 1.65),
      )
    },
    "stages": _stages(dense, target),
    "probe": {
      "vision_params": 1.1,
      "language_params": 2.4,
      "vision_tokens": 0.6,
      "language_tokens": 14.0,
    },
    "kept": {
      "vision": {
        "heads": [4, 3, 3, 2, 2, 1],
        "dense_heads": 4,
        "neurons": [301, 288, 214, 160, 122, 96],
        "dense_neurons": 512,
        "tokens_mean": [65.0, 51.2, 40.7, 31.9, 25.0, 19.3, 14.8],
        "tokens_static": [52, 41, 32, 25, 20, 15],
        "tokens_dense": 65.0,
      },
      "text": {
        "heads": [4, 4, 2],
        "dense_heads": 4,
        "neurons": [480, 395, 270],
        "dense_neurons": 512,
        "tokens_mean": [11.3, 10.4, 9.1, 8.2],
        "tokens_static": [22, 19, 17],
        "tokens_dense": 11.3,
      },
    },
    "compilations": {"stage_step": 1, "evaluate": 1, "finetune_step": 1},
    "seconds": {
      "prune": 151.2,
      "finetune": 64.0,
      "evaluate": 12.5,
      "total": 240.9,
    },
    "devices": "1 x cpu",
    "versions": {"jax": "0.10.2", "flax": "0.12.8", "numpy": "2.3.1"},
    "config": {"ratio": 0.7, "seed": seed, "mps": {"rho": 0.2, "tau": 5.0}},
  }
  report.update(changes)
  return report


def make_samples(count: int = 2, layers: int = 6, side: int = 8) -> dict:
  """Pictures of soft discs whose patches go from the outside in."""
  size = 8 * side
  y, x = np.mgrid[0:size, 0:size] / size
  images, valid = [], []
  for k in range(count):
    centre = 0.5 + 0.18 * np.array([np.cos(2 * k), np.sin(2 * k)])
    distance = np.hypot(x - centre[0], y - centre[1])
    disc = np.clip(1.4 - 4 * distance, 0, 1)[..., None]
    colour = np.array([(40, 110, 220), (220, 90, 60), (60, 160, 90)][k % 3])
    images.append((255 - disc * (255 - colour)).astype(np.uint8))
    grid = distance[4::8, 4::8].ravel()
    rank = np.argsort(np.argsort(grid))
    live = [np.ones(1 + side**2, bool)]
    for layer in range(layers):
      keep = int(side**2 * 0.78 ** (layer + 1))
      live.append(np.concatenate([[True], rank < keep]))
    valid.append(live)
  return {
    "image": np.array(images),
    "valid": np.array(valid),
    "text": [f"a disc <b>no {k}</b> & $x$ 🙂" for k in range(count)],
  }


@pytest.fixture
def report() -> dict:
  return make_report()


@pytest.fixture
def make() -> collections.abc.Callable[..., dict]:
  return make_report


@pytest.fixture
def dense_only() -> dict:
  """A report of a run that pruned nothing."""
  report = make_report(stages=[], probe={}, kept={}, ratio=0.0)
  for name in ("target", "masked", "compacted", "final", "padded_final"):
    report["macs"][name] = None
  report["params"]["final"] = None
  report["metrics"] = {"dense": report["metrics"]["dense"]}
  return report


@pytest.fixture
def samples() -> dict:
  return make_samples()


@pytest.fixture
def folder(tmp_path, make):
  """Three recipes at 0.7, one at 0.5, and four runs that take no part."""
  # Both move with the seed: pairing takes that out.
  for seed in range(4):
    base = 0.30 + 0.02 * seed
    kit.save(tmp_path / f"comp{seed}", kit.with_recall(make(seed), base))
    if seed < 3:
      other = kit.with_recall(make(seed, "uniform"), base - 0.05 - 0.001 * seed)
      kit.save(tmp_path / f"uniform{seed}", other)
  tuned = {"name": "comp", "score": "wanda", "strategy": {"explore": 0.1}}
  kit.save(tmp_path / "tuned", kit.with_recall(make(0), 0.36), recipe=tuned)
  half = make(0, ratio=0.5)
  half["macs"].update(
    target=0.5 * half["macs"]["dense"],
    compacted=0.499 * half["macs"]["dense"],
  )
  kit.save(tmp_path / "half", half)
  # Left out.
  (tmp_path / "running").mkdir()
  (tmp_path / "running" / "config.json").write_text("{}")
  broken = make(5)
  del broken["macs"]["final"]
  kit.save(tmp_path / "broken", broken)
  kit.save(
    tmp_path / "short",
    make(6),
    prune={"stage_steps": 2, "save_every": 9},
  )
  high = make(7, "madtp")
  high["macs"]["compacted"] = 1.02 * high["macs"]["target"]
  kit.save(tmp_path / "high", high)
  return tmp_path

"""Folders of runs to compare."""

import json

import numpy as np

from comp_jax.report import comparable, comparison
from comp_jax.tasks import outcomes
from comp_jax.train import examples


def save(folder, report, **config):
  """A finished run's folder."""
  folder.mkdir(parents=True)
  base = {
    "name": report["name"],
    "ratio": report["ratio"],
    "seed": report["seed"],
    "data": {"name": "emoji"},
    "recipe": {"name": report["recipe"], "strategy": {}},
    "prune": {"stage_steps": 5, "save_every": 1},
  }
  report["config"] = {**base, **config}
  (folder / "config.json").write_text(json.dumps(report["config"]))
  (folder / "report.json").write_text(json.dumps(report))
  return folder


def keep(folder, name, values):
  """The outcomes of a run, beside its report."""
  found = outcomes.Outcomes(metrics={}, examples={name: np.asarray(values)})
  examples.write(folder, {"test": found})


def with_recall(report, value):
  """The report with this T2I R@10 after fine-tuning."""
  report["metrics"]["finetuned"]["test"]["t2i_r10"] = value
  return report


def cells(folder, **options):
  """The cells of the one comparison that a folder makes, by method; and it."""
  (members,) = comparable.gather([folder])[0].values()
  result, _ = comparison.compare(members, split="test", **options)
  return {cell.method: cell for cell in result.cells}, result

"""prune.py killed with SIGKILL in two phases ends with the same bits."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import comp_jax

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
  "--config=configs/emoji_tiny.py",
  "--config.ratio=0.3",
  "--config.prune.num_stages=3",
  "--config.prune.max_stages=4",
  "--config.prune.stage_steps=2",
  "--config.prune.batch_size=16",
  "--config.prune.validation=32",
  "--config.prune.validation_chunk=32",
  "--config.prune.calibration=16",
  "--config.finetune.steps=8",
  "--config.finetune.chunk=2",
  "--config.finetune.batch_size=16",
  "--config.data.report_splits=('select',)",
  "--config.evaluate.rows=('dense','compacted','finetuned')",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """One compile cache for the four processes, one device each."""
  cache = tmp_path_factory.mktemp("xla")
  return {
    **os.environ,
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
  }


def start(workdir, environment):
  return subprocess.Popen(
    [sys.executable, "prune.py", *SMALL, f"--workdir={workdir}"],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(workdir, environment):
  process = start(workdir, environment)
  output, _ = process.communicate(timeout=600)
  assert process.returncode == 0, output
  return json.loads((workdir / "report.json").read_text())


def kill_once_there(path, workdir, environment):
  process = start(workdir, environment)
  deadline = time.monotonic() + 600
  while not path.exists():
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not (workdir / "report.json").exists()


def test_a_killed_run_ends_like_one_that_was_left_alone(environment, tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  expected = finish(whole, environment)
  kill_once_there(killed / "checkpoints/search/2", killed, environment)
  kill_once_there(killed / "checkpoints/finetune/1", killed, environment)
  found = finish(killed, environment)

  for name in ("model/model.safetensors", "model/spec.json"):
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
  for key in ("macs", "params", "metrics", "kept", "probe"):
    assert found[key] == expected[key], key
  clock = lambda stages: [{**row, "seconds": 0} for row in stages]  # noqa: E731
  assert clock(found["stages"]) == clock(expected["stages"])

  # The promises of a run, while one is at hand.
  assert expected["compilations"]["stage_step"] == 1
  assert expected["compilations"]["evaluate"] == 1
  target = expected["macs"]["target"]
  assert 0.995 * target <= expected["macs"]["final"] <= target
  model = comp_jax.load(whole / "model")
  sizes = {layer.mlp for layer in model.spec.vision.encoder.layers}
  assert max(sizes) <= 384
  size = sum(np.size(x) for x in _leaves(model.params))
  assert size == expected["params"]["final"] <= expected["params"]["dense"]


def _leaves(tree):
  for value in tree.values():
    yield from _leaves(value) if isinstance(value, dict) else (value,)

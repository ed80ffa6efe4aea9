"""prune.py, killed with SIGKILL in any phase, ends with the same bits; so does
train.py."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import comp_jax
from comp_jax.interop import store
from comp_jax.models import families
from comp_jax.train import examples
from tests.train import kit

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
  "--config=configs/emoji_tiny.py",
  "--config.model.preset=",
  "--config.model.image_size=16",
  "--config.model.min_neurons=4",
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
  "--config.evaluate.rows=('dense','masked','compacted','finetuned')",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """One compile cache for all processes, one device each."""
  cache = tmp_path_factory.mktemp("xla")
  return {
    **os.environ,
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
  }


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
  """A dense model that costs next to nothing, with the words of the assets."""
  path = tmp_path_factory.mktemp("dense") / "model"
  spec = kit.spec()
  text = dataclasses.replace(spec.text, vocab_size=2048, max_length=24)
  spec = dataclasses.replace(spec, text=text)
  store.save(
    path,
    params=jax.device_get(families.initial_params(spec, 0)),
    spec=spec,
    policies={},
    tokenizer_json=(ROOT / "assets/emoji_tiny/tokenizer.json").read_text(),
    recipe={"name": "random"},
  )
  return path


@pytest.fixture(scope="module")
def start(environment):
  """Starts a script on the small data in a workdir."""
  return lambda script, *arguments: subprocess.Popen(
    [sys.executable, script, *SMALL, *arguments],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.fixture(scope="module")
def run(dense, start):
  """Starts prune.py in a workdir."""
  model = f"--config.checkpoint={dense}"
  return lambda workdir: start("prune.py", model, f"--workdir={workdir}")


@pytest.fixture(scope="module")
def train(dense, start):
  """Starts train.py in a workdir."""
  flags = (
    f"--config.train.start={dense}",
    "--config.train.steps=40",
    "--config.train.chunk=2",
    "--config.train.batch_size=16",
  )
  return lambda workdir: start("train.py", *flags, f"--workdir={workdir}")


def finish(run, workdir, result="report.json"):
  process = run(workdir)
  output, _ = process.communicate(timeout=600)
  assert process.returncode == 0, output
  return json.loads((workdir / result).read_text())


def noted(row):
  """Whether a row of the table is done."""

  def done(workdir):
    path = workdir / "progress.json"
    return path.exists() and row in json.loads(path.read_text())

  return done


def exists(path):
  return lambda workdir: (workdir / path).exists()


def saved(step):
  """Whether training has kept a checkpoint of this chunk or a later one."""

  def done(workdir):
    names = (path.name for path in (workdir / "checkpoints").glob("*"))
    return any(name.isdigit() and int(name) >= step for name in names)

  return done


# What stands in the workdir once a phase has begun.
PHASES = {
  "the dense model is evaluated": exists("config.json"),
  "stages run": exists("checkpoints/search/2"),
  "fine-tuning compiles": noted("compacted"),
  "fine-tuning runs": exists("checkpoints/finetune/1"),
  "the fine-tuned model is evaluated": exists("model/spec.json"),
  "the report is made": noted("finetuned"),
}


def kill_once(begun, run, workdir, sent=signal.SIGKILL, code=-signal.SIGKILL):
  process = run(workdir)
  deadline = time.monotonic() + 600
  while not begun(workdir):
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline
    time.sleep(0.02)
  process.send_signal(sent)
  said, _ = process.communicate()
  assert process.returncode == code, said
  for result in ("report.json", "metrics.json"):
    assert not (workdir / result).exists()


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
  """A run that was left alone."""
  workdir = tmp_path_factory.mktemp("whole")
  return workdir, finish(run, workdir)


def same_after(stops, run, whole, killed):
  """Asserts that a run stopped so often ends with the same bits.

  Args:
    stops: what `kill_once` does in each phase.
    run: starts a run.
    whole: that was left alone: its workdir and its report.
    killed: workdir of the other.
  """
  workdir, expected = whole
  for phase, how in stops.items():
    kill_once(PHASES[phase], run, killed, *how)
  found = finish(run, killed)
  names = ("model/model.safetensors", "model/spec.json", examples.NAME)
  for name in names:
    assert (killed / name).read_bytes() == (workdir / name).read_bytes()
  for key in ("macs", "params", "metrics", "kept", "probe", "compilations"):
    # As text: the first metric is the one to quote.
    assert json.dumps(found[key]) == json.dumps(expected[key]), key
  for log in (f"logs/{name}/metrics.jsonl" for name in ("search", "finetune")):
    assert (killed / log).read_text() == (workdir / log).read_text(), log
  clock = lambda stages: [{**row, "seconds": 0} for row in stages]  # noqa: E731
  assert clock(found["stages"]) == clock(expected["stages"])


def test_a_killed_run_ends_like_one_that_was_left_alone(run, whole, tmp_path):
  stops = {
    "stages run": (),
    # It saves, says so, and leaves by itself.
    "fine-tuning runs": (signal.SIGTERM, 130),
    "the fine-tuned model is evaluated": (),
  }
  same_after(stops, run, whole, tmp_path)


@pytest.mark.slow
def test_a_run_killed_in_every_phase_ends_the_same(run, whole, tmp_path):
  same_after(dict.fromkeys(PHASES, ()), run, whole, tmp_path)


def test_a_run_keeps_its_promises(whole):
  workdir, expected = whole
  assert all(np.isfinite(row["metric"]) for row in expected["stages"])
  assert expected["compilations"]["stage_step"] == 1
  assert expected["compilations"]["evaluate"] == 1
  target = expected["macs"]["target"]
  assert 0.995 * target <= expected["macs"]["final"] <= target
  model = comp_jax.load(workdir / "model")
  sizes = {layer.mlp for layer in model.spec.vision.encoder.layers}
  assert max(sizes) <= 48
  size = sum(np.size(x) for x in _leaves(model.params))
  assert size == expected["params"]["final"] <= expected["params"]["dense"]


@pytest.mark.slow
def test_training_that_was_killed_ends_like_one_that_was_left_alone(
  train, tmp_path
):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  expected = finish(train, whole, "metrics.json")
  for begun in (exists("config.json"), saved(3), saved(9)):
    kill_once(begun, train, killed)
  assert finish(train, killed, "metrics.json") == expected
  for name in ("model/model.safetensors", "metrics.jsonl"):
    assert (killed / name).exists()
  weights = "model/model.safetensors"
  assert (killed / weights).read_bytes() == (whole / weights).read_bytes()


def _leaves(tree):
  for value in tree.values():
    yield from _leaves(value) if isinstance(value, dict) else (value,)

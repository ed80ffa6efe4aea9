"""Signals become a flag, and the handlers come back."""

import os
import signal
import subprocess
import sys
import textwrap

import jax
import pytest

from comp_jax.core.execution import DENSE
from comp_jax.models import families
from comp_jax.train import (
  checkpoints,
  fit,
  metrics,
  preemption,
  pruning,
  setup,
  sharding,
)
from tests.train import kit, test_five_modes

data_dir, config = test_five_modes.data_dir, test_five_modes.config


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_sets_the_flag_and_handlers_return(number):
  before = signal.getsignal(number)
  with preemption.watch() as watch:
    assert not watch.requested() and watch.reason == ""
    os.kill(os.getpid(), number)
    assert watch.requested() and watch.reason == number.name
  assert signal.getsignal(number) is before


def test_second_interrupt_raises_but_second_term_does_not():
  before = signal.getsignal(signal.SIGINT)
  with pytest.raises(KeyboardInterrupt), preemption.watch() as watch:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert watch.reason == "SIGTERM"
    os.kill(os.getpid(), signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is before


def test_a_process_saves_and_leaves_on_sigterm():
  program = """
    import time
    from comp_jax.train import preemption
    with preemption.watch() as watch:
      print("ready", flush=True)
      end = time.monotonic() + 30
      while not watch.requested() and time.monotonic() < end:
        time.sleep(0.01)
      print("saved after", watch.reason, flush=True)
  """
  with subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(program)],
    stdout=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.stdout.readline() == "saved after SIGTERM\n"
    assert process.wait(timeout=30) == 0


def test_a_signal_in_an_evaluation_stops_the_run_after_it(
  config, monkeypatch, tmp_path
):
  asked = []

  def evaluate(*unused):
    asked.append("dense")
    os.kill(os.getpid(), signal.SIGTERM)
    return {}

  monkeypatch.setattr(setup.Evaluator, "__call__", evaluate)
  with pytest.raises(fit.Interrupted):
    pruning.run(config, tmp_path)
  assert not (tmp_path / "checkpoints").exists()
  # What is noted is not done again.
  monkeypatch.setattr(pruning.search, "search", lambda *_, **__: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    pruning.run(config, tmp_path)
  assert asked == ["dense"]


def test_a_signal_in_the_last_chunk_stops_what_follows(tmp_path):
  class Watch(preemption.Watch):
    def requested(self):
      return True

  def tuned(watch):
    stage = kit.make_stage()
    with checkpoints.Checkpoints(tmp_path) as saved:
      return fit.fit(
        stage.objective,
        families.initial_params(kit.spec(), 0),
        {},
        DENSE,
        fit.Schedule(steps=2, chunk=2, learning_rate=1e-3),
        kit.batches,
        mesh=sharding.make_mesh(jax.devices()[:1]),
        rules=sharding.REPLICATED,
        checkpoints=saved,
        writer=lambda first: metrics.MetricWriter(tmp_path, first),
        watch=watch,
        what="train",
      )

  with pytest.raises(fit.Interrupted):
    tuned(Watch())
  # All of it is saved: nothing is left to compile.
  assert tuned(preemption.Watch())[1] == 0

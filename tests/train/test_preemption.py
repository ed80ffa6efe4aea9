"""Signals become a flag, and the handlers come back."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from comp_jax.train import preemption


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

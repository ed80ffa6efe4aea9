"""Resumed files equal uninterrupted ones; the display says what it knows."""

import io
import json
import struct

import jax.numpy as jnp
import numpy as np
import rich.console
from tensorboardX.proto import event_pb2

from comp_jax.train import metrics


def _scalars(folder):
  """Returns (step, name, value) of each scalar in the event files, in order."""
  found = []
  for file in sorted(folder.glob("events.*")):
    data = file.read_bytes()
    while data:
      (size,) = struct.unpack("<Q", data[:8])
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      for value in event.summary.value:
        found.append((event.step, value.tag, value.simple_value))
  return found


def test_lines_and_scalars_are_written_and_flushed(tmp_path):
  with metrics.MetricWriter(tmp_path) as writer:
    writer.write(0, {"loss": jnp.float32(0.5), "r/r1": np.float32(0.25)})
    # Flushed: another process could read it now.
    assert metrics.read(tmp_path) == [{"step": 0, "loss": 0.5, "r/r1": 0.25}]
    writer.write(1, {"loss": float("nan")})
  text = (tmp_path / "metrics.jsonl").read_text()
  assert text.splitlines()[1] == '{"step": 1, "loss": null}'
  scalars = _scalars(tmp_path / "tensorboard")
  assert scalars[:2] == [(0, "loss", 0.5), (0, "r/r1", 0.25)]
  assert scalars[2][:2] == (1, "loss") and np.isnan(scalars[2][2])


def _write(folder, steps, first_step=0):
  with metrics.MetricWriter(folder, first_step) as writer:
    for step in steps:
      writer.write(step, {"loss": 1 / (step + 1)})
      if step % 2:
        writer.write(step, {"accuracy": step / 10})
  return (folder / "metrics.jsonl").read_bytes()


def test_resumed_file_equals_an_uninterrupted_one(tmp_path):
  for name in ("whole", "resumed"):
    (tmp_path / name).mkdir()
  whole = _write(tmp_path / "whole", range(10))
  _write(tmp_path / "resumed", range(7))
  file = tmp_path / "resumed" / "metrics.jsonl"
  with open(file, "a") as stream:
    stream.write('{"step": 7, "lo')  # The kill came in the middle of a line.
  assert _write(tmp_path / "resumed", range(4, 10), first_step=4) == whole
  assert _write(tmp_path / "resumed", range(2)) != whole
  assert [line["step"] for line in metrics.read(tmp_path / "resumed")] == [
    0,
    1,
    1,
  ]


class _Clock:
  now = 100.0

  def __call__(self):
    return self.now


def _console(**options):
  return rich.console.Console(file=io.StringIO(), width=40, **options)


def test_plain_lines_when_nobody_watches():
  console, clock = _console(), _Clock()
  with metrics.Progress(
    12,
    target_macs=0.3e9,
    metric_name="r10",
    first=2,
    console=console,
    clock=clock,
  ) as progress:
    clock.now += 20
    progress.update(4, mode="vision_tokens", macs=0.61e9, metric=0.51234)
    progress.note("saved [bold]")
    clock.now += 3600
    progress.update(5, mode="language_params")
  lines = console.file.getvalue().splitlines()
  assert lines == [
    "stage 4/12  mode vision_tokens  MACs 610 M, to be 300 M  r10 0.5123  "
    "elapsed 0:00:20  left 0:01:20",
    "saved [bold]",
    "stage 5/12  mode language_params  MACs 610 M, to be 300 M  r10 0.5123  "
    "elapsed 1:00:20  left 2:20:47",
  ]


def test_plain_lines_keep_their_distance_but_never_lose_the_last():
  console, clock = _console(), _Clock()
  with metrics.Progress(
    10, unit="step", interval=5, console=console, clock=clock
  ) as progress:
    for step in range(1, 11):
      progress.update(step)
      clock.now += 2
  shown = [line.split()[1] for line in console.file.getvalue().splitlines()]
  assert shown == ["1/10", "4/10", "7/10", "10/10"]


def test_live_display_on_a_terminal():
  console, clock = _console(force_terminal=True), _Clock()
  with metrics.Progress(
    3, target_macs=2e12, console=console, clock=clock
  ) as progress:
    progress.update(1, mode="vision_params", macs=3.82e12, metric=0.5)
    progress.note("a line that stays")
  text = console.file.getvalue()
  for part in (
    "stage 1/3",
    "vision_params",
    "3.82 T, to be 2 T",
    "a line that",
  ):
    assert part in text


def test_lines_are_json(tmp_path):
  _write(tmp_path, range(3))
  for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
    assert "step" in json.loads(line)

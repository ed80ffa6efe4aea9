"""Numbers of a run, as files for machines and as a display for people."""

import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import rich.console
import rich.live
import rich.progress
import rich.table

from comp_jax.interop import atomic


class MetricWriter:
  """Scalars of each step, in `metrics.jsonl` and as TensorBoard events."""

  def __init__(self, workdir: str | os.PathLike, first_step: int = 0):
    """Opens the files and forgets what lies at or after the first step.

    A run that was killed has usually written beyond its last checkpoint;
    those lines are cut off, so that the resumed run leaves the same file as
    one that was never interrupted.

    Args:
      workdir: The run's folder, which exists.
      first_step: The first step that will be written; 0 starts anew.
    """
    self._path = pathlib.Path(workdir) / "metrics.jsonl"
    atomic.write_text(self._path, _lines_before(self._path, first_step))
    self._file = open(self._path, "a", encoding="utf-8")
    # Here, as it imports PyTorch where that is installed.
    import tensorboardX

    self._events = tensorboardX.SummaryWriter(
      str(pathlib.Path(workdir) / "tensorboard"),
      purge_step=first_step,
      flush_secs=10,
    )

  def __enter__(self) -> "MetricWriter":
    return self

  def __exit__(self, *unused: Any) -> None:
    self.close()

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes one line and its scalars.

    Args:
      step: Never below the step before it.
      values: Names to numbers (or arrays of one number). What is not finite
        becomes null in the JSON line.
    """
    numbers = {name: float(value) for name, value in values.items()}
    line = {"step": int(step)}
    for name, value in numbers.items():
      line[name] = value if math.isfinite(value) else None
      self._events.add_scalar(name, value, int(step))
    self._file.write(json.dumps(line, allow_nan=False) + "\n")
    self._file.flush()

  def close(self) -> None:
    """Closes both files."""
    self._file.close()
    self._events.close()


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the lines of a run's `metrics.jsonl`, oldest first."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


class Progress:
  """One live display of a run; plain lines when nobody watches a terminal.

  Use it as a context manager.
  """

  def __init__(
    self,
    total: int,
    *,
    unit: str = "stage",
    target_macs: float | None = None,
    metric_name: str = "metric",
    first: int = 0,
    interval: float = 0.0,
    console: rich.console.Console | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Prepares the display.

    Args:
      total: Units (stages or steps) that the run has.
      unit: What they are called.
      target_macs: MACs per example that the run is heading for.
      metric_name: The name of the metric shown.
      first: Units done before this process, after a resume.
      interval: Least seconds between two plain lines; the last unit is always
        printed.
      console: Where to write; standard output by default.
      clock: Seconds from any origin.
    """
    self._total = total
    self._unit = unit
    self._target = target_macs
    self._metric_name = metric_name
    self._first = self._done = first
    self._interval = interval
    self._console = console or rich.console.Console()
    self._clock = clock
    self._start = clock()
    self._printed = -math.inf
    self._fields: dict[str, str] = {}
    self._live: rich.live.Live | None = None

  def __enter__(self) -> "Progress":
    self._start = self._clock()
    if self._console.is_terminal:
      self._live = rich.live.Live(
        get_renderable=self._render,
        console=self._console,
        refresh_per_second=4,
      )
      self._live.__enter__()
    return self

  def __exit__(self, *exception: Any) -> None:
    if self._live is not None:
      self._live.__exit__(*exception)
      self._live = None

  def update(
    self,
    done: int,
    *,
    mode: str | None = None,
    macs: float | None = None,
    metric: float | None = None,
  ) -> None:
    """Shows where the run is.

    Args:
      done: Units done, of `total`.
      mode: What is being done, such as the mode of the stage.
      macs: MACs per example now.
      metric: The latest value of the metric.
    """
    self._done = done
    # A value left out keeps its last one: steps report more often than stages.
    if mode is not None:
      self._fields["mode"] = mode
    if macs is not None:
      target = "" if self._target is None else f", to be {_macs(self._target)}"
      self._fields["MACs"] = f"{_macs(macs)}{target}"
    if metric is not None:
      self._fields[self._metric_name] = f"{metric:.4g}"
    if self._live is not None:
      self._live.refresh()
      return
    now = self._clock()
    if done >= self._total or now - self._printed >= self._interval:
      self._printed = now
      self._line(self.line())

  def note(self, text: str) -> None:
    """Prints one line that stays, above the live display."""
    self._line(text)

  def line(self) -> str:
    """Returns the state of the run in one line."""
    parts = [f"{self._unit} {self._done}/{self._total}"]
    parts += [f"{name} {text}" for name, text in self._fields.items()]
    parts.append(f"elapsed {_clock_text(self._elapsed())}")
    parts.append(f"left {_clock_text(self._left())}")
    return "  ".join(parts)

  def _line(self, text: str) -> None:
    """Prints text as it is: no markup, no wrapping."""
    self._console.print(text, markup=False, highlight=False, soft_wrap=True)

  def _elapsed(self) -> float:
    """Returns the seconds since the display began."""
    return self._clock() - self._start

  def _left(self) -> float | None:
    """Returns the seconds that the rest will take at the pace so far."""
    here = self._done - self._first
    if here <= 0:
      return None
    return self._elapsed() / here * max(self._total - self._done, 0)

  def _render(self) -> rich.table.Table:
    """Returns the live display: a bar, and the fields below it."""
    grid = rich.table.Table.grid(padding=(0, 2))
    bar = rich.progress.ProgressBar(
      total=max(self._total, 1), completed=self._done, width=30
    )
    grid.add_row(f"{self._unit} {self._done}/{self._total}", bar)
    for name, text in self._fields.items():
      grid.add_row(name, text)
    grid.add_row("elapsed", _clock_text(self._elapsed()))
    grid.add_row("left", _clock_text(self._left()))
    return grid


def _lines_before(path: pathlib.Path, step: int) -> str:
  """Returns the whole lines of earlier steps; a torn last line goes too."""
  if not path.exists():
    return ""
  kept = []
  for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
    try:
      if json.loads(line)["step"] < step and line.endswith("\n"):
        kept.append(line)
    except (ValueError, KeyError, TypeError):
      continue
  return "".join(kept)


def _macs(value: float) -> str:
  """Returns MACs with the unit that leaves one to three digits in front."""
  for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
    if value >= size:
      return f"{value / size:.3g} {letter}"
  return f"{value / 1e3:.3g} K"


def _clock_text(seconds: float | None) -> str:
  """Returns h:mm:ss, or a mark for what is not known yet."""
  if seconds is None:
    return "?"
  minutes, second = divmod(int(round(seconds)), 60)
  hour, minute = divmod(minutes, 60)
  return f"{hour}:{minute:02d}:{second:02d}"

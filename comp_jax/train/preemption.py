"""Signals that ask a run to stop, turned into a flag that loops look at."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Watch:
  """What has been asked for since the watch began."""

  def __init__(self):
    self._received: signal.Signals | None = None
    self._interrupts = 0

  def requested(self) -> bool:
    """Returns whether the run should save and leave."""
    return self._received is not None

  @property
  def reason(self) -> str:
    """The name of the first signal received, or an empty string."""
    return self._received.name if self._received else ""

  def _receive(self, number: int, frame: FrameType | None) -> None:
    """Notes a signal; a second Ctrl-C no longer waits for the loop."""
    del frame
    if self._received is None:
      self._received = signal.Signals(number)
    if number == signal.SIGINT:
      self._interrupts += 1
      if self._interrupts > 1:
        raise KeyboardInterrupt


@contextlib.contextmanager
def watch() -> Iterator[Watch]:
  """Yields a flag that SIGINT and SIGTERM raise, and restores the handlers.

  A second SIGINT raises KeyboardInterrupt. Python delivers signals to the main
  thread only, so this must be entered there.
  """
  state = Watch()
  signals = (signal.SIGINT, signal.SIGTERM)
  before = {number: signal.getsignal(number) for number in signals}
  try:
    for number in signals:
      signal.signal(number, state._receive)
    yield state
  finally:
    for number, handler in before.items():
      # None stands for a handler that was not installed from Python.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)

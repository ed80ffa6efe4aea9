"""Jitted functions that count how often they are traced."""

from collections.abc import Callable
from typing import Any

import jax


class Compiled:
  """`jax.jit(function)`; `compilations` counts its traces.

  A whole search must show 1: masks, thresholds, modes and rates are arrays.
  """

  def __init__(self, function: Callable, **options: Any):
    self.compilations = 0

    def traced(*args):
      self.compilations += 1
      return function(*args)

    self._jitted = jax.jit(traced, **options)

  def __call__(self, *args: Any) -> Any:
    return self._jitted(*args)

  def memory_bytes(self, *args: Any) -> int:
    """Bytes of temporaries that the compiled program needs."""
    analysis = self._jitted.lower(*args).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes) if analysis else 0

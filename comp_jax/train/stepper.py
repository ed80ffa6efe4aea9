"""A stage on the devices: one program, or three between which batches come."""

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from comp_jax.train import compiled, sharding
from comp_jax.train import stage as stage_lib
from comp_jax.train import state as state_lib


class Stepper:
  """Runs stages; `compilations` counts how often a program was traced, at most.

  Batches that come at once go through one program. In parts, one of them trains
  while the next one is copied; the choice, the training and the validation are
  programs of their own then, and the host waits only so that no third part lies
  on the devices.
  """

  def __init__(
    self,
    stage: stage_lib.Stage,
    parts: int,
    mesh: jax.sharding.Mesh,
    rules: sharding.Rules,
    state: state_lib.SearchState,
    select: Mapping,
  ):
    """Places a search.

    Args:
      stage: the functions.
      parts: in how many parts its batches come.
      mesh: devices.
      rules: where the state lives.
      state: shapes and types.
      select: validation examples [chunks, c, ...].

    Raises:
      ValueError: paired costs, which train on a stage's batches twice, and
        batches in parts.
    """
    self._parts, self._ahead = parts, None
    self._split = sharding.batch_sharding(mesh, leading_axes=1)
    self.placed, _ = sharding.tree_shardings(mesh, state, rules)
    placed, split = self.placed, self._split
    whole = sharding.replicated(mesh)
    if parts == 1:
      self._run = compiled.Compiled(
        stage,
        in_shardings=(placed, split, split, whole),
        out_shardings=(placed, whole),
        donate_argnums=0,
      )
      return
    if stage.paired:
      raise ValueError("paired costs need all batches of a stage at once")
    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    shapes = jax.eval_shape(stage.cut, state, None, select, flag)
    cut, _ = sharding.tree_shardings(mesh, shapes, rules)
    # Its rules are about paths that begin at the state.
    cut = dataclasses.replace(cut, state=placed)
    self._cut = compiled.Compiled(
      lambda state, select, prune: stage.cut(state, None, select, prune),
      in_shardings=(placed, split, whole),
      out_shardings=cut,
      donate_argnums=0,
    )
    self._run = compiled.Compiled(
      lambda cut, batches: stage.advance(cut, batches, parts),
      in_shardings=(cut, split),
      out_shardings=(cut, whole),
      donate_argnums=0,
    )
    # The rest of a cut has no place in what comes out: not to be given away.
    self._learn = compiled.Compiled(
      lambda state, rest, losses, select: stage.learn(
        dataclasses.replace(rest, state=state), jnp.concatenate(losses), select
      ),
      in_shardings=(placed, _stateless(cut), whole, split),
      out_shardings=(placed, whole),
      donate_argnums=0,
    )

  @property
  def _programs(self) -> tuple[compiled.Compiled, ...]:
    if self._parts == 1:
      return (self._run,)
    return self._cut, self._run, self._learn

  @property
  def compilations(self) -> int:
    return max(program.compilations for program in self._programs)

  def memory_bytes(
    self, state: state_lib.SearchState, batches: Mapping, select: Mapping
  ) -> int:
    """Bytes of temporaries that a stage needs on each device.

    Beside its state and batches. Compiles; shapes and types are enough.

    Args:
      state: before it.
      batches: that go to the devices at once [t, b, ...].
      select: validation examples [chunks, c, ...].
    """
    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    if self._parts == 1:
      return self._run.memory_bytes(state, batches, select, flag)
    cut = jax.eval_shape(self._cut, state, select, flag)
    choice = self._cut.memory_bytes(state, select, flag)
    return max(choice, self._run.memory_bytes(cut, batches))

  def whole(self, source: Iterator[Mapping]) -> Mapping | None:
    """The batches of the coming stage; None where they come in parts."""
    if self._parts > 1:
      return None
    if self._ahead is None:
      self._ahead = self._fetched(source)
    return self._ahead

  def __call__(
    self,
    state: state_lib.SearchState,
    source: Iterator[Mapping],
    select: Mapping,
    prune: jax.Array,
  ) -> tuple[state_lib.SearchState, state_lib.StageRecord]:
    """The state after a stage, and what happened.

    Args:
      state: before it; its buffers are given away.
      source: of batches [t, b, ...], on the host.
      select: validation examples [chunks, c, ...].
      prune: see `Stage.__call__`.
    """
    if self._parts == 1:
      batches, self._ahead = self.whole(source), None
      return self._run(state, batches, select, prune)
    cut, losses = self._cut(state, select, prune), []
    for part in range(self._parts):
      if part > 1:
        jax.block_until_ready(losses[part - 2])
      cut, found = self._run(cut, self._fetched(source))
      losses.append(found)
    return self._learn(cut.state, _stateless(cut), losses, select)

  def _fetched(self, source: Iterator[Mapping]) -> Mapping:
    return jax.device_put(next(source), self._split)


def _stateless(cut: state_lib.Cut) -> state_lib.Cut:
  """The cut without its state."""
  return dataclasses.replace(cut, state=None)

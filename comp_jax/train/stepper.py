"""A stage on the devices: one program, or three between which batches come."""

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from comp_jax.train import compiled, sharding
from comp_jax.train import stage as stage_lib
from comp_jax.train import state as state_lib


class Stepper:
  """Runs stages; `compilations` counts how often their training was traced.

  Where `stage.settings.parts` is 1 the batches of a stage go to the devices at
  once and one program runs it. Else a part of them trains while the next one
  is copied, and the choice, the training and the validation are programs of
  their own: nothing waits for the host between them.
  """

  def __init__(
    self,
    stage: stage_lib.Stage,
    mesh: jax.sharding.Mesh,
    rules: sharding.Rules,
    state: state_lib.SearchState,
    select: Mapping,
  ):
    """Places a search.

    Args:
      stage: the functions.
      mesh: devices.
      rules: where the state lives.
      state: shapes and types.
      select: validation examples [chunks, c, ...].
    """
    self._parts = stage.settings.parts
    self._split = sharding.batch_sharding(mesh, leading_axes=1)
    self.placed, _ = sharding.tree_shardings(mesh, state, rules)
    placed, split = self.placed, self._split
    whole = sharding.replicated(mesh)
    if self._parts == 1:
      self._run = compiled.Compiled(
        stage,
        in_shardings=(placed, split, split, whole),
        out_shardings=(placed, whole),
        donate_argnums=0,
      )
      return
    flag = jax.ShapeDtypeStruct((), jnp.bool_)
    shapes = jax.eval_shape(stage.cut, state, None, select, flag)
    cut, _ = sharding.tree_shardings(mesh, shapes, rules)
    self._cut = jax.jit(
      lambda state, select, prune: stage.cut(state, None, select, prune),
      in_shardings=(placed, split, whole),
      out_shardings=cut,
      donate_argnums=0,
    )
    self._run = compiled.Compiled(
      stage.advance,
      in_shardings=(cut, split),
      out_shardings=(cut, whole),
      donate_argnums=0,
    )
    # The rest of a cut has no place in what comes out: not to be given away.
    self._learn = jax.jit(
      lambda state, rest, losses, select: stage.learn(
        dataclasses.replace(rest, state=state), jnp.concatenate(losses), select
      ),
      in_shardings=(cut.state, _stateless(cut), whole, split),
      out_shardings=(placed, whole),
      donate_argnums=0,
    )

  @property
  def compilations(self) -> int:
    return self._run.compilations

  def batches(self, source: Iterator[Mapping]) -> Mapping:
    """The next batches, on the devices: of a stage, or of a part of one."""
    return jax.device_put(next(source), self._split)

  def __call__(
    self,
    state: state_lib.SearchState,
    batches: Mapping,
    source: Iterator[Mapping],
    select: Mapping,
    prune: jax.Array,
  ) -> tuple[state_lib.SearchState, state_lib.StageRecord]:
    """The state after a stage, and what happened.

    Args:
      state: before it; its buffers are given away.
      batches: the first ones of the stage.
      source: of the rest.
      select: validation examples [chunks, c, ...].
      prune: see `Stage.__call__`.
    """
    if self._parts == 1:
      return self._run(state, batches, select, prune)
    cut, losses = self._cut(state, select, prune), []
    for part in range(self._parts):
      if part:
        batches = self.batches(source)
      cut, found = self._run(cut, batches)
      losses.append(found)
    return self._learn(cut.state, _stateless(cut), losses, select)


def _stateless(cut: state_lib.Cut) -> state_lib.Cut:
  """The cut without its state."""
  return dataclasses.replace(cut, state=None)

"""What the pruning loop needs to know of a model.

A model that fills this in can be pruned, whatever it is made of: a Flax
module of the user's own needs its forward pass, its group table and its MACs.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from comp_jax.core import execution as execution_lib
from comp_jax.core import groups as groups_lib
from comp_jax.core import tokens as tokens_lib

_DROP = tokens_lib.TokenPolicy()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prunable:
  """A model as the core sees it.

  Attributes:
    groups: the group table.
    token_modes: mode -> tower whose tokens it drops, in order.
    protected: tokens of each tower that the rule never drops.
    forward: (params, batch, execution) -> (output, {tower: aux}).
    tower_counts: tower -> (params, batch, execution) -> counts [b, l+1] of a
      tower that runs without the others.
    whole_counts: the same arguments -> {tower: counts}, in one pass; for towers
      that need another one, as a text that looks at the image.
    macs: (masks, {tower: counts}) -> mean MACs of one example.
    rows: tower -> rows of its counts per example, where it is not 1 (two
      images of a pair).
  """

  groups: tuple[groups_lib.Group, ...]
  token_modes: Mapping[str, str]
  protected: Mapping[str, int]
  forward: Callable[..., tuple[Any, Mapping[str, Mapping]]]
  tower_counts: Mapping[str, Callable[..., Array]]
  macs: Callable[[Mapping, Mapping], Array]
  rows: Mapping[str, int] = dataclasses.field(default_factory=dict)
  whole_counts: Callable[..., Mapping[str, Array]] | None = None

  @property
  def param_modes(self) -> tuple[str, ...]:
    """Modes that remove units, in the order of the group table."""
    return tuple(dict.fromkeys(group.mode for group in self.groups))

  @property
  def modes(self) -> tuple[str, ...]:
    """All modes: an index into this tuple is what the strategy chooses."""
    return self.param_modes + tuple(self.token_modes)

  @property
  def towers(self) -> tuple[str, ...]:
    """Towers whose tokens can be dropped."""
    return tuple(self.token_modes.values())

  def unit_macs(self, masks: Mapping, counts: Mapping) -> Mapping:
    """What each unit costs: the gradient of the MACs, which are affine."""
    return jax.grad(self.macs)(masks, counts)

  def recounted(
    self,
    known: Mapping[str, Int[Array, "b _"]],
    moved: Mapping[str, Bool[Array, ""]],
    params: Mapping,
    batch: Mapping,
    execution: execution_lib.Execution,
  ) -> Mapping[str, Int[Array, "b _"]]:
    """The counts of a batch, so executed.

    Those of towers whose policy did not move are known.

    Args:
      known: counts [b, l+1] of each tower.
      moved: towers whose policy is another one now.
      params: weights.
      batch: inputs.
      execution: masks and token policies.
    """
    inputs = (params, batch, execution)

    def apart():
      return dict(known) | {
        tower: jax.lax.cond(
          moved[tower],
          lambda t=tower: self.tower_counts[t](*inputs),
          lambda t=tower: known[t],
        )
        for tower in self.tower_counts
      }

    def together():
      return dict(known) | dict(self.whole_counts(*inputs))

    needing = [moved[t] for t in self.towers if t not in self.tower_counts]
    if not needing:
      return apart()
    # One pass serves all towers where one of them needs the others.
    return jax.lax.cond(jnp.any(jnp.stack(needing)), together, apart)

  @functools.partial(jax.jit, static_argnums=0)
  def removable(
    self,
    masks: Mapping,
    counts: Mapping,
    policy: tokens_lib.TokenPolicy = _DROP,
  ) -> Float[Array, " m"]:
    """MACs that each mode can still remove before it meets its floors.

    Args:
      masks: hard masks.
      counts: tokens of each tower.
      policy: the token rule.
    """
    now, unit_macs = jax.value_and_grad(self.macs)(masks, counts)
    left = dict.fromkeys(self.modes, jnp.zeros((), jnp.float32))
    for group in self.groups:
      live = jnp.sum(groups_lib.leaf(masks, group.name) > 0, axis=-1)
      # Units of a layer cost the same: the first stands for all.
      each = groups_lib.leaf(unit_macs, group.name)[:, 0]
      spare = jnp.maximum(live - group.floor, 0)
      left[group.mode] = left[group.mode] + jnp.sum(each * spare)
    for mode, tower in self.token_modes.items():
      lowest = floor_counts(counts[tower], self.protected[tower], policy)
      left[mode] = now - self.macs(masks, {**counts, tower: lowest})
    return jnp.stack([left[mode] for mode in self.modes])


def floor_counts(
  counts: Num[Array, "b l1"],
  protected: int,
  policy: tokens_lib.TokenPolicy = _DROP,
) -> Num[Array, "b l1"]:
  """The lowest counts after every layer that the policy's rule can leave.

  Args:
    counts: tokens at the input, and after each layer.
    protected: of them, those that never go.
    policy: the token rule.
  """
  entering, after = counts[:, :1], counts[:, 1:]
  pool = jnp.full_like(after, policy.least)
  if policy.halves:
    layer = 1.0 + jnp.arange(after.shape[1], dtype=jnp.float32)[None]
    pool = jnp.ceil((entering - protected) / 2.0**layer).astype(counts.dtype)
  return jnp.concatenate(
    [entering, jnp.minimum(entering, protected + pool)], axis=1
  )


def group_modes(
  groups: Sequence[groups_lib.Group], modes: Sequence[str]
) -> Int[Array, " u"]:
  """The mode index of every unit, as one vector in group order."""
  return jnp.concatenate(
    [jnp.full(g.layers * g.units, modes.index(g.mode)) for g in groups]
  )

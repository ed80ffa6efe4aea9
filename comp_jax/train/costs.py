"""Exact costs of dense and compact models on validation examples."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from comp_jax import errors
from comp_jax.core import cost, pace
from comp_jax.core import masks as masks_lib
from comp_jax.core import prunable as prunable_lib
from comp_jax.models import families, specs
from comp_jax.train import settings as settings_lib
from comp_jax.train import stage as stage_lib
from comp_jax.train import state as state_lib


def valid_tokens(
  spec: specs.ModelSpec, select: Mapping
) -> dict[str, np.ndarray]:
  """Tokens at the input of each tower: of every image, of every reading.

  Of several answers to a question the first one counts.
  """

  def lengths(mask):
    return np.asarray(mask).sum(axis=-1).reshape(-1).astype(np.int64)

  texts = lengths(select["text_mask"])
  valid = {
    "vision": np.full(
      len(texts) * spec.images,
      spec.vision.tokens,
      np.int64,
    ),
    "text": np.repeat(texts, spec.readings),
  }
  if "answer" in spec.towers:
    valid["answer"] = lengths(select["answer_mask"][..., 0, :])
  return valid


def padded_length(spec: specs.ModelSpec, select: Mapping, tower: str) -> int:
  """Tokens that a device executes, padding included."""
  if tower == "vision":
    return spec.vision.tokens
  return select[f"{tower}_mask"].shape[-1]


def static_macs(
  spec: specs.ModelSpec,
  valid: Mapping[str, np.ndarray],
  caps: Mapping[str, Sequence[int]] | None,
) -> float:
  """Exact mean MACs of a dense or compact model under static counts."""
  counts = {
    tower: cost.static_counts(
      valid[tower],
      (caps or {}).get(tower),
      getattr(spec, tower).encoder.depth,
    )
    for tower in spec.towers
  }
  return float(families.macs(spec, None, counts))


def floor(stage: stage_lib.Stage, valid: Mapping[str, np.ndarray]) -> float:
  """The fraction of dense MACs that no pruning can remove."""
  prunable = stage.prunable
  allowed = stage.modes
  masks, counts = {}, _entering(stage, valid)
  for group in prunable.groups:
    keep = group.floor if group.mode in allowed else group.units
    units = jnp.arange(group.units) < keep
    mask = jnp.broadcast_to(units[None], (group.layers, group.units))
    masks_lib.put(masks, group.name, mask.astype(jnp.float32))
  for mode, tower in prunable.token_modes.items():
    if mode in allowed:
      counts[tower] = prunable_lib.floor_counts(
        counts[tower],
        prunable.protected[tower],
        stage.objective.policy,
      )
  return float(stage.macs(masks, counts))


def removable(
  stage: stage_lib.Stage, valid: Mapping[str, np.ndarray]
) -> Float[Array, " m"]:
  """What each mode can remove from the dense model, as a fraction of it."""
  macs = stage.prunable.removable(
    stage.ones, _entering(stage, valid), stage.objective.policy
  )
  may = jnp.array([mode in stage.modes for mode in stage.prunable.modes])
  return jnp.where(may, macs, 0.0) / stage.settings.dense_macs


def fewest_stages(
  stage: stage_lib.Stage,
  valid: Mapping[str, np.ndarray],
  most: int,
  share: float = settings_lib.STAGE_SHARE,
) -> int:
  """Stages that a search needs at least, up to `most`.

  Where all stages aim at the target itself (`fade=search`) any will do.

  Args:
    stage: recipe and target.
    valid: tokens of each validation example at the input.
    most: stages to look ahead.
    share: of what its modes have left, that a stage takes at most.
  """
  if stage.recipe.fade == "search":
    return 1
  rooms = stage.rooms(removable(stage, valid))
  asked = dataclasses.replace(stage.unhurried, share=share)
  return int(pace.fewest_stages(asked, rooms, most))


def _entering(stage, valid) -> dict[str, jax.Array]:
  """Counts [examples, layers + 1] of each tower where no token is dropped."""
  counts = {}
  for group in stage.prunable.groups:
    tower = group.name.split("/")[0]
    if tower not in counts:
      each = np.repeat(valid[tower][:, None], group.layers + 1, axis=1)
      counts[tower] = jnp.asarray(each.astype(np.int32))
  return counts


def most(floor: float) -> float:
  """The highest ratio to three digits that a floor allows: rounded down."""
  return math.floor(1000 * (1.0 - floor)) / 1000


def trim(
  stage: stage_lib.Stage,
  state: state_lib.SearchState,
  spec_of: Callable[[Mapping], specs.ModelSpec],
  valid: Mapping[str, np.ndarray],
  caps: Mapping[str, Sequence[int]],
) -> Mapping:
  """Masks without the lowest neurons, so that static MACs meet the target.

  Args:
    stage: recipe, target and floors.
    state: at the end of the search.
    spec_of: masks -> spec of the compact model.
    valid: tokens of each validation example at the input.
    caps: static counts of the towers that drop tokens.

  Raises:
    UserError: no neuron is left to take and the target is not met.
  """
  dense, target = stage.settings.dense_macs, stage.settings.target
  counts = {
    tower: jnp.asarray(
      cost.static_counts(
        valid[tower], caps.get(tower), state.counts[tower].shape[1] - 1
      ).astype(np.int32)
    )
    for tower in state.counts
  }
  state = dataclasses.replace(state, counts=counts)
  all_modes = jnp.ones(len(stage.prunable.modes), bool)
  mark = jax.jit(stage.mark, static_argnums=4)
  # More than once: the traced sums are float32, the check is exact.
  for _ in range(8):
    excess = static_macs(spec_of(state.masks), valid, caps) / dense - target
    if excess <= 0:
      return state.masks
    marked = mark(
      state, all_modes, jnp.asarray(excess, jnp.float32), state.key, False
    )
    left = masks_lib.soft(state.masks, marked, 1.0)
    state = dataclasses.replace(state, masks=left)
  left = static_macs(spec_of(state.masks), valid, caps) / dense
  if left <= target:
    return state.masks
  raise errors.UserError(
    f"compaction: {left:.1%} of the dense MACs are left, the target is "
    f"{target:.1%}, and all neurons are at their floor: raise "
    "config.prune.max_stages or lower config.ratio, in another workdir"
  )

"""What the paper's Figures 2 and 5 measure, on a dense model."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from comp_jax.core import diagnostics, importance
from comp_jax.core import execution as execution_lib
from comp_jax.core import groups as groups_lib
from comp_jax.core import masks as masks_lib
from comp_jax.core import prunable as prunable_lib
from comp_jax.models import families, specs
from comp_jax.train import stage as stage_lib

# The mask of a head that is gone for everything but its vote.
_GOING = 1e-6


def overlap(
  spec: specs.ModelSpec,
  prunable: prunable_lib.Prunable,
  params: Mapping,
  batch: Mapping,
  share: float,
) -> dict[str, dict[str, Any]]:
  """By group: the overlap in each layer, and what chance would give.

  Between the tokens that dominate parameter importance (Eq. 3) and the most
  important tokens (Eq. 6), the best `share` of each image or text. An MLP is
  compared with the scores that CIP weighs it by, those of the next layer.

  Args:
    spec: a dense model.
    prunable: the same as the loops see it.
    params: its weights.
    batch: examples.
    share: of the tokens, in (0, 1).
  """
  groups = [g for g in prunable.groups if _tower(g.name) in prunable.towers]

  @jax.jit
  def measured(params, batch):
    aux, hidden = families.hidden_units(spec, params, batch)
    return {g.name: _overlap(g, params, aux, hidden, share) for g in groups}

  found = jax.tree.map(_plain, measured(params, batch))
  return {group.name: found[group.name] for group in groups}


def _overlap(group, params, aux, hidden, share):
  aux, hidden = (tree[_tower(group.name)] for tree in (aux, hidden))
  block = group.output_slot.path.split("/")[0]
  scores, pool = aux["scores"], _pool(aux["scores"])
  if block == "mlp":
    scores = jnp.concatenate([scores[1:], scores[-1:]])
  magnitude = importance.weight_magnitude(params, group)
  layers = [
    diagnostics.overlap(
      # Hard negatives follow the pairs.
      diagnostics.dominance(
        hidden[layer][block][: len(pool)], magnitude[layer], aux["valid"][0]
      ),
      scores[layer],
      pool,
      share,
    )
    for layer in range(group.layers)
  ]
  common, chance = (jnp.stack(x) for x in zip(*layers, strict=True))
  return {"overlap": jnp.mean(common, axis=-1), "chance": jnp.mean(chance)}


def ranks(
  stage: stage_lib.Stage,
  params: Mapping,
  batch: Mapping,
  shares: Sequence[float],
  faded: float = 1.0,
) -> dict[str, dict[str, dict[str, Any]]]:
  """By tower: how far the orders of tokens and of neurons move, per layer.

  Each layer loses this share of its heads, the least important ones; the
  orders are those of the dense model and those of the same weights with these
  heads masked, scored with CIT and without, where they vote in full until they
  are gone. No token falls. With CIT the order is that of the model without the
  heads, so `apart`, the distance between the two, is what changes at once when
  the heads go where CIT is off.

  Args:
    stage: model, objective and recipe; units are scored as the recipe does.
    params: weights of the dense model.
    batch: examples.
    shares: of the heads, in [0, 1); one head stays in any case.
    faded: how far they have faded, in (0, 1].

  Returns:
    tower -> `tokens` and `neurons` -> `cit`, `no_cit` and `apart` ->
    [shares, layers].
  """
  groups = stage.prunable.groups
  score = {gate: _scorer(stage, gate) for gate in (True, False)}
  dense = score[stage.recipe.cit](params, batch, stage.ones)
  names = ("cit", "no_cit", "apart")
  found = {
    tower: {what: {n: [] for n in names} for what in ("tokens", "neurons")}
    for tower in stage.prunable.towers
  }
  for share in shares:
    marked = masks_lib.build(
      groups,
      lambda g, share=share: _lowest_heads(
        g, groups_lib.leaf(dense[1], g.name), share
      ),
    )
    masks = masks_lib.soft(stage.ones, marked, faded)
    going = jax.tree.map(lambda mask: jnp.maximum(mask, _GOING), masks)
    gated = score[True](params, batch, masks)
    ungated = score[False](params, batch, going)
    pairs = ((dense, gated), (dense, ungated), (gated, ungated))
    for name, (before, after) in zip(names, pairs, strict=True):
      for tower, each in found.items():
        pool = _pool(dense[0][tower])
        moved = _distortion(before[0][tower], after[0][tower], pool)
        each["tokens"][name].append(_plain(moved))
        # A layer's neurons are one row.
        mlps = [units[tower]["mlp"][:, None] for _, units in (before, after)]
        moved = _distortion(*mlps, jnp.ones(mlps[0].shape[1:], bool))
        each["neurons"][name].append(_plain(moved))
  return found


def _lowest_heads(group, scores, share):
  """1 for the lowest heads of each layer."""
  if not group.indivisible:
    return jnp.zeros_like(scores)
  gone = min(math.floor(share * group.units + 1e-9), group.units - 1)
  rank = jnp.argsort(jnp.argsort(scores, axis=-1), axis=-1)
  return (rank < gone).astype(jnp.float32)


def influence(
  stage: stage_lib.Stage,
  params: Mapping,
  batch: Mapping,
  share: float,
  units: int,
) -> dict[str, dict[str, Any]]:
  """By group: how far each unit moves the order of the tokens.

  A unit's influence is the distortion of its tower's token order when it alone
  is removed, the mean over the layers that score after it: for a head from its
  own layer on. What no scoring follows (the last MLP) is left out.

  Args:
    stage: model, objective and recipe; units are scored as the recipe does.
    params: weights of the dense model.
    batch: examples.
    share: of the units that is least important.
    units: to try of each block, evenly spaced from the least important to the
      most important.

  Returns:
    group -> `influence` [layers, units], the least important first, and
    `influential` [layers], see `core.diagnostics.still_influential`.
  """
  prunable = stage.prunable
  score = _scorer(stage, stage.recipe.cit)
  tokens, scores = score(params, batch, stage.ones)
  pools = {tower: _pool(each) for tower, each in tokens.items()}
  move = _token_scorer(stage, stage.recipe.cit)
  found = {}
  for group in prunable.groups:
    tower = _tower(group.name)
    if tower not in prunable.towers:
      continue
    own = group.output_slot.path.startswith("attention/")
    order = np.argsort(groups_lib.leaf(scores, group.name), axis=-1)
    chosen = np.linspace(0, group.units - 1, min(units, group.units))
    chosen = np.unique(chosen.round().astype(int))
    rows = []
    for layer in range(group.layers - (not own)):
      row = []
      for unit in order[layer, chosen]:
        mask = jnp.ones((group.layers, group.units)).at[layer, unit].set(0.0)
        masks = masks_lib.build(
          prunable.groups,
          lambda g, mask=mask, group=group: (
            mask if g is group else groups_lib.leaf(stage.ones, g.name)
          ),
        )
        moved = _distortion(
          tokens[tower], move(params, batch, masks)[tower], pools[tower]
        )
        row.append(float(jnp.mean(moved[layer + (not own) :])))
      rows.append(row)
    found[group.name] = {
      "influence": rows,
      "influential": _plain(
        diagnostics.still_influential(jnp.asarray(rows), share)
      ),
    }
  return found


def _token_scorer(stage: stage_lib.Stage, gate: bool):
  """(params, batch, masks) -> token scores [l, b, n] of each tower."""
  policies = _scoring(stage, gate)

  @jax.jit
  def scorer(params, batch, masks):
    execution = execution_lib.Execution(masks=masks, policies=policies)
    _, aux = stage.prunable.forward(params, batch, execution)
    return {tower: aux[tower]["scores"] for tower in stage.prunable.towers}

  return scorer


def _scorer(stage: stage_lib.Stage, gate: bool):
  """(params, batch, masks) -> the token scores, and comparable unit scores."""
  recipe, objective = stage.recipe, stage.objective
  token_scores, policies = _token_scorer(stage, gate), _scoring(stage, gate)

  @jax.jit
  def scorer(params, batch, masks):
    key = jax.random.key(0)
    execution = execution_lib.Execution(
      masks=masks, policies=policies, estimator=recipe.estimator
    )
    memory = objective.memory.initial(params, key)
    _, _, _, statistics = objective.gradients(params, memory, batch, execution)
    units = importance.comparable_scores(
      recipe.score,
      params,
      stage.prunable.groups,
      statistics,
      masks,
      recipe.standardise,
      key,
    )
    return token_scores(params, batch, masks), units

  return scorer


def _scoring(stage: stage_lib.Stage, gate: bool) -> dict:
  """Policies that score tokens and drop none."""
  zero = {tower: jnp.zeros(()) for tower in stage.prunable.towers}
  return {
    tower: dataclasses.replace(policy, gate=gate)
    for tower, policy in stage.objective.policies(zero).items()
  }


@jax.jit
def _distortion(before: jax.Array, after: jax.Array, pool: jax.Array):
  """The mean distortion [l] of token orders [l, b, n]."""
  each = jax.lax.map(
    lambda pair: diagnostics.rank_distortion(*pair, pool), (before, after)
  )
  return jnp.mean(each, axis=-1)


def _tower(name: str) -> str:
  return name.split("/")[0]


def _pool(scores: jax.Array) -> jax.Array:
  """The tokens [b, n] that a dense model scores [l, b, n]."""
  return jnp.any(scores > 0, axis=0)


def _plain(array: jax.Array) -> Any:
  return np.asarray(array).tolist()

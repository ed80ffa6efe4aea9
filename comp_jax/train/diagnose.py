"""What the paper's Figures 2 and 5 measure, and what scores are worth.

On a dense model, without training.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from comp_jax.core import diagnostics, importance
from comp_jax.core import groups as groups_lib
from comp_jax.core import masks as masks_lib
from comp_jax.core import prunable as prunable_lib
from comp_jax.models import families, specs
from comp_jax.recipes import recipe as recipe_lib
from comp_jax.train import stage as stage_lib
from comp_jax.train import state as state_lib


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
  heads masked, scored with CIT and without. No token falls. With CIT the order
  is that of the model without the heads, so `apart`, the distance between the
  two, is what compaction changes at once where CIT is off.

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
    gated, ungated = (score[g](params, batch, masks) for g in (True, False))
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


# What `damage` compares: fields of a recipe.
SCORES = {
  "Taylor, CIP": {"score": "taylor"},
  "Taylor": {"score": "taylor", "cip": False},
  "|Taylor|, CIP": {"score": "taylor", "reduce": "abs"},
  "|Taylor|": {"score": "taylor", "cip": False, "reduce": "abs"},
  "Wanda, CIP": {"score": "wanda"},
  "Wanda": {"score": "wanda", "cip": False},
  "magnitude": {"score": "magnitude"},
  "random": {"score": "random"},
}
STANDARDISATIONS = (
  "layer_mean",
  "z_layer",
  "layer_rank",
  "z_pooled",
  "isomorphic",
)


def damage(
  stage: stage_lib.Stage,
  params: Mapping,
  batches: Mapping,
  select: Mapping,
  mode: str,
  shares: Sequence[float],
) -> dict[str, Any]:
  """The validation metric when a mode has lost its lowest units.

  By every score and every way of comparing layers. Nothing is trained and no
  token falls: what a score is worth before training repairs its mistakes.

  Args:
    stage: model and objective; the recipe's own score does not matter.
    params: weights of the dense model.
    batches: training batches [t, b, ...] over which scores are gathered.
    select: validation examples [chunks, c, ...].
    mode: a mode of parameters.
    shares: of the dense MACs to remove.

  Returns:
    `dense`, the metric of the whole model, and `metric`: score ->
    standardisation -> [shares].
  """
  modes, key = stage.prunable.modes, jax.random.key(0)
  selected = jnp.array([each == mode for each in modes])
  validate = jax.jit(stage.validate)
  validated = validate(params, stage.ones, stage.off, select)
  dense, _ = validated
  found = {}
  for name, fields in SCORES.items():
    whole = recipe_lib.Recipe(name=name, **fields)
    scoring = dataclasses.replace(stage, recipe=whole)
    state = _dense(scoring, params, batches, validated)
    found[name] = {}
    for how in STANDARDISATIONS:
      recipe = dataclasses.replace(whole, standardise=how)
      mark = jax.jit(dataclasses.replace(stage, recipe=recipe).mark)
      metrics = []
      for share in shares:
        marked = mark(state, selected, jnp.asarray(share), key)
        masks = masks_lib.soft(stage.ones, marked, 1.0)
        metric, _ = validate(params, masks, stage.off, select)
        metrics.append(float(metric))
      found[name][how] = metrics
  return {"dense": float(dense), "metric": found}


def choices(
  stage: stage_lib.Stage,
  params: Mapping,
  batches: Mapping,
  select: Mapping,
  sizes: Sequence[int],
) -> dict[str, Any]:
  """The costs (Eq. 9) of every mode's first stage, measured on less and less.

  What `lookahead` would choose by before the first stage: each mode takes its
  step, which is validated before any training.

  Args:
    stage: model, objective and recipe.
    params: weights of the dense model.
    batches: training batches [t, b, ...] over which scores are gathered.
    select: validation examples [chunks, c, ...].
    sizes: chunks of a subset; as many disjoint subsets as there are.

  Returns:
    `modes`, `whole`: the costs [m] on all examples, and `subsets`: size in
    chunks -> costs [n, m] on each subset.
  """
  chunks = jax.tree.leaves(select)[0].shape[0]
  every = jnp.ones(len(stage.prunable.modes), bool)
  validate = jax.jit(stage.validate)
  dense = validate(params, stage.ones, stage.off, select)
  state = _dense(stage, params, batches, dense)

  @jax.jit
  def costs(state, select):
    metric, counts = stage.validate(state.params, stage.ones, stage.off, select)
    # Its texts may be longer than the average of all.
    macs = stage.macs(stage.ones, counts)
    state = dataclasses.replace(state, metric=metric, counts=counts, macs=macs)
    return stage.trial_costs(state, every, select, state.key)

  def of(first, size):
    part = jax.tree.map(lambda x: x[first : first + size], select)
    return _plain(costs(state, part))

  return {
    "modes": list(stage.prunable.modes),
    "whole": of(0, chunks),
    "subsets": {
      size: [of(i, size) for i in range(0, chunks - size + 1, size)]
      for size in sizes
    },
  }


def _dense(stage, params, batches, validated) -> state_lib.SearchState:
  """The state of the dense model with scores over batches [t, b, ...]."""
  estimator = stage.recipe.estimator
  metric, counts = validated
  state = state_lib.initial(
    stage.prunable,
    params,
    optax.identity(),
    None,
    estimator,
    counts,
    metric,
    seed=0,
  )
  gathered = _gathered(stage, params, batches, estimator)
  return dataclasses.replace(state, statistics=gathered)


def _gathered(stage, params, batches, estimator):
  """Statistics of the dense model over batches [t, b, ...]."""
  objective = stage.objective
  memory = objective.memory.initial(params, jax.random.key(0))
  policies = objective.policies(stage.off)

  def add(carry, batch):
    memory, total = carry
    memory, _, _, statistics = objective.gradients(
      params, memory, batch, stage.ones, policies, estimator
    )
    return (memory, total.add(statistics)), None

  empty = importance.empty(stage.prunable.groups, estimator)
  run = jax.jit(lambda batches: jax.lax.scan(add, (memory, empty), batches))
  (_, total), _ = run(batches)
  return total


def _token_scorer(stage: stage_lib.Stage, gate: bool):
  """(params, batch, masks) -> token scores [l, b, n] of each tower."""
  policies = _scoring(stage, gate)

  @jax.jit
  def scorer(params, batch, masks):
    _, aux = stage.prunable.forward(params, batch, masks, None, policies, None)
    return {tower: aux[tower]["scores"] for tower in stage.prunable.towers}

  return scorer


def _scorer(stage: stage_lib.Stage, gate: bool):
  """(params, batch, masks) -> the token scores, and comparable unit scores."""
  recipe, objective = stage.recipe, stage.objective
  token_scores, policies = _token_scorer(stage, gate), _scoring(stage, gate)

  @jax.jit
  def scorer(params, batch, masks):
    key = jax.random.key(0)
    _, _, _, statistics = objective.gradients(
      params,
      objective.memory.initial(params, key),
      batch,
      masks,
      policies,
      recipe.estimator,
    )
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

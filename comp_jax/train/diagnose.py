"""What the paper's Figures 2 and 5 measure, on one batch, without training."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from comp_jax.core import diagnostics, importance
from comp_jax.core import prunable as prunable_lib
from comp_jax.models import families, specs


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


def _tower(name: str) -> str:
  return name.split("/")[0]


def _pool(scores: jax.Array) -> jax.Array:
  """The tokens [b, n] that a dense model scores [l, b, n]."""
  return jnp.any(scores > 0, axis=0)


def _plain(array: jax.Array) -> Any:
  return np.asarray(array).tolist()

"""From the end of a search to a physically smaller model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from comp_jax.core import compact
from comp_jax.core import tokens as tokens_lib
from comp_jax.models import families, specs, towers
from comp_jax.train import costs, prepare, sharding
from comp_jax.train import state as state_lib
from comp_jax.train import step as step_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Small:
  """A compact model and its two token executions.

  Attributes:
    spec: unrolled layers of their own widths.
    params: sliced weights.
    static: per-layer counts, the deployed graph.
    threshold: the paper's real-time pruning.
    macs: mean MACs on the validation texts, static counts.
    padded_macs: the same with texts at their padded length.
    kept: what is left per layer, for the report.
  """

  spec: specs.ModelSpec
  params: Mapping
  static: dict[str, tokens_lib.TokenPolicy]
  threshold: dict[str, tokens_lib.TokenPolicy]
  macs: float
  padded_macs: float
  kept: dict[str, Any]


def compacted(job: prepare.Job, state: state_lib.SearchState) -> Small:
  """The physically smaller model, at most `target` MACs.

  Static counts land just above the target; the lowest neurons go until it is
  met. Deterministic: a resumed run makes the same model.
  """
  stage, groups = job.stage, job.stage.prunable.groups
  state = jax.device_get(state)
  state = jax.tree.map(jnp.asarray, state)
  target = stage.settings.target * stage.settings.dense_macs
  valid = costs.valid_tokens(job.spec, job.select)
  used = {t: float(theta) > 0 for t, theta in state.thetas.items()}
  mean = {
    tower: np.asarray(counts, np.float64).mean(axis=0)
    for tower, counts in state.counts.items()
  }

  def spec_of(masks):
    return towers.compacted(job.spec, compact.units_left(groups, masks))

  spec, least = spec_of(state.masks), stage.recipe.policy.least
  caps = compact.fit_caps(
    valid,
    {t: mean[t][1:] for t in used if used[t]},
    {t: stage.prunable.protected[t] + least for t in used},
    lambda caps: costs.static_macs(spec, valid, caps),
    target,
  )
  masks = costs.trim(stage, state, spec_of, valid, caps)
  spec = spec_of(masks)
  layers = {t: getattr(spec, t).encoder.layers for t in spec.towers}
  dense = {t: getattr(job.spec, t).encoder.layers[0] for t in layers}
  static = {
    tower: dataclasses.replace(stage.recipe.policy, keep=caps.get(tower))
    for tower in layers
  }
  padded = {
    tower: np.full_like(
      lengths, costs.padded_length(job.spec, job.select, tower)
    )
    for tower, lengths in valid.items()
  }
  return Small(
    spec=spec,
    params=compact.slice_params(
      jax.device_get(state.params), groups, jax.device_get(masks)
    ),
    static=static,
    threshold=stage.objective.policies(
      {t: np.asarray(theta) for t, theta in state.thetas.items()}
    ),
    macs=costs.static_macs(spec, valid, caps),
    padded_macs=costs.static_macs(spec, padded, caps),
    kept={
      tower: {
        **_cross_heads(layers[tower], dense[tower]),
        "heads": [layer.heads for layer in layers[tower]],
        "dense_heads": dense[tower].heads,
        "neurons": [layer.mlp for layer in layers[tower]],
        "dense_neurons": dense[tower].mlp,
        "tokens_mean": mean[tower].tolist(),
        "tokens_static": list(
          caps.get(tower, (int(valid[tower].max()),) * len(layers[tower]))
        ),
        "tokens_dense": float(valid[tower].mean()),
      }
      for tower in layers
    },
  )


def retuned(
  job: prepare.Job,
  small: Small,
  objective: step_lib.Objective,
  params: Mapping,
) -> dict[str, Any]:
  """The thresholds of fine-tuned weights at the target, and their mean MACs.

  As JSON takes them: {"thetas": {tower: theta}, "macs": MACs}.

  Args:
    job: its validation examples.
    small: the compact model.
    objective: of the compact model.
    params: fine-tuned weights; they let other tokens pass than the search's.
  """
  thetas = {t: policy.theta for t, policy in small.threshold.items()}
  tuned = dataclasses.replace(job.stage, objective=objective)
  split = sharding.batch_sharding(job.mesh, leading_axes=1)
  select = jax.device_put(job.select, split)
  retune = jax.jit(lambda p, t, s: tuned.retuned(p, None, t, s))
  thetas, counts, _ = jax.device_get(retune(params, thetas, select))
  counts = jax.tree.map(lambda x: np.asarray(x, np.int64), counts)
  return {
    "thetas": {tower: float(theta) for tower, theta in thetas.items()},
    "macs": float(families.macs(small.spec, None, counts)),
  }


def _cross_heads(layers, dense) -> dict[str, Any]:
  """Heads of cross-attention, where the tower has it."""
  if not dense.cross:
    return {}
  heads = lambda layer: sum(block.heads for block in layer.cross)  # noqa: E731
  return {
    "cross_heads": [heads(layer) for layer in layers],
    "dense_cross_heads": heads(dense),
  }

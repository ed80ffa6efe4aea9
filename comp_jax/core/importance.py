"""Parameter importance: Eq. 3, CIP (Eq. 4), and the gradient estimator.

`*_score`: higher is more important. Two estimators share CIP's weighting of
tokens:
  wanda   the paper's, forward only: mean_j |W_ij| * (sum_n w_n X_ni^2)^(1/2);
  taylor  first order, from the backward pass of the training step: minus the
          token-weighted gradient of the unit's mask.
"""

import dataclasses
import functools
import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from comp_jax.core import groups as groups_lib
from comp_jax.core import masks as masks_lib

REDUCTIONS = ("signed", "abs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimator:
  """What a forward or backward pass gathers for the parameter scores.

  Attributes:
    kind: `taylor`, `wanda`, or `none` (scores that need no data).
    cip: weigh tokens by their importance (Eq. 4); otherwise every valid token
      counts 1.
    reduce: taylor only: `signed` sums over samples, `abs` sums |.|.
  """

  kind: str = "taylor"
  cip: bool = True
  reduce: str = "signed"

  def __post_init__(self):
    if self.kind not in ("taylor", "wanda", "none"):
      raise ValueError(f"unknown estimator {self.kind!r}")
    if self.reduce not in REDUCTIONS:
      raise ValueError(
        f"reduce must be one of {REDUCTIONS}, not {self.reduce!r}"
      )


def token_weights(
  scores: Float[Array, "b n"],
  valid: Bool[Array, "b n"],
  pool: Bool[Array, "b n"],
  readout: Bool[Array, "b n"],
  cip: bool,
) -> Float[Array, "b n"]:
  """The weights w_n of Eq. 4: shares of the pool's importance, 1 for readout.

  Pruned tokens, padding and protected tokens that are not read out weigh 0.
  In a layer without live heads, which scores nothing, the pool weighs evenly.

  Args:
    scores: token scores; renormalised over `pool`.
    valid: tokens that are neither padding nor dropped.
    pool: valid, unprotected tokens.
    readout: the valid readout token (CLS); nowhere true for pooled readouts.
    cip: False weighs every valid token 1 (Eq. 3).
  """
  if not cip:
    # Protected tokens too, or the tap would not be the mask's gradient.
    return valid.astype(jnp.float32)
  scores = jnp.where(pool, scores, 0.0)
  total = jnp.sum(scores, axis=-1, keepdims=True)
  even = pool / jnp.maximum(jnp.sum(pool, axis=-1, keepdims=True), 1)
  shares = jnp.where(total > 0, scores / jnp.where(total > 0, total, 1.0), even)
  return jax.lax.stop_gradient(jnp.where(readout, 1.0, shares))


def weighted_moment(
  hidden: Float[Array, "b n ..."], weights: Float[Array, "b n"]
) -> Float[Array, "..."]:
  """a = mean over samples of sum_n w_n X_n^2, the statistic of Eq. 4."""
  squares = jnp.square(jax.lax.stop_gradient(hidden).astype(jnp.float32))
  return jnp.einsum("bn...,bn->...", squares, weights) / hidden.shape[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def tap(reduce, z, mask, probe, weights):
  """`z * mask`, with the unit scores as the cotangent of `probe`.

  score[i] = -sum_{b,n} w[b,n] z[b,n,i] y_bar[b,n,i], z before the mask and
  y_bar the cotangent after it. With w = 1 this is exactly minus the gradient
  of the mask (UPop's signal, spec `upop.md` 1.2). Being a cotangent, it adds
  no per-token tensor that outlives the layer.

  Args:
    reduce: `signed` or `abs` (see `Estimator`).
    z: [b, n, *units], the value to mask.
    mask: broadcasts against [*units], axes of size 1 where units share it.
    probe: any array of the mask's shape; only its cotangent matters.
    weights: [b, n], the token weights.
  """
  del reduce, probe, weights
  return z * mask[None, None].astype(z.dtype)


def _tap_forward(reduce, z, mask, probe, weights):
  return tap(reduce, z, mask, probe, weights), (z, mask, weights)


def _tap_backward(reduce, residuals, y_bar):
  z, mask, weights = residuals
  product = z.astype(jnp.float32) * y_bar.astype(jnp.float32)
  per_sample = -jnp.einsum("bn...,bn->b...", product, weights)
  shared = [1 + a for a, size in enumerate(mask.shape) if size == 1]
  per_sample = jnp.sum(per_sample, axis=shared, keepdims=True)
  if reduce == "abs":
    per_sample = jnp.abs(per_sample)
  z_bar = (y_bar * mask[None, None].astype(y_bar.dtype)).astype(z.dtype)
  score = jnp.sum(per_sample, axis=0)
  return z_bar, jnp.zeros_like(mask), score, jnp.zeros_like(weights)


tap.defvjp(_tap_forward, _tap_backward)


def weight_magnitude(
  params: Mapping, group: groups_lib.Group
) -> Float[Array, "l *units"]:  # noqa: F821
  """mean_j |W[i,j] * layer_scale[j]| for each row i of the output matrix.

  [l, heads, head width] for attention, [l, neurons] for the MLP.
  """
  kernel = jnp.abs(groups_lib.leaf(params, group.output).astype(jnp.float32))
  if group.layer_scale is not None:
    scale = jnp.abs(groups_lib.leaf(params, group.layer_scale))
    kernel = kernel * jnp.expand_dims(
      scale.astype(jnp.float32), tuple(range(1, kernel.ndim - 1))
    )
  return jnp.mean(kernel, axis=-1)


def per_unit(
  rows: Float[Array, "l *rows"],  # noqa: F821
  group: groups_lib.Group,
) -> Float[Array, "l units"]:
  """The mean over the rows that belong to each unit."""
  if rows.ndim == 2:
    return rows
  shared = [a for a in range(1, rows.ndim) if a != group.output_axis + 1]
  return jnp.mean(rows, axis=shared)


def wanda_score(
  params: Mapping,
  group: groups_lib.Group,
  moment: Float[Array, "l *rows"],  # noqa: F821
) -> Float[Array, "l units"]:
  """Eq. 3 / Eq. 4: mean_j |W_ij| * sqrt(a_i), averaged over a head's rows."""
  return per_unit(weight_magnitude(params, group) * jnp.sqrt(moment), group)


def magnitude_score(
  params: Mapping, group: groups_lib.Group
) -> Float[Array, "l units"]:
  """The mean magnitude of a unit's output weights (no data)."""
  return per_unit(weight_magnitude(params, group), group)


def _ranks(rows: Float[Array, "r u"]) -> Float[Array, "r u"]:
  """The rank of each entry within its row, from 1."""
  order = jnp.argsort(rows, axis=-1)
  return jnp.argsort(order, axis=-1) + 1.0


STANDARDISATIONS = (
  "layer_mean",
  "z_pooled",
  "z_model",
  "z_layer",
  "isomorphic",
  "layer_rank",
  "none",
)


def standardise(
  score: Float[Array, "l units"],
  live: Float[Array, "l units"],
  how: str,
) -> Float[Array, "l units"]:
  """Scores of one group made comparable, using live units alone.

  Attention and MLP are separate groups, so each is standardised apart.

  Args:
    score: raw scores.
    live: 1 for live units.
    how: `layer_mean` divides by the layer's mean magnitude (signed scores keep
      their sign); `z_pooled` and `z_layer` are z-scores over the group or the
      layer, unbiased; `z_model` those over all attention groups, or all MLP
      groups, of the model (UPop, spec `upop.md` 1.3), which the caller pools;
      `isomorphic` is the rank among the group's units in (0, 1], dead ones
      first, so that over many stages each group loses the same fraction;
      `layer_rank` the same within each layer; `none`.
  """
  live = live > 0
  if how == "none":
    return score
  if how == "isomorphic":
    flat = jnp.where(live, score, -jnp.inf).reshape(1, -1)
    return (_ranks(flat) / score.size).reshape(score.shape)
  if how == "layer_rank":
    return _ranks(jnp.where(live, score, -jnp.inf)) / score.shape[-1]
  axis = (0, 1) if how in ("z_pooled", "z_model") else (1,)
  count = jnp.sum(live, axis=axis, keepdims=True)

  def mean(x):
    total = jnp.sum(jnp.where(live, x, 0.0), axis=axis, keepdims=True)
    return total / jnp.maximum(count, 1)

  if how == "layer_mean":
    return score / jnp.maximum(mean(jnp.abs(score)), 1e-30)
  if how in ("z_pooled", "z_model", "z_layer"):
    centred = score - mean(score)
    variance = mean(jnp.square(centred)) * count / jnp.maximum(count - 1, 1)
    return centred / jnp.sqrt(jnp.maximum(variance, 1e-30))
  raise ValueError(
    f"standardise must be one of {STANDARDISATIONS}, not {how!r}"
  )


# JAX rebuilds a pytree around anything (shapes, shardings, None).
@typing.no_type_check
@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["total", "steps"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Accumulator:
  """Statistics summed in float32 over the steps of a stage.

  Attributes:
    total: {tower: {group: array}}: unit scores (taylor) or moments (wanda).
    steps: how many steps were added.
  """

  total: Mapping
  steps: Float[Array, ""]

  def add(self, statistics: Mapping) -> "Accumulator":
    return Accumulator(
      total=jax.tree.map(jnp.add, self.total, statistics),
      steps=self.steps + 1.0,
    )

  @property
  def mean(self) -> Mapping:
    steps = jnp.maximum(self.steps, 1.0)
    return jax.tree.map(lambda total: total / steps, self.total)


def empty(
  groups: tuple[groups_lib.Group, ...], estimator: Estimator
) -> Accumulator:
  """An accumulator of zeros of the shapes that `estimator` gathers."""
  total = {}
  for group in groups:
    shape = (group.layers, group.units)
    if estimator.kind == "wanda":
      shape = (group.layers, *group.rows)
    masks_lib.put(total, group.name, jnp.zeros(shape, jnp.float32))
  return Accumulator(total=total, steps=jnp.zeros((), jnp.float32))


# The scores a recipe can name: (params, group, mean statistic, key) -> [l, u].
SCORES = {
  "taylor": lambda params, group, statistic, key: statistic,
  "wanda": lambda params, group, statistic, key: wanda_score(
    params, group, statistic
  ),
  "magnitude": lambda params, group, statistic, key: magnitude_score(
    params, group
  ),
  "random": lambda params, group, statistic, key: jax.random.uniform(
    key, (group.layers, group.units)
  ),
}


def comparable_scores(
  name: str,
  params: Mapping,
  groups: tuple[groups_lib.Group, ...],
  statistics: Mapping,
  live: Mapping,
  how: str,
  key: Key[Array, ""],
) -> dict:
  """Standardised scores of every unit, shaped like the masks.

  Args:
    name: a key of `SCORES`.
    params: current weights; Wanda reads W at selection time.
    groups: the group table.
    statistics: the accumulator's mean.
    live: hard masks.
    how: see `standardise`.
    key: for `random`.
  """
  raw = {}
  for index, group in enumerate(groups):
    score = SCORES[name](
      params,
      group,
      groups_lib.leaf(statistics, group.name),
      jax.random.fold_in(key, index),
    )
    masks_lib.put(raw, group.name, score)
  leaf = groups_lib.leaf
  if how != "z_model":
    return masks_lib.build(
      groups,
      lambda g: standardise(leaf(raw, g.name), leaf(live, g.name), how),
    )
  scores = {}
  for attention in (True, False):
    pool = [group for group in groups if group.indivisible == attention]
    if pool:
      flat = (masks_lib.flatten(pool, tree)[None] for tree in (raw, live))
      z = masks_lib.unflatten(pool, standardise(*flat, how)[0])
      for group in pool:
        masks_lib.put(scores, group.name, leaf(z, group.name))
  return scores

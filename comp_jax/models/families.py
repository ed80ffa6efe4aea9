"""From a spec to its model: what loops and stores call."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, Num

from comp_jax.core import cost
from comp_jax.core import execution as execution_lib
from comp_jax.core import groups as groups_lib
from comp_jax.core import prunable as prunable_lib
from comp_jax.models import (
  blip,
  blip_caption,
  blip_nlvr,
  blip_retrieval,
  blip_vqa,
  blocks,
  encoder,
  specs,
  towers,
  two_tower,
)

_FAMILIES: Mapping[type, towers.Family] = {
  specs.TwoTowerSpec: two_tower.FAMILY,
  specs.MatchingSpec: blip.FAMILY,
  specs.NlvrSpec: blip_nlvr.FAMILY,
  specs.RetrievalSpec: blip_retrieval.FAMILY,
  specs.CaptionSpec: blip_caption.FAMILY,
  specs.VqaSpec: blip_vqa.FAMILY,
}


def _of(spec: specs.ModelSpec) -> towers.Family:
  return _FAMILIES[type(spec)]


def groups(
  spec: specs.ModelSpec, *, min_heads: int = 1, min_neurons: int = 32
) -> tuple[groups_lib.Group, ...]:
  """The group table of a dense model."""
  return towers.groups(spec, min_heads=min_heads, min_neurons=min_neurons)


def prunable(
  spec: specs.ModelSpec, *, min_heads: int = 1, min_neurons: int = 32
) -> prunable_lib.Prunable:
  """The model as the loops see it; of a compact one nothing can be pruned."""
  if not towers.is_dense(spec):
    return _prunable(spec)
  table = groups(spec, min_heads=min_heads, min_neurons=min_neurons)
  return dataclasses.replace(_prunable(spec), groups=table)


@functools.cache
def _prunable(spec: specs.ModelSpec) -> prunable_lib.Prunable:
  """What does not depend on floors: its functions are traced once."""
  return towers.prunable(spec, _of(spec))


def macs(
  spec: specs.ModelSpec,
  masks: Mapping | None,
  counts: Mapping[str, Num[Array | np.ndarray, "r _"]],
) -> Float[Array, ""] | float:
  """Mean MACs of one example, `inference` convention.

  Args:
    spec: the model; a compact one with `masks=None`.
    masks: hard or soft masks, or None to cost the spec's own widths.
    counts: valid tokens of each tower, at the input and after each layer; of
      the vision tower one row per image. NumPy integers without masks give
      exact arithmetic.

  Returns:
    A traced scalar, or a float for NumPy counts without masks.
  """
  return _of(spec).macs(spec, masks, counts)


def param_shapes(spec: specs.ModelSpec) -> dict[str, Any]:
  """The parameter tree of a model as `jax.ShapeDtypeStruct`s; runs nothing."""
  batch = jax.eval_shape(lambda: _of(spec).example(spec))
  return jax.eval_shape(_init(spec), jax.random.key(0), batch)["params"]


def initial_params(spec: specs.ModelSpec, seed: int) -> dict[str, Any]:
  """Random parameters."""
  batch = _of(spec).example(spec)
  return _init(spec)(jax.random.key(seed), batch)["params"]


@functools.cache
def _init(spec: specs.ModelSpec) -> Callable:
  """Flax's `init`, which traces the whole model: once for each spec."""
  return jax.jit(module(spec).init)


def traced(
  spec: specs.ModelSpec,
  params: Mapping,
  batch: Mapping,
  policies: Mapping | None,
) -> tuple[dict, dict, dict[str, list[Array]]]:
  """The outputs, each tower's aux, and its hidden state after every layer.

  Args:
    spec: a dense or compact model.
    params: its weights.
    batch: inputs of the family.
    policies: token policy of each tower, or None.
  """
  output, aux, layers = _captured(
    spec, params, batch, policies, encoder.EncoderLayer
  )
  hidden = {
    tower: [layer["__call__"][-1][0][0].x for layer in stack]
    for tower, stack in layers.items()
  }
  return output, aux, hidden


def hidden_units(
  spec: specs.ModelSpec, params: Mapping, batch: Mapping
) -> tuple[dict, dict[str, list[dict[str, Array]]]]:
  """Each tower's aux, and what every layer's output matrices read.

  The latter by tower, layer and block (`attention`, `mlp`, ...): [r, n, h, e]
  of attention, [r, n, m] of the MLP. Nothing is masked or dropped.

  Args:
    spec: a dense model.
    params: its weights.
    batch: inputs of the family.
  """
  _, aux, layers = _captured(
    spec, params, batch, None, (blocks.Attention, blocks.Mlp)
  )

  def read(name, block):
    if name == "mlp":
      _, hidden = block["__call__"][-1]
    else:
      _, _, hidden, _ = block["__call__"][-1]
    return hidden

  hidden = {
    tower: [
      {name: read(name, block) for name, block in layer.items()}
      for layer in stack
    ]
    for tower, stack in layers.items()
  }
  return aux, hidden


def _captured(spec, params, batch, policies, kinds):
  """The outputs, each tower's aux, and what its layers' modules returned.

  A module that runs more than once has an entry for each; of several readings
  the last one looks at the image.
  """
  spec, params = towers.unrolled(spec, params)
  (output, aux), state = (
    _of(spec)
    .model(spec)
    .apply(
      {"params": params},
      batch,
      execution_lib.Execution(policies=policies),
      mutable=["intermediates"],
      capture_intermediates=lambda module, _: isinstance(module, kinds),
    )
  )
  layers = {
    tower: [
      state["intermediates"][tower]["encoder"][f"layers_{i}"]
      for i in range(getattr(spec, tower).encoder.depth)
    ]
    for tower in spec.towers
  }
  return output, aux, layers


def legacy_macs(
  spec: specs.ModelSpec, counts: Mapping[str, Num[np.ndarray, "r _"]]
) -> float | None:
  """MACs in the published papers' convention, or None where there is none.

  Args:
    spec: the model; its own widths are costed.
    counts: see `macs`.
  """
  legacy = _of(spec).legacy
  return None if legacy is None else float(legacy(spec, counts))


def twins(spec: specs.ModelSpec, tree: Mapping) -> dict[str, Any]:
  """The part of a parameter tree of which training keeps a momentum twin."""
  return {name: tree[name] for name in _of(spec).twins}


def module(spec: specs.ModelSpec) -> nn.Module:
  """The Flax module of a spec."""
  return _of(spec).model(spec)


def params_count(spec: specs.ModelSpec) -> int:
  """The number of parameters of a dense or compact model, from its spec."""
  return towers.params_count(param_shapes(spec))


def live_params(spec: specs.ModelSpec, masks: Mapping) -> Float[Array, ""]:
  """The same of a dense model without its masked units; traceable."""
  shapes = param_shapes(spec)
  size = towers.params_count(shapes)
  return cost.live_params(size, shapes, groups(spec), masks)


def legacy_params_count(spec: specs.ModelSpec) -> int:
  """The same as the published papers count: momentum twins included."""
  shapes = param_shapes(spec)
  return towers.params_count(shapes) + towers.params_count(twins(spec, shapes))

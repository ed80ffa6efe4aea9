"""What all models of a vision tower and of text towers share."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from comp_jax.core import groups as groups_lib
from comp_jax.core import prunable as prunable_lib
from comp_jax.models import specs

# Mode of each tower's units, and of its tokens.
PARAM_MODES = {
  "vision": "vision_params",
  "text": "language_params",
  "answer": "language_params",
}
_TOKEN_MODES = {"vision_tokens": "vision", "language_tokens": "text"}
# What a model of an image and a text looks at.
INPUTS = ("image", "text_ids", "text_mask")


def example(spec: specs.ModelSpec) -> dict[str, Array]:
  """A batch of one image (or of as many as an example has) and one text."""
  size = spec.vision.image_size
  images = (spec.images,) if spec.images > 1 else ()
  return {
    "image": jnp.zeros((1, *images, size, size, 3), jnp.uint8),
    "text_ids": jnp.zeros((1, 1), jnp.int32),
    "text_mask": jnp.ones((1, 1), bool),
  }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """What tells one kind of model from another.

  Attributes:
    model: spec -> module; (batch, execution) -> (output, {tower: aux}).
    macs: (spec, masks, counts) -> mean MACs of one example.
    alone: tower -> (method, inputs) that run it without the others; a tower
      that is not named needs the whole model.
    example: spec -> a batch of one.
    legacy: (spec, counts) -> MACs in the published papers' convention, where
      they have one.
    twins: parameters of which training keeps a momentum twin.
    inputs: what the model looks at; a batch may hold more, for the loss.
  """

  model: Callable[[Any], nn.Module]
  macs: Callable[[Any, Mapping | None, Mapping], Any]
  alone: Mapping[str, tuple[str, tuple[str, ...]]]
  example: Callable[[Any], Mapping] = example
  legacy: Callable[[Any, Mapping], float] | None = None
  twins: tuple[str, ...] = ()
  inputs: tuple[str, ...] = INPUTS


def groups(
  spec: specs.ModelSpec, *, min_heads: int, min_neurons: int
) -> tuple[groups_lib.Group, ...]:
  """The group table of all towers of a dense model.

  Args:
    spec: the model.
    min_heads: heads that stay in every attention block.
    min_neurons: neurons that stay in every MLP.
  """
  tables = []
  for tower in spec.towers:
    encoder = getattr(spec, tower).encoder
    layer = encoder.uniform
    tables += groups_lib.encoder_groups(
      tower=tower,
      mode=PARAM_MODES[tower],
      layers=encoder.depth,
      heads=layer.heads,
      head_width=layer.head_width,
      neurons=layer.mlp,
      granularity=encoder.granularity,
      layer_scale=encoder.layer_scale,
      min_heads=min_heads,
      min_neurons=min_neurons,
      cross={
        name: block.heads
        for name, block in zip(layer.cross_names, layer.cross, strict=True)
      },
    )
  return tuple(tables)


def compacted(
  spec: specs.ModelSpec, units_left: Mapping[str, Sequence[int]]
) -> specs.ModelSpec:
  """The spec of the compact model: unrolled, each layer with its own widths.

  Args:
    spec: the dense model.
    units_left: live units per layer of every group, by the group's name
      (`core.compact.units_left`).

  Raises:
    KeyError: a group is missing.
    ValueError: the layers are not as many as the model's.
  """

  def tower(name, side):
    encoder = side.encoder
    dense = encoder.uniform
    by_head = encoder.granularity == "head"
    names = ["attn", "mlp", *dense.cross_names]
    left = {part: units_left[f"{name}/{part}"] for part in names}
    if any(len(units) != encoder.depth for units in left.values()):
      found = " and ".join(str(len(units)) for units in left.values())
      raise ValueError(
        f"{name}: widths of {found} layers, the model has {encoder.depth}"
      )

    def attention(block, units):
      return {
        "heads": int(units) if by_head else block.heads,
        "head_width": block.head_width if by_head else int(units),
      }

    def layer(index):
      cross = tuple(
        specs.AttentionSpec(**attention(block, left[part][index]))
        for part, block in zip(dense.cross_names, dense.cross, strict=True)
      )
      return specs.LayerSpec(
        **attention(dense, left["attn"][index]),
        mlp=int(left["mlp"][index]),
        cross=cross,
      )

    layers = tuple(layer(index) for index in range(encoder.depth))
    return dataclasses.replace(
      side, encoder=dataclasses.replace(encoder, layers=layers, scan=False)
    )

  sides = {name: tower(name, getattr(spec, name)) for name in spec.towers}
  return dataclasses.replace(spec, **sides)


def is_dense(spec: specs.ModelSpec) -> bool:
  """Whether all towers are stacks of equal layers, as pruning needs them."""
  return all(getattr(spec, tower).encoder.scan for tower in spec.towers)


def token_modes(spec: specs.ModelSpec) -> dict[str, str]:
  """Mode -> tower whose tokens it drops; a decoder loses none."""
  return {
    mode: tower
    for mode, tower in _TOKEN_MODES.items()
    if not isinstance(getattr(spec, tower), specs.DecoderSpec)
  }


def prunable(spec: specs.ModelSpec, family: Family) -> prunable_lib.Prunable:
  """The model as the loops see it, without groups: its units all stay.

  Args:
    spec: the model; of a compact one no tokens go either.
    family: its kind.
  """
  model = family.model(spec)

  # Jitted, so that a stage that validates, bisects and trains traces it once
  # for each kind of call.
  @jax.jit
  def forward(params, batch, execution):
    return model.apply({"params": params}, batch, execution)

  @jax.jit
  def whole_counts(params, batch, execution):
    inputs = {name: batch[name] for name in family.inputs}
    _, aux = forward(params, inputs, execution)
    return {tower: aux[tower]["counts"] for tower in tokens.values()}

  def counts(tower):
    @jax.jit
    def run(params, batch, execution):
      method, inputs = family.alone[tower]
      _, aux = model.apply(
        {"params": params},
        *(batch[name] for name in inputs),
        execution.of(tower),
        method=method,
      )
      return aux["counts"]

    return run

  tokens = token_modes(spec) if is_dense(spec) else {}
  alone = set(tokens.values()) & set(family.alone)
  return prunable_lib.Prunable(
    groups=(),
    token_modes=tokens,
    protected={
      tower: getattr(spec, tower).protected for tower in tokens.values()
    },
    forward=forward,
    tower_counts={tower: counts(tower) for tower in alone},
    whole_counts=whole_counts,
    # Traced once, though a stage asks for it dozens of times.
    macs=jax.jit(lambda masks, counts: family.macs(spec, masks, counts)),
    rows={"vision": spec.images, "text": spec.readings},
  )


def unrolled(
  spec: specs.ModelSpec, params: Mapping
) -> tuple[specs.ModelSpec, dict]:
  """The same model with layers that stand apart instead of under a scan."""
  params = dict(params)
  for tower in spec.towers:
    encoder = getattr(spec, tower).encoder
    if encoder.scan:
      apart = dict(params[tower]["encoder"])
      layers = apart.pop("layers")
      for i in range(encoder.depth):
        apart[f"layers_{i}"] = jax.tree.map(lambda x, i=i: x[i], layers)
      params[tower] = {**params[tower], "encoder": apart}
  return specs.with_encoders(spec, scan=False), params


def params_count(shapes: Mapping) -> int:
  """The number of parameters in a tree of shapes."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))

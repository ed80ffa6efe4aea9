"""What all models of a vision and a text tower share."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
from jaxtyping import Array

from comp_jax.core import groups as groups_lib
from comp_jax.core import prunable as prunable_lib
from comp_jax.models import specs

NAMES = ("vision", "text")
# Mode of each tower's units, and of its tokens.
PARAM_MODES = {"vision": "vision_params", "text": "language_params"}
TOKEN_MODES = {"vision_tokens": "vision", "language_tokens": "text"}


def groups(
  spec: specs.ModelSpec, *, min_heads: int, min_neurons: int
) -> tuple[groups_lib.Group, ...]:
  """The group table of both towers of a dense model.

  Args:
    spec: the model.
    min_heads: heads that stay in every attention block.
    min_neurons: neurons that stay in every MLP.
  """
  tables = []
  for tower in NAMES:
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


def is_dense(spec: specs.ModelSpec) -> bool:
  """Whether all towers are stacks of equal layers, as pruning needs them."""
  return all(getattr(spec, tower).encoder.scan for tower in NAMES)


def protected(spec: specs.ModelSpec) -> dict[str, int]:
  """Tokens of each tower that are never dropped: CLS, and the text's own."""
  return {"vision": 1, "text": spec.text.protected}


def nothing_to_prune(
  forward: Callable, macs: Callable[[Mapping, Mapping], Array]
) -> prunable_lib.Prunable:
  """A compact model as the training loop sees it."""
  return prunable_lib.Prunable(
    groups=(),
    token_modes={},
    protected={},
    forward=forward,
    tower_counts={},
    macs=macs,
  )


def unrolled(
  spec: specs.ModelSpec, params: Mapping
) -> tuple[specs.ModelSpec, dict]:
  """The same model with layers that stand apart instead of under a scan."""
  params = dict(params)
  sides = {}
  for tower in NAMES:
    model = getattr(spec, tower)
    encoder = dataclasses.replace(model.encoder, scan=False)
    sides[tower] = dataclasses.replace(model, encoder=encoder)
    if model.encoder.scan:
      apart = dict(params[tower]["encoder"])
      layers = apart.pop("layers")
      for i in range(encoder.depth):
        apart[f"layers_{i}"] = jax.tree.map(lambda x, i=i: x[i], layers)
      params[tower] = {**params[tower], "encoder": apart}
  return dataclasses.replace(spec, **sides), params


def params_count(shapes: Mapping) -> int:
  """The number of parameters in a tree of shapes."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def side(tree: Mapping | None, tower: str):
  """A tower's part of masks, probes or policies."""
  return None if tree is None else tree[tower]

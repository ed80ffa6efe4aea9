"""Groups: which arrays and axes a prunable unit touches.

A unit is a head or head-channel of an attention block, or a hidden neuron of
an MLP. It belongs to exactly one group. A group covers one block of every
layer of one tower; its arrays may be stacked (a leading layer axis) or not.
Zeroing a unit's mask equals slicing it out of every array that the group
lists: a numeric test proves it for each model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

GRANULARITIES = ("head", "channel")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slot:
  """One array that a unit touches.

  Attributes:
    path: path below the layer scope, `attention/query/kernel`.
    axis: the unit axis, in the array of a single layer.
  """

  path: str
  axis: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
  """The coupled units of one kind of block, over all layers of a tower.

  Attributes:
    name: path of its mask, `vision/mlp`.
    mode: the pruning mode it belongs to.
    scope: path of the stacked layers, `vision/encoder/layers`.
    layers: number of layers.
    units: units per layer.
    floor: units that stay in every layer.
    rows: shape of the block's hidden units: (heads, head width) or (neurons,).
    slots: every array the units touch.
    output_slot: the slot of the block's output matrix, its rows first.
    layer_scale_path: the output's LayerScale below the scope, or None.
    indivisible: selection must not overshoot a budget with such a unit.
  """

  name: str
  mode: str
  scope: str
  layers: int
  units: int
  floor: int
  rows: tuple[int, ...]
  slots: tuple[Slot, ...]
  output_slot: Slot
  layer_scale_path: str | None = None
  indivisible: bool = False

  @property
  def output(self) -> str:
    """Path of the stacked output matrix."""
    return f"{self.scope}/{self.output_slot.path}"

  @property
  def output_axis(self) -> int:
    return self.output_slot.axis

  @property
  def layer_scale(self) -> str | None:
    if self.layer_scale_path is None:
      return None
    return f"{self.scope}/{self.layer_scale_path}"


def leaf(tree: Mapping, path: str) -> Any:
  """The leaf of a nested dict at a `/`-joined path."""
  for key in path.split("/"):
    tree = tree[key]
  return tree


def encoder_groups(
  *,
  tower: str,
  mode: str,
  layers: int,
  heads: int,
  head_width: int,
  neurons: int,
  granularity: str = "head",
  layer_scale: bool = False,
  min_heads: int = 1,
  min_neurons: int = 32,
  cross: Mapping[str, int] | None = None,
  cross_mode: str = "cross_params",
) -> tuple[Group, ...]:
  """The attention and MLP groups of an encoder, and cross-attention's.

  Args:
    tower: name of the tower, the root of its masks and parameters.
    mode: pruning mode of both groups.
    layers: number of stacked layers.
    heads: heads per layer.
    head_width: channels per head.
    neurons: MLP width.
    granularity: `head`, or `channel` (one index shared by all heads, UPop).
    layer_scale: whether the blocks end in a LayerScale.
    min_heads: floor; with `channel`, the same share of the channels.
    min_neurons: floor.
    cross: heads of each cross-attention by its name; its arrays lie under it.
    cross_mode: their pruning mode.

  Raises:
    ValueError: unknown granularity.
  """
  if granularity not in GRANULARITIES:
    raise ValueError(
      f"granularity must be one of {GRANULARITIES}, not {granularity!r}"
    )
  down = Slot(path="mlp/down/kernel", axis=0)
  scope = f"{tower}/encoder/layers"

  def attention(name, mode, block, heads, scale):
    slots = _attention_slots(block, granularity)
    by_head = granularity == "head"
    return Group(
      name=f"{tower}/{name}",
      mode=mode,
      scope=scope,
      layers=layers,
      units=heads if by_head else head_width,
      floor=min_heads if by_head else max(1, head_width * min_heads // heads),
      rows=(heads, head_width),
      slots=slots,
      output_slot=slots[-1],
      layer_scale_path=scale,
      indivisible=True,
    )

  groups = [
    attention(
      "attn", mode, "attention", heads, "layer_scale1" if layer_scale else None
    ),
    Group(
      name=f"{tower}/mlp",
      mode=mode,
      scope=scope,
      layers=layers,
      units=neurons,
      floor=min(min_neurons, neurons),
      rows=(neurons,),
      slots=(
        Slot(path="mlp/up/kernel", axis=1),
        Slot(path="mlp/up/bias", axis=0),
        down,
      ),
      output_slot=down,
      layer_scale_path="layer_scale2" if layer_scale else None,
    ),
  ]
  for name, count in (cross or {}).items():
    groups.append(attention(name, cross_mode, name, count, None))
  return tuple(groups)


def _attention_slots(block: str, granularity: str) -> tuple[Slot, ...]:
  """Every array that an attention unit touches; the output matrix is last."""
  # Unit axis in q/k/v kernels [d, h, e]; one less in biases [h, e] and in the
  # output kernel [h, e, d].
  axis = 1 if granularity == "head" else 2
  slots = []
  for name in ("query", "key", "value"):
    slots.append(Slot(path=f"{block}/{name}/kernel", axis=axis))
    slots.append(Slot(path=f"{block}/{name}/bias", axis=axis - 1))
  return (*slots, Slot(path=f"{block}/out/kernel", axis=axis - 1))

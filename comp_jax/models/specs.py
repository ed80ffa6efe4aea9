"""Shapes and options of the towers, as frozen dataclasses that fit in JSON."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSpec:
  """Widths of one encoder layer; pruning makes them differ.

  Attributes:
    heads: heads that are left.
    head_width: channels left in each head.
    mlp: hidden neurons that are left.
  """

  heads: int
  head_width: int
  mlp: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSpec:
  """A stack of self-attention layers.

  Attributes:
    width: residual width.
    layers: widths of each layer, as left by pruning.
    scale_width: head width before pruning; attention is scaled by
      1/sqrt(scale_width) whatever is left of the heads.
    norm_first: pre-norm (ViT) or post-norm (BERT).
    norm_eps: epsilon of the LayerNorms.
    layer_scale: learned scale at the end of each block.
    granularity: what an attention unit is: `head` or `channel`.
    scan: layers are stacked under `nn.scan`; needs equal widths.
    dtype: compute dtype; parameters, scores and norms stay float32.
    remat: recompute activations in the backward pass.
    unroll: layers per step of the scan.
    causal: tokens see themselves and what stands before them.
    activation: of the MLP: `gelu` (exact) or `quick_gelu` (CLIP's).
  """

  width: int
  layers: tuple[LayerSpec, ...]
  scale_width: int
  norm_first: bool
  norm_eps: float
  layer_scale: bool = False
  granularity: str = "head"
  scan: bool = True
  dtype: str = "float32"
  remat: bool = False
  unroll: int = 1
  causal: bool = False
  activation: str = "gelu"

  def __post_init__(self):
    if self.activation not in ("gelu", "quick_gelu"):
      raise ValueError(
        f"activation must be gelu or quick_gelu, not {self.activation!r}"
      )

  @property
  def depth(self) -> int:
    return len(self.layers)

  @property
  def uniform(self) -> LayerSpec:
    """The one LayerSpec of a stack of equal layers."""
    if len(set(self.layers)) != 1:
      raise ValueError("the layers have different widths: unroll them")
    return self.layers[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitSpec:
  """A vision transformer that reads out CLS.

  Attributes:
    image_size: side of the square input in pixels.
    patch_size: side of a patch in pixels.
    encoder: the layers.
    mean: per-channel mean of the input in [0, 1].
    std: per-channel standard deviation.
    pre_norm: a LayerNorm between the embedding and the layers (CLIP).
    patch_bias: whether the patch embedding has a bias (CLIP's has none).
  """

  image_size: int
  patch_size: int
  encoder: EncoderSpec
  mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
  std: tuple[float, float, float] = (0.229, 0.224, 0.225)
  pre_norm: bool = False
  patch_bias: bool = True

  @property
  def grid(self) -> int:
    """Patches along one side."""
    return self.image_size // self.patch_size

  @property
  def tokens(self) -> int:
    """CLS and patches."""
    return self.grid**2 + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertSpec:
  """A BERT text encoder.

  Attributes:
    vocab_size: rows of the word table.
    max_length: rows of the position table.
    encoder: the layers.
    readout: `cls`, or `mean` over the surviving tokens.
    sep_id: token id of [SEP], which is never dropped.
    kind: tells text towers apart on disk.
  """

  vocab_size: int
  max_length: int
  encoder: EncoderSpec
  readout: str = "mean"
  sep_id: int = 102
  kind: Literal["bert"] = "bert"

  @property
  def protected(self) -> int:
    """Tokens of a text that are never dropped: [CLS] and [SEP]."""
    return 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextSpec:
  """CLIP's causal text encoder, which reads out the end-of-text token.

  Attributes:
    vocab_size: rows of the word table.
    max_length: rows of the position table.
    encoder: the layers.
    kind: tells text towers apart on disk.
  """

  vocab_size: int
  max_length: int
  encoder: EncoderSpec
  kind: Literal["clip"] = "clip"

  @property
  def protected(self) -> int:
    """Tokens of a text that are never dropped: the end of text."""
    return 1


_TEXT_SPECS = {"bert": BertSpec, "clip": ClipTextSpec}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoTowerSpec:
  """A CLIP-like pair: image and text meet in a joint space.

  Attributes:
    vision: the image tower.
    text: the text tower.
    joint_width: width of the joint space.
  """

  vision: VitSpec
  text: BertSpec | ClipTextSpec
  joint_width: int


def encoder(
  *,
  width: int,
  depth: int,
  heads: int,
  mlp: int,
  norm_first: bool,
  norm_eps: float,
  **options: Any,
) -> EncoderSpec:
  """The spec of a dense encoder with equal layers."""
  layer = LayerSpec(heads=heads, head_width=width // heads, mlp=mlp)
  return EncoderSpec(
    width=width,
    layers=(layer,) * depth,
    scale_width=width // heads,
    norm_first=norm_first,
    norm_eps=norm_eps,
    **options,
  )


def compacted(
  spec: TwoTowerSpec, units_left: Mapping[str, Sequence[int]]
) -> TwoTowerSpec:
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
    dense = side.encoder.uniform
    by_head = side.encoder.granularity == "head"
    attention, mlp = units_left[f"{name}/attn"], units_left[f"{name}/mlp"]
    if not len(attention) == len(mlp) == side.encoder.depth:
      raise ValueError(
        f"{name}: widths of {len(attention)} and {len(mlp)} layers, the model "
        f"has {side.encoder.depth}"
      )
    layers = tuple(
      LayerSpec(
        heads=int(units) if by_head else dense.heads,
        head_width=dense.head_width if by_head else int(units),
        mlp=int(neurons),
      )
      for units, neurons in zip(attention, mlp, strict=True)
    )
    encoder = dataclasses.replace(side.encoder, layers=layers, scan=False)
    return dataclasses.replace(side, encoder=encoder)

  return dataclasses.replace(
    spec,
    vision=tower("vision", spec.vision),
    text=tower("text", spec.text),
  )


def to_dict(spec: TwoTowerSpec) -> dict:
  """The spec as plain JSON types."""
  return dataclasses.asdict(spec)


def from_dict(values: Mapping) -> TwoTowerSpec:
  """The spec that `to_dict` wrote.

  Raises:
    KeyError, TypeError: a field is missing or unknown.
  """

  def tower(cls, fields):
    fields = dict(fields)
    inner = dict(fields.pop("encoder"))
    layers = tuple(LayerSpec(**layer) for layer in inner.pop("layers"))
    fields = {
      k: tuple(v) if isinstance(v, list | tuple) else v
      for k, v in fields.items()
    }
    return cls(encoder=EncoderSpec(layers=layers, **inner), **fields)

  return TwoTowerSpec(
    vision=tower(VitSpec, values["vision"]),
    # Folders that were written before CLIP's towers do not name the kind.
    text=tower(_TEXT_SPECS[values["text"].get("kind", "bert")], values["text"]),
    joint_width=values["joint_width"],
  )

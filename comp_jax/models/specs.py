"""Shapes and options of the towers, as frozen dataclasses that fit in JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

ACTIVATIONS = ("gelu", "quick_gelu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSpec:
  """Widths of one attention block.

  Attributes:
    heads: heads that are left.
    head_width: channels left in each head.
  """

  heads: int
  head_width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSpec:
  """Widths of one encoder layer; pruning makes them differ.

  Attributes:
    heads: heads that are left.
    head_width: channels left in each head.
    mlp: hidden neurons that are left.
    cross: cross-attention to the tokens of another tower: none, one, or one
      for each of two images (NLVR2).
  """

  heads: int
  head_width: int
  mlp: int
  cross: tuple[AttentionSpec, ...] = ()

  @property
  def cross_names(self) -> tuple[str, ...]:
    """What masks and parameters call the cross-attention blocks."""
    if len(self.cross) == 1:
      return ("cross",)
    return tuple(f"cross{index}" for index in range(len(self.cross)))


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
    activation: of the MLP and of a decoder's head: `gelu` (exact) or
      `quick_gelu` (CLIP's).
    source_width: width of the tokens that cross-attention reads; 0 without.
    merge_from: first layer that joins two cross-attentions by a linear map;
      the layers below, or all without it, take their mean.
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
  source_width: int = 0
  merge_from: int | None = None

  def __post_init__(self):
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f"activation must be {' or '.join(ACTIVATIONS)}, not "
        f"{self.activation!r}"
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
  """A vision transformer.

  Attributes:
    image_size: side of the square input in pixels.
    patch_size: side of a patch in pixels.
    encoder: the layers.
    mean: per-channel mean of the input in [0, 1].
    std: per-channel standard deviation.
    pre_norm: a LayerNorm between the embedding and the layers (CLIP).
    patch_bias: whether the patch embedding has a bias (CLIP's has none).
    readout: `cls`, or all `tokens` for a text tower to look at.
  """

  image_size: int
  patch_size: int
  encoder: EncoderSpec
  mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
  std: tuple[float, float, float] = (0.229, 0.224, 0.225)
  pre_norm: bool = False
  patch_bias: bool = True
  readout: str = "cls"

  @property
  def grid(self) -> int:
    """Patches along one side."""
    return self.image_size // self.patch_size

  @property
  def tokens(self) -> int:
    """CLS and patches."""
    return self.grid**2 + 1

  @property
  def protected(self) -> int:
    """Tokens of an image that are never dropped: CLS."""
    return 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertSpec:
  """A BERT text encoder.

  Attributes:
    vocab_size: rows of the word table.
    max_length: rows of the position table.
    encoder: the layers.
    readout: `cls`, `mean` over the surviving tokens, or all `tokens` for a
      decoder to look at.
    sep_id: token id of [SEP], which is never dropped.
    enc_id: token id that takes the first place when the text looks at images
      (BLIP's [ENC]); None leaves [CLS] there.
    kind: tells text towers apart on disk.
  """

  vocab_size: int
  max_length: int
  encoder: EncoderSpec
  readout: str = "mean"
  sep_id: int = 102
  enc_id: int | None = None
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
    eot_id: token id that ends a text; None for the highest one of each text,
      as OpenAI's code has it. The model itself goes by the mask.
    kind: tells text towers apart on disk.
  """

  vocab_size: int
  max_length: int
  encoder: EncoderSpec
  eot_id: int | None = None
  kind: Literal["clip"] = "clip"

  @property
  def protected(self) -> int:
    """Tokens of a text that are never dropped: the end of text."""
    return 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderSpec:
  """A causal BERT that looks at another tower and writes.

  Attributes:
    vocab_size: rows of the word table, which is the output's too.
    max_length: rows of the position table.
    encoder: the layers.
    bos_id: token id that takes the first place (BLIP's [DEC]); None leaves the
      one that is given there.
    sep_id: token id of [SEP], which ends a text.
    kind: tells text towers apart on disk.
  """

  vocab_size: int
  max_length: int
  encoder: EncoderSpec
  bos_id: int | None
  sep_id: int = 102
  kind: Literal["decoder"] = "decoder"


class ModelSpec:
  """What every model has.

  Attributes:
    family: tells models apart on disk.
    towers: its fields that are towers.
    sources: tower -> the one that its cross-attention reads.
    images: images that one example shows to the vision tower.
    readings: passes of the text tower over one text.
  """

  family: str
  towers: ClassVar[tuple[str, ...]] = ("vision", "text")
  sources: ClassVar[Mapping[str, str]] = {"text": "vision"}
  images: ClassVar[int] = 1
  readings: ClassVar[int] = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoTowerSpec(ModelSpec):
  """A CLIP-like pair: image and text meet in a joint space.

  Attributes:
    vision: the image tower.
    text: the text tower.
    joint_width: width of the joint space.
  """

  vision: VitSpec
  text: BertSpec | ClipTextSpec
  joint_width: int
  family: Literal["two_tower"] = "two_tower"
  sources: ClassVar[Mapping[str, str]] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchingSpec(ModelSpec):
  """BLIP's image-text matching: the text looks at the image.

  Attributes:
    vision: the image tower; reads out its tokens.
    text: the text tower, with cross-attention.
  """

  vision: VitSpec
  text: BertSpec
  family: Literal["matching"] = "matching"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NlvrSpec(ModelSpec):
  """BLIP for NLVR2: the text looks at two images.

  Attributes:
    vision: the image tower; reads out its tokens.
    text: the text tower, with two cross-attentions in every layer.
  """

  vision: VitSpec
  text: BertSpec
  family: Literal["nlvr"] = "nlvr"
  images: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalSpec(MatchingSpec):
  """BLIP's retrieval: a joint space as well, where no tower sees the other.

  Attributes:
    joint_width: width of the joint space.
  """

  joint_width: int
  family: Literal["retrieval"] = "retrieval"
  # Once alone, once looking at an image.
  readings: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionSpec(ModelSpec):
  """BLIP's captioning: a decoder looks at the image.

  Attributes:
    vision: the image tower; reads out its tokens.
    text: the decoder.
  """

  vision: VitSpec
  text: DecoderSpec
  family: Literal["caption"] = "caption"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VqaSpec(ModelSpec):
  """BLIP's question answering: a decoder looks at a question about an image.

  Attributes:
    vision: the image tower; reads out its tokens.
    text: the question's tower, with cross-attention; reads out its tokens.
    answer: the decoder.
  """

  vision: VitSpec
  text: BertSpec
  answer: DecoderSpec
  family: Literal["vqa"] = "vqa"
  towers: ClassVar[tuple[str, ...]] = ("vision", "text", "answer")
  sources: ClassVar[Mapping[str, str]] = {"text": "vision", "answer": "text"}


def encoder(
  *,
  width: int,
  depth: int,
  heads: int,
  mlp: int,
  norm_first: bool,
  norm_eps: float,
  source_width: int = 0,
  crosses: int = 1,
  **options: Any,
) -> EncoderSpec:
  """The spec of a dense encoder with equal layers.

  With a `source_width` each layer has `crosses` cross-attentions of as many
  heads.
  """
  each = {"heads": heads, "head_width": width // heads}
  cross = (AttentionSpec(**each),) * crosses if source_width else ()
  layer = LayerSpec(mlp=mlp, cross=cross, **each)
  return EncoderSpec(
    width=width,
    layers=(layer,) * depth,
    scale_width=width // heads,
    norm_first=norm_first,
    norm_eps=norm_eps,
    source_width=source_width,
    **options,
  )


def with_encoders(spec: ModelSpec, **options: Any) -> ModelSpec:
  """The spec with fields of every tower's encoder replaced."""
  sides = {}
  for name in spec.towers:
    tower = getattr(spec, name)
    encoder = dataclasses.replace(tower.encoder, **options)
    sides[name] = dataclasses.replace(tower, encoder=encoder)
  return dataclasses.replace(spec, **sides)

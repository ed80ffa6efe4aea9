"""Named models, from a small one to train to the published CLIPs."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from comp_jax.models import published, specs


def tiny(
  *,
  vocab_size: int,
  image_size: int = 64,
  max_length: int = 32,
  sep_id: int = 3,
  joint_width: int = 96,
  **options: Any,
) -> specs.TwoTowerSpec:
  """About 1 M parameters for 64-pixel images, to train from scratch.

  Args:
    vocab_size: rows of the word table.
    image_size: side of the images, a multiple of 8.
    max_length: rows of the text's position table.
    sep_id: token id of [SEP]; 3 in a tokenizer that the project trained.
    joint_width: width of the joint space.
    **options: fields of both `EncoderSpec`s: granularity, dtype, remat, unroll.
  """
  return specs.TwoTowerSpec(
    vision=specs.VitSpec(
      image_size=published.multiple(image_size, 8),
      patch_size=8,
      encoder=specs.encoder(
        width=96,
        depth=6,
        heads=6,
        mlp=384,
        **published.VIT,
        **options,
      ),
    ),
    text=specs.BertSpec(
      vocab_size=vocab_size,
      max_length=max_length,
      readout="mean",
      sep_id=sep_id,
      encoder=specs.encoder(
        width=96,
        depth=3,
        heads=6,
        mlp=384,
        **published.BERT,
        **options,
      ),
    ),
    joint_width=joint_width,
  )


def tiny_blip(
  *,
  family: str,
  vocab_size: int,
  image_size: int = 64,
  max_length: int = 32,
  sep_id: int = 3,
  bos_id: int = 2,
  **options: Any,
) -> specs.ModelSpec:
  """The tiny towers as a BLIP for 64-pixel images.

  Args:
    family: `nlvr`, `retrieval` or `vqa`.
    vocab_size: rows of the word table.
    image_size: side of the images, a multiple of 8.
    max_length: rows of the text's position table.
    sep_id: token id of [SEP]; 3 in a tokenizer that the project trained.
    bos_id: token id that answers begin with; 2 is [CLS] in such a tokenizer.
    **options: fields of all `EncoderSpec`s: granularity, dtype, remat, unroll.
  """
  words = {
    "vocab_size": vocab_size,
    "max_length": max_length,
    "sep_id": sep_id,
  }
  pair = tiny(image_size=image_size, **words, **options)
  vision = dataclasses.replace(pair.vision, readout="tokens")

  def looking(depth=3, **more):
    return specs.encoder(
      width=96,
      depth=depth,
      heads=6,
      mlp=384,
      source_width=96,
      **published.BERT,
      **more,
      **options,
    )

  if family == "vqa":
    return specs.VqaSpec(
      vision=vision,
      text=specs.BertSpec(readout="tokens", encoder=looking(), **words),
      answer=specs.DecoderSpec(
        bos_id=bos_id, encoder=looking(2, causal=True), **words
      ),
    )
  merging = {"crosses": 2, "merge_from": 1} if family == "nlvr" else {}
  text = specs.BertSpec(readout="cls", encoder=looking(**merging), **words)
  if family == "retrieval":
    return specs.RetrievalSpec(
      vision=vision, text=text, joint_width=pair.joint_width
    )
  return specs.NlvrSpec(vision=vision, text=text)


def dinov2_s14_minilm(
  *,
  image_size: int = 112,
  joint_width: int = 384,
  max_length: int = 64,
  **options: Any,
) -> specs.TwoTowerSpec:
  """DINOv2 ViT-S/14 and MiniLM-L6, what `interop.pretrained` has weights for.

  Args:
    image_size: side of the images, a multiple of 14.
    joint_width: width of the joint space.
    max_length: rows of the text's position table, at most 512.
    **options: fields of both `EncoderSpec`s: granularity, dtype, remat, unroll.
  """
  if not 1 <= max_length <= 512:
    raise ValueError(f"max_length must be in 1..512, not {max_length}")
  return specs.TwoTowerSpec(
    vision=specs.VitSpec(
      image_size=published.multiple(image_size, 14),
      patch_size=14,
      encoder=specs.encoder(
        width=384,
        depth=12,
        heads=6,
        mlp=1536,
        **published.VIT,
        layer_scale=True,
        **options,
      ),
    ),
    text=specs.BertSpec(
      vocab_size=30522,
      max_length=max_length,
      readout="mean",
      sep_id=published.SEP,
      encoder=specs.encoder(
        width=384,
        depth=6,
        heads=12,
        mlp=1536,
        **published.BERT,
        **options,
      ),
    ),
    joint_width=joint_width,
  )


def dinov2_s14_minilm_itm(
  *,
  image_size: int = 112,
  max_length: int = 64,
  **options: Any,
) -> specs.MatchingSpec:
  """The same towers, the text looking at the image: BLIP in small.

  Cross-attention and head have no pretrained weights.

  Args:
    image_size: side of the images, a multiple of 14.
    max_length: rows of the text's position table, at most 512.
    **options: fields of both `EncoderSpec`s: granularity, dtype, remat, unroll.
  """
  pair = dinov2_s14_minilm(
    image_size=image_size, max_length=max_length, **options
  )
  vision, text = pair.vision, pair.text
  layer = text.encoder.uniform
  cross = specs.AttentionSpec(heads=layer.heads, head_width=layer.head_width)
  layers = tuple(
    dataclasses.replace(layer, cross=(cross,)) for _ in text.encoder.layers
  )
  return specs.MatchingSpec(
    vision=dataclasses.replace(vision, readout="tokens"),
    text=dataclasses.replace(
      text,
      readout="cls",
      encoder=dataclasses.replace(
        text.encoder, layers=layers, source_width=vision.encoder.width
      ),
    ),
  )


# Family -> pixels, and a suffix of the name -> vision tower.
_BLIPS = dict(matching=384, nlvr=384, retrieval=384, caption=384, vqa=480)
_VITS = {"": {}, "_large": {"vision_width": 1024, "vision_depth": 24}}
_CLIP_B = {"vision_width": 768, "vision_depth": 12, "text_width": 512}
_CLIP_L = {"vision_width": 1024, "vision_depth": 24, "text_width": 768}

# Trained from random weights, with a vocabulary of the data's own.
FROM_SCRATCH = ("tiny", "tiny_nlvr", "tiny_retrieval", "tiny_vqa")
NAMES: Mapping[str, Callable[..., specs.ModelSpec]] = {
  "tiny": tiny,
  "tiny_nlvr": functools.partial(tiny_blip, family="nlvr"),
  "tiny_retrieval": functools.partial(tiny_blip, family="retrieval"),
  "tiny_vqa": functools.partial(tiny_blip, family="vqa"),
  "dinov2_s14_minilm": dinov2_s14_minilm,
  "dinov2_s14_minilm_itm": dinov2_s14_minilm_itm,
  **{
    f"blip_{family}{size}": functools.partial(
      published.blip, family=family, image_size=pixels, **vit
    )
    for family, pixels in _BLIPS.items()
    for size, vit in _VITS.items()
  },
  "clip_b32": functools.partial(published.clip, patch_size=32, **_CLIP_B),
  "clip_b16": functools.partial(published.clip, patch_size=16, **_CLIP_B),
  "clip_l14": functools.partial(published.clip, patch_size=14, **_CLIP_L),
  "clip_l14_336": functools.partial(
    published.clip, patch_size=14, **{"image_size": 336, **_CLIP_L}
  ),
}


def spec(name: str, **options: Any) -> specs.ModelSpec:
  """The spec of a named model.

  Raises:
    ValueError: unknown name, or a size that the model cannot have.
  """
  if name not in NAMES:
    raise ValueError(
      f"no model is called {name!r}; there are: {', '.join(sorted(NAMES))}"
    )
  return NAMES[name](**options)

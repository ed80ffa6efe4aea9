"""BLIP and CLIP as published: their sizes, words and pixel statistics.

What the numbers are held against: spec `upop.md` 3, and `transformers`.
"""

from typing import Any

from comp_jax.models import specs

# Pixel statistics of CLIP's and BLIP's training images.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# BLIP's words: bert-base-uncased's, then [DEC] and [ENC] (spec `upop.md` 3.3).
BLIP_WORDS = 30524
# [SEP] of bert-base-uncased.
SEP = 102

# How the layers of each kind of tower normalise.
VIT = {"norm_first": True, "norm_eps": 1e-6}
BERT = {"norm_first": False, "norm_eps": 1e-12}
CLIP = {"norm_first": True, "norm_eps": 1e-5, "activation": "quick_gelu"}


def blip(
  *,
  family: str,
  image_size: int = 384,
  max_length: int = 512,
  vision_width: int = 768,
  vision_depth: int = 12,
  joint_width: int = 256,
  **options: Any,
) -> specs.ModelSpec:
  """A BLIP with ViT-B/16, or ViT-L/16 by its width and depth; BERT-base.

  Args:
    family: `matching`, `nlvr`, `retrieval`, `caption` or `vqa`.
    image_size: side of the images, a multiple of 16.
    max_length: rows of the text's position table.
    vision_width: residual width of the vision tower.
    vision_depth: its layers.
    joint_width: width of the joint space (retrieval).
    **options: fields of both `EncoderSpec`s: granularity, dtype, remat, unroll.
  """
  vision = specs.VitSpec(
    image_size=multiple(image_size, 16),
    patch_size=16,
    encoder=specs.encoder(
      width=vision_width,
      depth=vision_depth,
      heads=vision_width // 64,
      mlp=4 * vision_width,
      **VIT,
      **options,
    ),
    mean=CLIP_MEAN,
    std=CLIP_STD,
    readout="tokens",
  )

  def words(source_width, **more):
    return {
      "vocab_size": BLIP_WORDS,
      "max_length": max_length,
      "encoder": specs.encoder(
        width=768,
        depth=12,
        heads=12,
        mlp=3072,
        source_width=source_width,
        **BERT,
        **more,
        **options,
      ),
    }

  def reader(readout, **more):
    return specs.BertSpec(
      readout=readout, enc_id=BLIP_WORDS - 1, **words(vision_width, **more)
    )

  def writer(source_width):
    return specs.DecoderSpec(
      bos_id=BLIP_WORDS - 2, **words(source_width, causal=True)
    )

  if family == "caption":
    return specs.CaptionSpec(vision=vision, text=writer(vision_width))
  if family == "vqa":
    return specs.VqaSpec(
      vision=vision, text=reader("tokens"), answer=writer(768)
    )
  if family == "retrieval":
    return specs.RetrievalSpec(
      vision=vision, text=reader("cls"), joint_width=joint_width
    )
  merging = {"crosses": 2, "merge_from": 6} if family == "nlvr" else {}
  model = specs.NlvrSpec if family == "nlvr" else specs.MatchingSpec
  return model(vision=vision, text=reader("cls", **merging))


def clip(
  *,
  patch_size: int,
  vision_width: int,
  vision_depth: int,
  text_width: int,
  image_size: int = 224,
  max_length: int = 77,
  vocab_size: int = 49408,
  text_depth: int = 12,
  joint_width: int | None = None,
  **options: Any,
) -> specs.TwoTowerSpec:
  """A CLIP of OpenAI's family; heads are 64 wide.

  Args:
    patch_size: side of a patch in pixels.
    vision_width: residual width of the vision tower.
    vision_depth: its layers.
    text_width: residual width of the text tower.
    image_size: side of the images, a multiple of `patch_size`.
    max_length: rows of the text's position table.
    vocab_size: rows of the word table.
    text_depth: layers of the text tower.
    joint_width: width of the joint space; None for the text's width.
    **options: fields of both `EncoderSpec`s: granularity, dtype, remat, unroll.
  """

  def encoder(width, depth, **more):
    return specs.encoder(
      width=width,
      depth=depth,
      heads=width // 64,
      mlp=4 * width,
      **CLIP,
      **more,
      **options,
    )

  return specs.TwoTowerSpec(
    vision=specs.VitSpec(
      image_size=multiple(image_size, patch_size),
      patch_size=patch_size,
      encoder=encoder(vision_width, vision_depth),
      mean=CLIP_MEAN,
      std=CLIP_STD,
      pre_norm=True,
      patch_bias=False,
    ),
    text=specs.ClipTextSpec(
      vocab_size=vocab_size,
      max_length=max_length,
      encoder=encoder(text_width, text_depth, causal=True),
    ),
    joint_width=joint_width or text_width,
  )


def multiple(image_size: int, patch_size: int) -> int:
  """The side of an image, if whole patches make it up.

  Raises:
    ValueError: they do not.
  """
  if image_size < patch_size or image_size % patch_size:
    raise ValueError(
      f"image_size must be a multiple of {patch_size}, not {image_size}"
    )
  return image_size

"""BLIP checkpoints for image-text matching: Hugging Face's and the original.

Every size but the number of heads is read from the shapes, so checkpoints
that UPop compressed describe themselves (spec `upop.md` parts 2 and 3.9).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from comp_jax import errors
from comp_jax.interop import layouts
from comp_jax.models import presets, specs

_HF_VIT = layouts.LayerNames(
  norm1="layer_norm1",
  qkv="self_attn.qkv.{kind}",
  out="self_attn.projection",
  norm2="layer_norm2",
  up="mlp.fc1",
  down="mlp.fc2",
)
_ORIGINAL_VIT = layouts.LayerNames(
  norm1="norm1",
  qkv="attn.qkv.{kind}",
  out="attn.proj",
  norm2="norm2",
  up="mlp.fc1",
  down="mlp.fc2",
)
_HF = {
  "layer": _HF_VIT,
  "layers": "vision_model.encoder.layers.{}.",
  "cls": "vision_model.embeddings.class_embedding",
  "patch": "vision_model.embeddings.patch_embedding",
  "positions": "vision_model.embeddings.position_embedding",
  "norm": "vision_model.post_layernorm",
}
_ORIGINAL = {
  "layer": _ORIGINAL_VIT,
  "layers": "visual_encoder.blocks.{}.",
  "cls": "visual_encoder.cls_token",
  "patch": "visual_encoder.patch_embed.proj",
  "positions": "visual_encoder.pos_embed",
  "norm": "visual_encoder.norm",
}
_TEXT = "text_encoder."
_TEXT_LAYER = _TEXT + "encoder.layer.{}."
# Heads of the contrastive half, momentum twins and queues.
_UNUSED = (
  f"{_TEXT}embeddings.position_ids",
  f"{_TEXT}pooler.",
  "vision_proj.",
  "text_proj.",
  "temp",
  "visual_encoder_m.",
  "text_encoder_m.",
  "vision_proj_m.",
  "text_proj_m.",
  "image_queue",
  "text_queue",
  "idx_queue",
  "ptr_queue",
)


def is_layout(arrays: Mapping[str, Any]) -> bool:
  """Whether the arrays are a BLIP's, in either layout."""
  return any(names["cls"] in arrays for names in (_HF, _ORIGINAL)) and any(
    name.startswith(_TEXT) for name in arrays
  )


def matching(
  arrays: Mapping[str, np.ndarray],
  where: str,
  *,
  heads: tuple[int, int] | None = None,
  norm_eps: tuple[float, float] = (1e-6, 1e-12),
  image_size: int | None = None,
) -> tuple[specs.MatchingSpec, dict]:
  """The spec and the parameters of BLIP's image-text matching half.

  Args:
    arrays: the checkpoint, flat.
    where: what is read, for messages.
    heads: of the vision and the text tower; None for width / 64.
    norm_eps: epsilon of the LayerNorms of either tower.
    image_size: side of the images; another one than the checkpoint's resamples
      the position table. None keeps the checkpoint's.

  Raises:
    UserError: names each missing, unexpected and misshaped array.
  """
  names = _HF if _HF["cls"] in arrays else _ORIGINAL
  spec = _spec(arrays, names, where, heads, norm_eps, image_size)
  checkpoint = layouts.Checkpoint(arrays, where)
  d, p = spec.vision.encoder.width, spec.vision.patch_size
  t = spec.text.encoder.width
  params = {
    "vision": {
      "patch_embed": {
        "kernel": layouts.patches(
          checkpoint.take(f"{names['patch']}.weight", d, 3, p, p)
        ),
        "bias": checkpoint.take(f"{names['patch']}.bias", d),
      },
      "cls_token": checkpoint.take(names["cls"], 1, 1, d)[0, 0],
      "position_embedding": checkpoint.positions(
        names["positions"], spec.vision.grid, 1, None, d
      ),
      "encoder": layouts.encoder(
        checkpoint, names["layers"], names["layer"], spec.vision.encoder
      ),
      "norm": checkpoint.norm(names["norm"], d),
    },
    "text": text_params(checkpoint, spec.text),
    "head": {
      "kernel": checkpoint.take("itm_head.weight", 2, t).T,
      "bias": checkpoint.take("itm_head.bias", 2),
    },
  }
  checkpoint.finish(_UNUSED)
  # The original BERT divides by what compression left; its ViT does not.
  for block in ("attention", "cross"):
    params["text"]["encoder"] = layouts.at_full_scale(
      params["text"]["encoder"], spec.text.encoder.scale_width, block
    )
  return spec, params


def text_params(checkpoint: layouts.Checkpoint, spec: specs.BertSpec) -> dict:
  """The parameters of BLIP's text encoder with cross-attention."""
  d, encoder = spec.encoder.width, spec.encoder
  embeddings = f"{_TEXT}embeddings"

  def layer(index, widths):
    prefix = _TEXT_LAYER.format(index)

    def attention(block, layer, source_width):
      return layouts.attention(
        checkpoint,
        [f"{prefix}{block}.self.{x}" for x in ("query", "key", "value")],
        f"{prefix}{block}.output.dense",
        width=d,
        source_width=source_width,
        layer=layer,
      )

    return {
      "attention": attention("attention", widths, d),
      "norm1": checkpoint.norm(f"{prefix}attention.output.LayerNorm", d),
      "cross": attention(
        "crossattention", widths.cross, encoder.source_width
      ),
      "norm_cross": checkpoint.norm(
        f"{prefix}crossattention.output.LayerNorm", d
      ),
      "mlp": layouts.mlp(
        checkpoint,
        f"{prefix}intermediate.dense",
        f"{prefix}output.dense",
        width=d,
        neurons=widths.mlp,
      ),
      "norm2": checkpoint.norm(f"{prefix}output.LayerNorm", d),
    }

  layers = [layer(i, widths) for i, widths in enumerate(encoder.layers)]
  return {
    "word_embedding": checkpoint.take(
      f"{embeddings}.word_embeddings.weight", spec.vocab_size, d
    ),
    "position_embedding": checkpoint.take(
      f"{embeddings}.position_embeddings.weight", spec.max_length, d
    ),
    "embedding_norm": checkpoint.norm(f"{embeddings}.LayerNorm", d),
    "encoder": layouts.stacked(layers, encoder.scan),
  }


def _spec(arrays, names, where, heads, norm_eps, image_size):
  """The spec that the shapes tell."""
  needed = {
    "patch": f"{names['patch']}.weight",
    "positions": names["positions"],
    "words": f"{_TEXT}embeddings.word_embeddings.weight",
    "text_positions": f"{_TEXT}embeddings.position_embeddings.weight",
  }
  missing = [name for name in needed.values() if name not in arrays]
  if missing:
    raise errors.UserError(
      f"{where}: not a whole BLIP checkpoint, it lacks {', '.join(missing)}"
    )
  shapes = {key: np.shape(arrays[name]) for key, name in needed.items()}
  width, _, patch, _ = shapes["patch"]
  vocab, text_width = shapes["words"]
  grid = round((shapes["positions"][1] - 1) ** 0.5)
  vision_heads, text_heads = heads or (width // 64, text_width // 64)
  layer = names["layer"]
  vision = layouts.layer_widths(
    arrays,
    names["layers"],
    vision_heads,
    out=f"{layer.out}.weight",
    up=f"{layer.up}.weight",
  )
  text = layouts.layer_widths(
    arrays,
    _TEXT_LAYER,
    text_heads,
    out="attention.output.dense.weight",
    up="intermediate.dense.weight",
    cross="crossattention.output.dense.weight",
  )

  def encoder(layers, width, heads, eps, **more):
    return specs.EncoderSpec(
      width=width,
      layers=layers,
      scale_width=width // heads,
      norm_eps=eps,
      scan=len(set(layers)) == 1,
      **more,
    )

  return specs.MatchingSpec(
    vision=specs.VitSpec(
      image_size=image_size or grid * patch,
      patch_size=patch,
      encoder=encoder(
        vision, width, vision_heads, norm_eps[0], norm_first=True
      ),
      mean=presets.CLIP_MEAN,
      std=presets.CLIP_STD,
      readout="tokens",
    ),
    text=specs.BertSpec(
      vocab_size=vocab,
      max_length=shapes["text_positions"][0],
      readout="cls",
      encoder=encoder(
        text,
        text_width,
        text_heads,
        norm_eps[1],
        norm_first=False,
        source_width=width,
      ),
    ),
  )

"""BLIP checkpoints of Hugging Face and the authors: matching, retrieval, NLVR2.

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
# Suffixes of the cross-attentions' names, by ours.
_ONE_CROSS = {"cross": ""}
_TWO_CROSSES = {"cross0": "0", "cross1": "1"}
# Momentum twins and queues are reset before any use.
_UNUSED = (
  f"{_TEXT}embeddings.position_ids",
  f"{_TEXT}pooler.",
  "visual_encoder_m.",
  "text_encoder_m.",
  "vision_proj_m.",
  "text_proj_m.",
  "image_queue",
  "text_queue",
  "idx_queue",
  "ptr_queue",
)
_CONTRASTIVE = ("vision_proj.", "text_proj.", "temp")
# The authors' first temperature; Hugging Face's layout has none.
_TEMPERATURE = 0.07


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
  checkpoint, (vision, text), params = _begun(
    arrays, where, heads, norm_eps, image_size, _ONE_CROSS
  )
  params["head"] = _linear(checkpoint, "itm_head", text.encoder.width, 2)
  checkpoint.finish((*_UNUSED, *_CONTRASTIVE))
  return specs.MatchingSpec(vision=vision, text=text), params


def retrieval(
  arrays: Mapping[str, np.ndarray],
  where: str,
  *,
  heads: tuple[int, int] | None = None,
  norm_eps: tuple[float, float] = (1e-6, 1e-12),
  image_size: int | None = None,
) -> tuple[specs.RetrievalSpec, dict]:
  """The spec and the parameters of a BLIP for retrieval; see `matching`."""
  checkpoint, (vision, text), params = _begun(
    arrays, where, heads, norm_eps, image_size, _ONE_CROSS
  )
  joint = np.shape(arrays.get("vision_proj.bias", np.zeros(256)))[0]
  d, v = text.encoder.width, vision.encoder.width
  params |= {
    "vision_projection": _linear(checkpoint, "vision_proj", v, joint),
    "text_projection": _linear(checkpoint, "text_proj", d, joint),
    "temperature": np.float32(_TEMPERATURE),
    "head": _linear(checkpoint, "itm_head", d, 2),
  }
  if "temp" in arrays:
    params["temperature"] = checkpoint.take("temp")
  checkpoint.finish(_UNUSED)
  spec = specs.RetrievalSpec(vision=vision, text=text, joint_width=joint)
  return spec, params


def is_retrieval(arrays: Mapping[str, Any]) -> bool:
  """Whether a BLIP has a joint space and a matching head."""
  return {"vision_proj.weight", "itm_head.weight"} <= arrays.keys()


def nlvr(
  arrays: Mapping[str, np.ndarray],
  where: str,
  *,
  heads: tuple[int, int] | None = None,
  norm_eps: tuple[float, float] = (1e-6, 1e-12),
  image_size: int | None = None,
) -> tuple[specs.NlvrSpec, dict]:
  """The spec and the parameters of a BLIP for NLVR2.

  A generic BLIP, with one cross-attention per layer, serves as a start: its
  cross-attention is doubled, the merging maps begin as the mean of the two,
  and the head, which it does not have, begins at random (spec `upop.md` 3.4).

  Args:
    arrays: the checkpoint, flat.
    where: what is read, for messages.
    heads: of the vision and the text tower; None for width / 64.
    norm_eps: epsilon of the LayerNorms of either tower.
    image_size: side of the images; None keeps the checkpoint's.

  Raises:
    UserError: names each missing, unexpected and misshaped array.
  """
  arrays = dict(arrays)
  generic = not is_nlvr(arrays)
  if generic:
    arrays = _doubled(arrays)
  checkpoint, (vision, text), params = _begun(
    arrays, where, heads, norm_eps, image_size, _TWO_CROSSES
  )
  d = text.encoder.width
  params["head_hidden"] = _linear(checkpoint, "cls_head.0", d, d)
  params["head"] = _linear(checkpoint, "cls_head.2", d, 2)
  left = ("itm_head.",) if generic else ()
  checkpoint.finish((*_UNUSED, *_CONTRASTIVE, *left))
  return specs.NlvrSpec(vision=vision, text=text), params


def is_nlvr(arrays: Mapping[str, Any]) -> bool:
  """Whether a BLIP has the two cross-attentions of NLVR2."""
  prefix = _TEXT_LAYER.format(0)
  return f"{prefix}crossattention.self0.query.weight" in arrays


def _doubled(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A generic BLIP's arrays as those of a BLIP for NLVR2."""
  result, depth = {}, 0
  for name, array in arrays.items():
    parts = [
      part
      for part in (".crossattention.self.", ".crossattention.output.dense.")
      if part in name
    ]
    if not parts or not name.startswith(_TEXT):
      result[name] = array
      continue
    depth = max(depth, int(name.removeprefix(_TEXT).split(".")[2]) + 1)
    for index in ("0", "1"):
      result[name.replace(parts[0], f"{parts[0][:-1]}{index}.")] = array
  words = arrays.get(f"{_TEXT}embeddings.word_embeddings.weight")
  width = 0 if words is None else np.shape(words)[1]
  half = 0.5 * np.eye(width, dtype=np.float32)
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(0, 0.02, shape).astype(np.float32)  # noqa: E731
  for layer in range(depth // 2, depth):
    prefix = f"{_TEXT_LAYER.format(layer)}crossattention.output.merge_layer"
    result[f"{prefix}.weight"] = np.concatenate([half, half], axis=1)
    result[f"{prefix}.bias"] = np.zeros(width, np.float32)
  result["cls_head.0.weight"] = normal(width, width)
  result["cls_head.0.bias"] = np.zeros(width, np.float32)
  result["cls_head.2.weight"] = normal(2, width)
  result["cls_head.2.bias"] = np.zeros(2, np.float32)
  return result


def _begun(arrays, where, heads, norm_eps, image_size, crosses):
  """The checkpoint, the specs of both towers, and their parameters."""
  names = _HF if _HF["cls"] in arrays else _ORIGINAL
  vision, text = _towers(
    arrays, names, where, heads, norm_eps, image_size, crosses
  )
  checkpoint = layouts.Checkpoint(arrays, where)
  params = {
    "vision": _vision_params(checkpoint, names, vision),
    "text": _text_params(checkpoint, text, crosses),
  }
  return checkpoint, (vision, text), params


def _linear(checkpoint, name, inputs, outputs) -> dict:
  return {
    "kernel": checkpoint.take(f"{name}.weight", outputs, inputs).T,
    "bias": checkpoint.take(f"{name}.bias", outputs),
  }


def _vision_params(checkpoint, names, spec: specs.VitSpec) -> dict:
  """The parameters of BLIP's vision tower."""
  d, p = spec.encoder.width, spec.patch_size
  return {
    "patch_embed": {
      "kernel": layouts.patches(
        checkpoint.take(f"{names['patch']}.weight", d, 3, p, p)
      ),
      "bias": checkpoint.take(f"{names['patch']}.bias", d),
    },
    "cls_token": checkpoint.take(names["cls"], 1, 1, d)[0, 0],
    "position_embedding": checkpoint.positions(
      names["positions"], spec.grid, 1, None, d
    ),
    "encoder": layouts.encoder(
      checkpoint, names["layers"], names["layer"], spec.encoder
    ),
    "norm": checkpoint.norm(names["norm"], d),
  }


def _text_params(
  checkpoint: layouts.Checkpoint,
  spec: specs.BertSpec,
  crosses: Mapping[str, str],
) -> dict:
  """The parameters of BLIP's text encoder with cross-attention."""
  d, encoder = spec.encoder.width, spec.encoder
  embeddings = f"{_TEXT}embeddings"

  def layer(index, widths):
    prefix = _TEXT_LAYER.format(index)

    def attention(block, layer, source_width, suffix=""):
      qkv = ("query", "key", "value")
      return layouts.attention(
        checkpoint,
        [f"{prefix}{block}.self{suffix}.{x}" for x in qkv],
        f"{prefix}{block}.output.dense{suffix}",
        width=d,
        source_width=source_width,
        layer=layer,
      )

    looks = {
      name: attention("crossattention", block, encoder.source_width, suffix)
      for (name, suffix), block in zip(
        crosses.items(), widths.cross, strict=True
      )
    }
    return {
      "attention": attention("attention", widths, d),
      "norm1": checkpoint.norm(f"{prefix}attention.output.LayerNorm", d),
      **looks,
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
  layers = layouts.stacked(layers, encoder.scan)
  # The original BERT divides by what compression left; its ViT does not.
  for block in ("attention", *crosses):
    layers = layouts.at_full_scale(layers, encoder.scale_width, block)
  if encoder.merge_from is not None:
    prefixes = [
      f"{_TEXT_LAYER.format(index)}crossattention.output.merge_layer"
      for index in range(encoder.merge_from, encoder.depth)
    ]
    maps = [_linear(checkpoint, prefix, 2 * d, d) for prefix in prefixes]
    layers["merge_kernel"] = np.stack([each["kernel"] for each in maps])
    layers["merge_bias"] = np.stack([each["bias"] for each in maps])
  return {
    "word_embedding": checkpoint.take(
      f"{embeddings}.word_embeddings.weight", spec.vocab_size, d
    ),
    "position_embedding": checkpoint.take(
      f"{embeddings}.position_embeddings.weight", spec.max_length, d
    ),
    "embedding_norm": checkpoint.norm(f"{embeddings}.LayerNorm", d),
    "encoder": layers,
  }


def _towers(arrays, names, where, heads, norm_eps, image_size, crosses):
  """The specs of both towers, as the shapes tell them."""
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
    cross=[
      f"crossattention.output.dense{suffix}.weight"
      for suffix in crosses.values()
    ],
  )
  merging = [
    index
    for index in range(len(text))
    if f"{_TEXT_LAYER.format(index)}crossattention.output.merge_layer.weight"
    in arrays
  ]

  def encoder(layers, width, heads, eps, **more):
    return specs.EncoderSpec(
      width=width,
      layers=layers,
      scale_width=width // heads,
      norm_eps=eps,
      scan=len(set(layers)) == 1,
      **more,
    )

  vision_spec = specs.VitSpec(
    image_size=image_size or grid * patch,
    patch_size=patch,
    encoder=encoder(vision, width, vision_heads, norm_eps[0], norm_first=True),
    mean=presets.CLIP_MEAN,
    std=presets.CLIP_STD,
    readout="tokens",
  )
  # The authors' code puts [ENC] first, transformers' leaves [CLS] there.
  has_enc = names is _ORIGINAL and vocab == presets.BLIP_WORDS
  text_spec = specs.BertSpec(
    vocab_size=vocab,
    enc_id=vocab - 1 if has_enc else None,
    max_length=shapes["text_positions"][0],
    readout="cls",
    encoder=encoder(
      text,
      text_width,
      text_heads,
      norm_eps[1],
      norm_first=False,
      source_width=width,
      merge_from=merging[0] if merging else None,
    ),
  )
  return vision_spec, text_spec

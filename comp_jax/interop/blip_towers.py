"""The towers of BLIP's checkpoints: names, sizes and parameters.

Every size but the number of heads is read from the shapes, so checkpoints
that UPop compressed describe themselves (spec `upop.md` parts 2 and 3.9).
"""

from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from comp_jax import errors
from comp_jax.interop import layouts, shapes
from comp_jax.models import published, specs

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
HF = {
  "layer": _HF_VIT,
  "layers": "vision_model.encoder.layers.{}.",
  "cls": "vision_model.embeddings.class_embedding",
  "patch": "vision_model.embeddings.patch_embedding",
  "positions": "vision_model.embeddings.position_embedding",
  "norm": "vision_model.post_layernorm",
}
ORIGINAL = {
  "layer": _ORIGINAL_VIT,
  "layers": "visual_encoder.blocks.{}.",
  "cls": "visual_encoder.cls_token",
  "patch": "visual_encoder.patch_embed.proj",
  "positions": "visual_encoder.pos_embed",
  "norm": "visual_encoder.norm",
}
# Where the text towers lie; a decoder's head lies beside it.
ENCODER, DECODER = "text_encoder.", "text_decoder.bert."
HEAD = "text_decoder.cls.predictions."
LAYER = "encoder.layer.{}."
_AUTHORS_UNTOLD = {
  "norm_eps": (1e-6, 1e-12),
  "activations": ("gelu", "gelu"),
}
# Suffixes of the cross-attentions' names, by ours.
ONE_CROSS = {"cross": ""}
TWO_CROSSES = {"cross0": "0", "cross1": "1"}


def names_of(arrays: Container[str]) -> Mapping[str, Any]:
  """The names of the vision tower: Hugging Face's, or the authors'."""
  return HF if HF["cls"] in arrays else ORIGINAL


def read_specs(
  arrays: Mapping[str, np.ndarray],
  where: str,
  prefixes: Mapping[str, Mapping[str, str]],
  **untold: Any,
) -> tuple[specs.VitSpec, list[dict[str, Any]]]:
  """The vision tower, and what text towers are made of, as shapes tell them.

  Args:
    arrays: the checkpoint.
    where: what is read, for messages.
    prefixes: of each text tower, with its cross-attentions' suffixes.
    **untold: fields of `shapes.Untold`, where they are not the authors'.

  Raises:
    UserError: names the arrays without which no size is known.
  """
  untold = shapes.Untold(**_AUTHORS_UNTOLD | untold)
  names = names_of(arrays)
  tables = "embeddings.word_embeddings", "embeddings.position_embeddings"
  needed = [f"{names['patch']}.weight", names["positions"]]
  needed += [f"{p}{table}.weight" for p in prefixes for table in tables]
  missing = [name for name in needed if name not in arrays]
  if missing:
    raise errors.UserError(
      f"{where}: not a whole BLIP checkpoint, it lacks {', '.join(missing)}"
    )
  shape = lambda name, rank: shapes.shape_of(arrays, name, rank, where)  # noqa: E731
  width, _, patch, _ = shape(needed[0], 4)
  grid = round((shape(needed[1], 3)[1] - 1) ** 0.5)
  layer = names["layer"]
  layers = shapes.layer_widths(
    arrays,
    where,
    names["layers"],
    untold.heads_of(0, width),
    out=f"{layer.out}.weight",
    up=f"{layer.up}.weight",
  )
  vision = specs.VitSpec(
    image_size=shapes.image_size(untold.image_size, grid, patch),
    patch_size=patch,
    encoder=untold.encoder(0, width, layers, norm_first=True),
    mean=published.CLIP_MEAN,
    std=published.CLIP_STD,
    readout="tokens",
  )

  def text(prefix, crosses):
    (vocab, width), (positions, _) = (
      shape(f"{prefix}{table}.weight", 2) for table in tables
    )
    pattern = prefix + LAYER
    layers = shapes.layer_widths(
      arrays,
      where,
      pattern,
      untold.heads_of(1, width),
      out="attention.output.dense.weight",
      up="intermediate.dense.weight",
      cross=[
        f"crossattention.output.dense{suffix}.weight"
        for suffix in crosses.values()
      ],
    )
    merging = [
      index
      for index in range(len(layers))
      if f"{pattern.format(index)}crossattention.output.merge_layer.weight"
      in arrays
    ]
    suffix = next(iter(crosses.values()))
    key = f"{pattern.format(0)}crossattention.self{suffix}.key.weight"
    encoder = untold.encoder(
      1,
      width,
      layers,
      norm_first=False,
      source_width=shape(key, 2)[1] if key in arrays else vision.encoder.width,
      merge_from=merging[0] if merging else None,
      causal=prefix == DECODER,
    )
    return {"vocab_size": vocab, "max_length": positions, "encoder": encoder}

  return vision, [text(*item) for item in prefixes.items()]


def linear(
  checkpoint: layouts.Checkpoint, name: str, inputs: int, outputs: int
) -> dict:
  """A dense map in our layout."""
  return {
    "kernel": checkpoint.take(f"{name}.weight", outputs, inputs).T,
    "bias": checkpoint.take(f"{name}.bias", outputs),
  }


def vision_params(checkpoint: layouts.Checkpoint, spec: specs.VitSpec) -> dict:
  """The parameters of BLIP's vision tower."""
  names = names_of(checkpoint)
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


def text_params(
  checkpoint: layouts.Checkpoint,
  spec: specs.BertSpec | specs.DecoderSpec,
  prefix: str,
  crosses: Mapping[str, str],
) -> dict:
  """The parameters of a BERT with cross-attention, a decoder's head included.

  Args:
    checkpoint: what is read.
    spec: the tower.
    prefix: `ENCODER` or `DECODER`.
    crosses: suffixes of the cross-attentions' names, by ours.
  """
  d, encoder = spec.encoder.width, spec.encoder
  embeddings, pattern = f"{prefix}embeddings", prefix + LAYER

  def layer(index, widths):
    prefix = pattern.format(index)

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
      f"{pattern.format(index)}crossattention.output.merge_layer"
      for index in range(encoder.merge_from, encoder.depth)
    ]
    maps = [linear(checkpoint, prefix, 2 * d, d) for prefix in prefixes]
    layers["merge_kernel"] = np.stack([each["kernel"] for each in maps])
    layers["merge_bias"] = np.stack([each["bias"] for each in maps])
  params = {
    "word_embedding": checkpoint.take(
      f"{embeddings}.word_embeddings.weight", spec.vocab_size, d
    ),
    "position_embedding": checkpoint.take(
      f"{embeddings}.position_embeddings.weight", spec.max_length, d
    ),
    "embedding_norm": checkpoint.norm(f"{embeddings}.LayerNorm", d),
    "encoder": layers,
  }
  if isinstance(spec, specs.DecoderSpec):
    params["transform"] = linear(checkpoint, f"{HEAD}transform.dense", d, d)
    params["transform_norm"] = checkpoint.norm(f"{HEAD}transform.LayerNorm", d)
    params["output_bias"] = checkpoint.take(f"{HEAD}bias", spec.vocab_size)
  return params

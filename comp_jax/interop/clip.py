"""CLIP checkpoints: Hugging Face's layout, OpenAI's, and UPop's compressed.

Every size but the number of heads is read from the shapes of the arrays, so a
compressed checkpoint, whose layers have lost channels and neurons, describes
itself (spec `upop.md` part 2).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from comp_jax import errors
from comp_jax.interop import layouts, shapes
from comp_jax.models import published, specs

_HF_LAYER = layouts.LayerNames(
  norm1="layer_norm1",
  qkv=[f"self_attn.{x}_proj" for x in "qkv"],
  out="self_attn.out_proj",
  norm2="layer_norm2",
  up="mlp.fc1",
  down="mlp.fc2",
)
_OPENAI_LAYER = layouts.LayerNames(
  norm1="ln_1",
  qkv="attn.in_proj_{kind}",
  out="attn.out_proj",
  norm2="ln_2",
  up="mlp.c_fc",
  down="mlp.c_proj",
)
# What the two layouts call the same array, and whether it is transposed.
_HF = {
  "layer": _HF_LAYER,
  "vision_layers": "vision_model.encoder.layers.{}.",
  "text_layers": "text_model.encoder.layers.{}.",
  "cls": "vision_model.embeddings.class_embedding",
  "patch": "vision_model.embeddings.patch_embedding.weight",
  "vision_positions": "vision_model.embeddings.position_embedding.weight",
  "pre_norm": "vision_model.pre_layrnorm",
  "vision_norm": "vision_model.post_layernorm",
  "vision_projection": "visual_projection.weight",
  "words": "text_model.embeddings.token_embedding.weight",
  "text_positions": "text_model.embeddings.position_embedding.weight",
  "text_norm": "text_model.final_layer_norm",
  "text_projection": "text_projection.weight",
}
_OPENAI = {
  "layer": _OPENAI_LAYER,
  "vision_layers": "visual.transformer.resblocks.{}.",
  "text_layers": "transformer.resblocks.{}.",
  "cls": "visual.class_embedding",
  "patch": "visual.conv1.weight",
  "vision_positions": "visual.positional_embedding",
  "pre_norm": "visual.ln_pre",
  "vision_norm": "visual.ln_post",
  "vision_projection": "visual.proj",
  "words": "token_embedding.weight",
  "text_positions": "positional_embedding",
  "text_norm": "ln_final",
  "text_projection": "text_projection",
}
_OPENAI_UNTOLD = {
  "norm_eps": (1e-5, 1e-5),
  "activations": ("quick_gelu", "quick_gelu"),
}
# Not weights of the model: constants, sizes, and UPop's momentum twins and
# queues, which are reset before any use.
_UNUSED = (
  "vision_model.embeddings.position_ids",
  "text_model.embeddings.position_ids",
  "input_resolution",
  "context_length",
  "vocab_size",
  "visual_m.",
  "transformer_m.",
  "token_embedding_m.",
  "ln_final_m.",
  "text_projection_m",
  "positional_embedding_m",
  "image_queue",
  "text_queue",
  "idx_queue",
  "ptr_queue",
)


def is_layout(arrays: Mapping[str, Any]) -> bool:
  """Whether the arrays are a CLIP's, in either layout."""
  # BLIP's vision tower shares names with CLIP's; the word tables differ.
  return _HF["words"] in arrays or _OPENAI["words"] in arrays


def two_tower(
  arrays: Mapping[str, np.ndarray],
  where: str,
  *,
  eot_id: int | None = None,
  **untold: Any,
) -> tuple[specs.TwoTowerSpec, dict]:
  """The spec and the parameters of a CLIP checkpoint.

  Args:
    arrays: the checkpoint, flat.
    where: what is read, for messages.
    eot_id: token id that ends a text; None for the highest one of each text.
    **untold: fields of `shapes.Untold`, where they are not OpenAI's.

  Raises:
    UserError: names each missing, unexpected and misshaped array.
  """
  names = _HF if _HF["words"] in arrays else _OPENAI
  untold = shapes.Untold(**_OPENAI_UNTOLD | untold)
  spec = _spec(arrays, names, where, untold, eot_id)
  checkpoint = layouts.Checkpoint(arrays, where)
  vision, text, joint = spec.vision, spec.text, spec.joint_width
  d, t, p = vision.encoder.width, text.encoder.width, vision.patch_size

  def projection(name, width):
    if names is _HF:  # A linear layer, [out, in]; OpenAI multiplies by it.
      return {"kernel": checkpoint.take(names[name], joint, width).T}
    return {"kernel": checkpoint.take(names[name], width, joint)}

  params = {
    "vision": {
      "patch_embed": {
        "kernel": layouts.patches(checkpoint.take(names["patch"], d, 3, p, p))
      },
      "cls_token": checkpoint.take(names["cls"], d),
      "position_embedding": checkpoint.positions(
        names["vision_positions"], vision.grid, None, d
      ),
      "pre_norm": checkpoint.norm(names["pre_norm"], d),
      "encoder": layouts.encoder(
        checkpoint, names["vision_layers"], names["layer"], vision.encoder
      ),
      "norm": checkpoint.norm(names["vision_norm"], d),
    },
    "text": {
      "word_embedding": checkpoint.take(names["words"], text.vocab_size, t),
      "position_embedding": checkpoint.take(
        names["text_positions"], text.max_length, t
      ),
      "encoder": layouts.encoder(
        checkpoint, names["text_layers"], names["layer"], text.encoder
      ),
      "norm": checkpoint.norm(names["text_norm"], t),
    },
    "vision_projection": projection("vision_projection", d),
    "text_projection": projection("text_projection", t),
    "logit_scale": checkpoint.take("logit_scale"),
  }
  checkpoint.finish(_UNUSED)
  for tower, side in (("vision", vision), ("text", text)):
    params[tower]["encoder"] = layouts.at_full_scale(
      params[tower]["encoder"], side.encoder.scale_width
    )
  return spec, params


def _spec(arrays, names, where, untold, eot_id):
  """The spec that the shapes tell."""
  needed = ("patch", "vision_positions", "words", "text_positions")
  needed += ("vision_projection",)
  missing = [names[key] for key in needed if names[key] not in arrays]
  if missing:
    raise errors.UserError(
      f"{where}: not a whole CLIP checkpoint, it lacks {', '.join(missing)}"
    )
  shape = lambda key, rank=2: shapes.shape_of(arrays, names[key], rank, where)  # noqa: E731
  width, _, patch, _ = shape("patch", 4)
  vocab, text_width = shape("words")
  grid = round((shape("vision_positions")[0] - 1) ** 0.5)
  projection = shape("vision_projection")

  def encoder(side, tower, width, **more):
    layers = shapes.layer_widths(
      arrays,
      where,
      names[tower],
      untold.heads_of(side, width),
      out=f"{names['layer'].out}.weight",
      up=f"{names['layer'].up}.weight",
    )
    return untold.encoder(side, width, layers, norm_first=True, **more)

  return specs.TwoTowerSpec(
    vision=specs.VitSpec(
      image_size=shapes.image_size(untold.image_size, grid, patch),
      patch_size=patch,
      encoder=encoder(0, "vision_layers", width),
      mean=published.CLIP_MEAN,
      std=published.CLIP_STD,
      pre_norm=True,
      patch_bias=False,
    ),
    text=specs.ClipTextSpec(
      vocab_size=vocab,
      max_length=shape("text_positions")[0],
      encoder=encoder(1, "text_layers", text_width, causal=True),
      eot_id=eot_id,
    ),
    joint_width=projection[0 if names is _HF else 1],
  )

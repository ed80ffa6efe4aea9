"""BLIP checkpoints of Hugging Face and the authors, by what they do.

Those of NLVR2 come in the authors' layout alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from comp_jax.interop import blip_towers as towers
from comp_jax.interop import layouts
from comp_jax.models import published, specs

# Momentum twins and queues are reset before any use.
_UNUSED = (
  f"{towers.ENCODER}embeddings.position_ids",
  f"{towers.DECODER}embeddings.position_ids",
  f"{towers.ENCODER}pooler.",
  "visual_encoder_m.",
  "text_encoder_m.",
  "vision_proj_m.",
  "text_proj_m.",
  "image_queue",
  "text_queue",
  "idx_queue",
  "ptr_queue",
  "queue_ptr",
)
# Parts of a pretrained BLIP, which a model for one task leaves behind.
_CONTRASTIVE = ("vision_proj.", "text_proj.", "temp")
_MATCHING = ("itm_head.",)
_WRITING = ("text_decoder.",)
_READING = (towers.ENCODER, *_CONTRASTIVE, *_MATCHING)
# The authors' first temperature; Hugging Face's layout has none.
_TEMPERATURE = 0.07
# Second names of arrays -> their first ones: a decoder's output is its table.
TIED = {
  f"{towers.HEAD}decoder.weight": (
    f"{towers.DECODER}embeddings.word_embeddings.weight"
  ),
  f"{towers.HEAD}decoder.bias": f"{towers.HEAD}bias",
}


def task_of(arrays: Mapping[str, Any]) -> str | None:
  """What a BLIP in either layout does; None for arrays of something else.

  One that was pretrained to compare, to match and to write is `pretrained`: the
  authors' `model_base` and `model_large`, from which their others began.
  """
  has = lambda prefix: any(name.startswith(prefix) for name in arrays)  # noqa: E731
  if not any(names["cls"] in arrays for names in (towers.HF, towers.ORIGINAL)):
    return None
  compares = {"vision_proj.weight", "itm_head.weight"} <= arrays.keys()
  if has(towers.DECODER):
    if not has(towers.ENCODER):
      return "caption"
    return "pretrained" if compares else "vqa"
  if is_nlvr(arrays):
    return "nlvr"
  if compares:
    return "retrieval"
  return "matching" if has(towers.ENCODER) else None


def matching(
  arrays: Mapping[str, np.ndarray], where: str, **untold: Any
) -> tuple[specs.MatchingSpec, dict]:
  """The spec and the parameters of BLIP's image-text matching half.

  Args:
    arrays: the checkpoint, flat.
    where: what is read, for messages.
    **untold: fields of `shapes.Untold`, where they are not the authors'.

  Raises:
    UserError: names each missing, unexpected and misshaped array.
  """
  texts = {"text": (towers.ENCODER, _reader("cls", _begins_enc(arrays)))}
  checkpoint, sides, params = _begun(arrays, where, texts, untold)
  params["head"] = _head(checkpoint, "itm_head", sides, 2)
  checkpoint.finish((*_UNUSED, *_CONTRASTIVE, *_WRITING))
  return specs.MatchingSpec(**sides), params


def retrieval(
  arrays: Mapping[str, np.ndarray], where: str, **untold: Any
) -> tuple[specs.RetrievalSpec, dict]:
  """The spec and the parameters of a BLIP for retrieval; see `matching`."""
  texts = {"text": (towers.ENCODER, _reader("cls", _begins_enc(arrays)))}
  checkpoint, sides, params = _begun(arrays, where, texts, untold)
  joint = np.shape(arrays.get("vision_proj.bias", np.zeros(256)))[0]
  params |= {
    "vision_projection": _head(
      checkpoint, "vision_proj", sides, joint, tower="vision"
    ),
    "text_projection": _head(checkpoint, "text_proj", sides, joint),
    "temperature": np.float32(_TEMPERATURE),
    "head": _head(checkpoint, "itm_head", sides, 2),
  }
  if "temp" in arrays:
    params["temperature"] = checkpoint.take("temp")
  checkpoint.finish((*_UNUSED, *_WRITING))
  return specs.RetrievalSpec(joint_width=joint, **sides), params


def nlvr(
  arrays: Mapping[str, np.ndarray], where: str, **untold: Any
) -> tuple[specs.NlvrSpec, dict]:
  """The spec and the parameters of a BLIP for NLVR2; see `matching`.

  A generic BLIP, with one cross-attention per layer, serves as a start: its
  cross-attention is doubled (spec `upop.md` 3.4), the merging maps begin as the
  mean of the two, and the head, which it does not have, begins at random.
  """
  arrays = dict(arrays)
  generic = not is_nlvr(arrays)
  if generic:
    arrays = _doubled(arrays)
  # transformers has no such model, whatever the layout: [ENC], as the authors.
  texts = {"text": (towers.ENCODER, _reader("cls", begins_enc=True))}
  checkpoint, sides, params = _begun(
    arrays, where, texts, untold, towers.TWO_CROSSES
  )
  width = sides["text"].encoder.width
  params["head_hidden"] = _head(checkpoint, "cls_head.0", sides, width)
  params["head"] = _head(checkpoint, "cls_head.2", sides, 2)
  left = (*_MATCHING, *_WRITING) if generic else ()
  checkpoint.finish((*_UNUSED, *_CONTRASTIVE, *left))
  return specs.NlvrSpec(**sides), params


def caption(
  arrays: Mapping[str, np.ndarray],
  where: str,
  *,
  bos_id: int | None = None,
  sep_id: int = published.SEP,
  **untold: Any,
) -> tuple[specs.CaptionSpec, dict]:
  """The spec and the parameters of BLIP's captioning; see `matching`.

  Args:
    bos_id: token id that begins a text; None for the last word but one, which
      is [DEC] in BLIP's vocabulary.
    sep_id: token id that ends a text.
  """
  texts = {"text": (towers.DECODER, _writer(bos_id, sep_id))}
  checkpoint, sides, params = _begun(arrays, where, texts, untold)
  checkpoint.finish((*_UNUSED, *TIED, *_READING))
  return specs.CaptionSpec(**sides), params


def vqa(
  arrays: Mapping[str, np.ndarray],
  where: str,
  *,
  bos_id: int | None = None,
  sep_id: int = published.SEP,
  **untold: Any,
) -> tuple[specs.VqaSpec, dict]:
  """The spec and the parameters of BLIP's question answering; see `caption`.

  A pretrained BLIP serves as a start: its decoder, which looked at images, then
  looks at the questions' states, which must be as wide (ViT-B, not ViT-L).
  """
  texts = {
    "text": (towers.ENCODER, _reader("tokens", _begins_enc(arrays), sep_id)),
    "answer": (towers.DECODER, _writer(bos_id, sep_id)),
  }
  checkpoint, sides, params = _begun(arrays, where, texts, untold)
  start = task_of(arrays) == "pretrained"
  left = (*_CONTRASTIVE, *_MATCHING) if start else ()
  checkpoint.finish((*_UNUSED, *TIED, *left))
  return specs.VqaSpec(**sides), params


def _begun(arrays, where, texts, untold, crosses=towers.ONE_CROSS):
  """The checkpoint, the specs of all towers, and their parameters.

  `texts` are the text towers: name -> where it lies, and its spec's maker.
  """
  vision, fields = towers.read_specs(
    arrays,
    where,
    {prefix: crosses for prefix, _ in texts.values()},
    **untold,
  )
  checkpoint = layouts.Checkpoint(arrays, where)
  sides = {"vision": vision}
  params = {"vision": towers.vision_params(checkpoint, vision)}
  for (name, (prefix, make)), found in zip(texts.items(), fields, strict=True):
    sides[name] = make(**found)
    params[name] = towers.text_params(checkpoint, sides[name], prefix, crosses)
  return checkpoint, sides, params


def _head(checkpoint, name, sides, outputs, tower="text") -> dict:
  """A dense map of a tower's readout."""
  width = sides[tower].encoder.width
  return towers.linear(checkpoint, name, width, outputs)


def _begins_enc(arrays) -> bool:
  """Whether texts begin with [ENC]; transformers leaves [CLS] there."""
  return towers.names_of(arrays) is towers.ORIGINAL


def _reader(readout, begins_enc, sep_id=published.SEP):
  """Makes the spec of a text encoder."""

  def make(vocab_size, **fields):
    has_enc = begins_enc and vocab_size == published.BLIP_WORDS
    return specs.BertSpec(
      vocab_size=vocab_size,
      enc_id=vocab_size - 1 if has_enc else None,
      readout=readout,
      sep_id=sep_id,
      **fields,
    )

  return make


def _writer(bos_id, sep_id):
  """Makes the spec of a decoder."""

  def make(vocab_size, **fields):
    first = vocab_size - 2 if bos_id is None else bos_id
    return specs.DecoderSpec(
      vocab_size=vocab_size, bos_id=first, sep_id=sep_id, **fields
    )

  return make


def is_nlvr(arrays: Mapping[str, Any]) -> bool:
  """Whether a BLIP has the two cross-attentions of NLVR2."""
  prefix = towers.ENCODER + towers.LAYER.format(0)
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
    if not parts or not name.startswith(towers.ENCODER):
      result[name] = array
      continue
    depth = max(depth, int(name.removeprefix(towers.ENCODER).split(".")[2]) + 1)
    for index in ("0", "1"):
      result[name.replace(parts[0], f"{parts[0][:-1]}{index}.")] = array
  words = arrays.get(f"{towers.ENCODER}embeddings.word_embeddings.weight")
  width = 0 if words is None else np.shape(words)[1]
  half = 0.5 * np.eye(width, dtype=np.float32)
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(0, 0.02, shape).astype(np.float32)  # noqa: E731
  for layer in range(depth // 2, depth):
    prefix = towers.ENCODER + towers.LAYER.format(layer)
    prefix += "crossattention.output.merge_layer"
    result[f"{prefix}.weight"] = np.concatenate([half, half], axis=1)
    result[f"{prefix}.bias"] = np.zeros(width, np.float32)
  result["cls_head.0.weight"] = normal(width, width)
  result["cls_head.0.bias"] = np.zeros(width, np.float32)
  result["cls_head.2.weight"] = normal(2, width)
  result["cls_head.2.bias"] = np.zeros(2, np.float32)
  return result

"""`forward`: one pass on named arrays, to hold against PyTorch."""

import argparse
import dataclasses
import pathlib
import zipfile
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from comp_jax import errors
from comp_jax.cli import convert
from comp_jax.interop import atomic
from comp_jax.interop import load as load_lib
from comp_jax.models import families, specs

# Names of ids and mask as PyTorch's models have them, by tower.
_TEXTS = {
  "text": ("input_ids", "attention_mask"),
  "answer": ("decoder_input_ids", "decoder_attention_mask"),
}


def add(verbs: argparse._SubParsersAction) -> None:
  """Declares the verb."""
  parser = verbs.add_parser(
    "forward", help="run one forward pass on arrays of an .npz file"
  )
  parser.add_argument("--model", required=True, help="folder or file")
  parser.add_argument(
    "--inputs",
    required=True,
    help="npz of images [b, 3, h, w], normalised or as bytes (for nlvr "
    "[2b, 3, h, w], all first ones, then all second ones), input_ids and "
    "attention_mask [b, n]; for vqa decoder_input_ids and "
    "decoder_attention_mask [b, m] too. Without a mask every token counts, as "
    "in PyTorch; of a CLIP those up to the end of text, which it reads out. "
    "The answers of transformers' vqa read the padding of questions, these do "
    "not: compare with questions of one length. "
    "Other arrays are ignored",
  )
  parser.add_argument("--out", required=True, help="npz to write")
  parser.add_argument(
    "--aux",
    action="store_true",
    help="also hidden states and token scores of every layer",
  )
  convert.add_options(parser)
  parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
  """Reads, runs and writes."""
  loaded = convert.load(arguments.model, arguments)
  spec = loaded.spec
  of_transformers = loaded.recipe.get("layout") == load_lib.TRANSFORMERS
  if of_transformers:
    spec = _without_bos(spec)
  batch = _inputs(pathlib.Path(arguments.inputs), spec)
  padded = not np.all(batch["text_mask"])
  if of_transformers and padded and "answer" in spec.towers:
    print(
      "questions have padding: transformers' answers read it, these do not, so "
      "that their logits differ"
    )
  run_model = jax.jit(families.traced, static_argnums=0)
  output, aux, hidden = run_model(spec, loaded.params, batch, loaded.policies)
  arrays = {name: np.asarray(value) for name, value in output.items()}
  if "answer" in spec.towers:
    arrays["logits"] = arrays["logits"][:, 0]  # One answer to each question.
  if "image_embedding" in arrays:
    similarity = arrays["image_embedding"] @ arrays["text_embedding"].T
    arrays.setdefault("logits", arrays["logit_scale"] * similarity)
  named = sorted(arrays)
  if arguments.aux:
    for tower in spec.towers:
      found = {"counts": aux[tower]["counts"]}
      for index, states in enumerate(hidden[tower]):
        found[f"hidden_{index}"] = states
        found[f"scores_{index}"] = aux[tower]["scores"][index]
      images = spec.images if tower == "vision" else 1
      for name, array in found.items():
        arrays[f"{tower}/{name}"] = _by_place(np.asarray(array), images)
  out = pathlib.Path(arguments.out)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(out) as temporary, open(temporary, "wb") as file:
      np.savez(file, **arrays)
  except OSError as error:
    raise errors.UserError(f"{out}: cannot write it ({error})") from error
  print(f"{', '.join(named)}: {out}")


def _without_bos(spec: specs.ModelSpec) -> specs.ModelSpec:
  """The spec whose decoders begin with the token they are given.

  So do transformers'; the authors' put [DEC] there themselves.
  """
  decoders = {
    name: dataclasses.replace(tower, bos_id=None)
    for name in spec.towers
    if isinstance(tower := getattr(spec, name), specs.DecoderSpec)
  }
  return dataclasses.replace(spec, **decoders)


def _by_place(
  rows: Shaped[np.ndarray, "r ..."], images: int
) -> Shaped[np.ndarray, "r ..."]:
  """Rows of all first images, then of all second ones; ours alternate."""
  pairs = rows.reshape(-1, images, *rows.shape[1:])
  return pairs.swapaxes(0, 1).reshape(rows.shape)


def _inputs(path: pathlib.Path, spec: specs.ModelSpec) -> dict[str, jax.Array]:
  """The batch of an npz file; arrays that the model does not need stay out."""
  texts = {tower: _TEXTS[tower] for tower in spec.towers[1:]}
  if path.is_file() and not zipfile.is_zipfile(path):
    raise errors.UserError(f"{path}: not an .npz file; numpy.savez writes one")
  try:
    with np.load(path, allow_pickle=False) as file:
      wanted = {"images", *(name for pair in texts.values() for name in pair)}
      found = {name: file[name] for name in wanted & set(file)}
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise errors.UserError(
      f"{path}: not a readable .npz file ({error})"
    ) from error
  for tower, (ids, mask) in texts.items():
    if ids in found and mask not in found:
      found[mask] = _tokens(found[ids], getattr(spec, tower), path)
  missing = sorted(wanted - found.keys())
  if missing:
    raise errors.UserError(
      f"{path}: lacks {', '.join(missing)}; arrays are images [b, 3, h, w], "
      "input_ids [b, n] and attention_mask [b, n]"
    )
  if problems := list(_problems(found, spec)):
    raise errors.UserError(f"{path}: {'; '.join(problems)}")
  batch = {}
  for tower, (ids, mask) in texts.items():
    batch[f"{tower}_ids"] = found[ids].astype(np.int32)
    batch[f"{tower}_mask"] = found[mask].astype(bool)
    begin = getattr(getattr(spec, tower), "bos_id", None)
    if begin is not None and np.any(found[ids][:, 0] != begin):
      print(f"{ids} begin with {begin}: their first token is taken for it")
  if "answer" in texts:
    batch |= {n: x[:, None] for n, x in batch.items() if "answer" in n}
  images = found["images"].transpose(0, 2, 3, 1)
  if spec.images > 1:
    images = images.reshape(spec.images, -1, *images.shape[1:]).swapaxes(0, 1)
  if images.dtype != np.uint8:
    images = images.astype(np.float32)
  return jax.tree.map(jnp.asarray, {"image": images, **batch})


def _tokens(
  ids: Shaped[np.ndarray, "..."],
  text: specs.BertSpec | specs.ClipTextSpec | specs.DecoderSpec,
  path: pathlib.Path,
) -> Shaped[np.ndarray, "..."]:
  """The mask of texts that bring none: their tokens, as PyTorch takes them.

  A BERT sees all of them. A CLIP reads out the end of text, and no token sees
  what stands behind itself: the rest is padding.
  """
  if text.kind != "clip" or ids.ndim != 2 or not ids.size:
    return np.ones(ids.shape, bool)
  end = ids.max(axis=1, keepdims=True) if text.eot_id is None else text.eot_id
  is_end = ids == end
  if not is_end.any(axis=1).all():
    raise errors.UserError(
      f"{path}: texts in input_ids without the model's end of text, {end}; "
      "give attention_mask, whose last token is read out"
    )
  return np.arange(ids.shape[1]) <= is_end.argmax(axis=1, keepdims=True)


def _problems(
  found: Mapping[str, np.ndarray], spec: specs.ModelSpec
) -> Iterator[str]:
  """What is wrong with the arrays, each in words."""
  images, size = found["images"], spec.vision.image_size
  if images.ndim != 4 or images.shape[1] != 3:
    yield f"images have shape {images.shape}, wanted [b, 3, h, w]"
  elif images.shape[2:] != (size, size):
    yield (
      f"images of {images.shape[2:]} pixels, the model wants {size} x {size}: "
      "resize them, or give --image_size"
    )
  if images.dtype != np.uint8 and images.dtype.kind != "f":
    yield f"images are {images.dtype}, wanted floats (normalised) or uint8"
  for tower in spec.towers[1:]:
    text, (name, real) = getattr(spec, tower), _TEXTS[tower]
    ids, mask = found[name], found[real]
    if ids.ndim != 2 or mask.shape != ids.shape or not ids.size:
      yield f"{name} {ids.shape} and {real} {mask.shape} must be [b, n] alike"
      continue
    if ids.dtype.kind not in "iu":
      yield f"{name} are {ids.dtype}, wanted integers"
    elif ids.min() < 0 or ids.max() >= text.vocab_size:
      yield (
        f"{name} from {ids.min()} to {ids.max()}, the model knows 0 to "
        f"{text.vocab_size - 1}"
      )
    if ids.shape[1] > text.max_length:
      yield (
        f"texts of {ids.shape[1]} tokens in {name}, the model has "
        f"{text.max_length} positions"
      )
    if not mask.astype(bool).any(axis=1).all():
      yield f"{real} has a text without any token"
    # Where no tower sees another, every image meets every text.
    if spec.sources and len(images) != spec.images * len(ids):
      yield (
        f"{len(images)} images and {len(ids)} texts in {name}, the model looks "
        f"at {spec.images} for each text"
      )

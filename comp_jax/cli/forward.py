"""`forward`: one pass on named arrays, to hold against PyTorch."""

import argparse
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from comp_jax import errors
from comp_jax.cli import convert
from comp_jax.interop import atomic
from comp_jax.models import families

# Names as PyTorch's models have them -> ours.
_NAMES = {
  "images": "image",
  "input_ids": "text_ids",
  "attention_mask": "text_mask",
}
_ANSWERS = {
  "decoder_input_ids": "answer_ids",
  "decoder_attention_mask": "answer_mask",
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
    help="npz of images [b, 3, h, w], input_ids and attention_mask [b, n]; "
    "for question answering decoder_input_ids and decoder_attention_mask [b, m]"
    " too",
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
  answers = "answer" in loaded.spec.towers
  batch = _inputs(pathlib.Path(arguments.inputs), answers)
  size = loaded.spec.vision.image_size
  if batch["image"].shape[1:] != (size, size, 3):
    raise errors.UserError(
      f"{arguments.inputs}: images of {batch['image'].shape[1:3]} pixels and "
      f"{batch['image'].shape[3]} channels, the model wants {size} x {size} "
      "and 3: resize them, or give --image_size"
    )
  if batch["text_ids"].shape[1] > loaded.spec.text.max_length:
    raise errors.UserError(
      f"{arguments.inputs}: texts of {batch['text_ids'].shape[1]} tokens, the "
      f"model has {loaded.spec.text.max_length} positions"
    )
  policies = {t: loaded.policies.get(t) for t in loaded.spec.towers}
  run_model = jax.jit(families.traced, static_argnums=0)
  output, aux, hidden = run_model(loaded.spec, loaded.params, batch, policies)
  arrays = {name: np.asarray(value) for name, value in output.items()}
  if answers:
    arrays["logits"] = arrays["logits"][:, 0]  # One answer to each question.
  if "image_embedding" in arrays:
    similarity = arrays["image_embedding"] @ arrays["text_embedding"].T
    arrays.setdefault("logits", arrays["logit_scale"] * similarity)
  if arguments.aux:
    for tower in loaded.spec.towers:
      arrays[f"{tower}/counts"] = np.asarray(aux[tower]["counts"])
      for index, states in enumerate(hidden[tower]):
        arrays[f"{tower}/hidden_{index}"] = np.asarray(states)
        scores = np.asarray(aux[tower]["scores"][index])
        arrays[f"{tower}/scores_{index}"] = scores
  out = pathlib.Path(arguments.out)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(out) as temporary, open(temporary, "wb") as file:
      np.savez(file, **arrays)
  except OSError as error:
    raise errors.UserError(f"{out}: cannot write it ({error})") from error
  print(f"{', '.join(sorted(output))}: {out}")


def _inputs(path: pathlib.Path, answers: bool) -> dict[str, jax.Array]:
  """The batch of an npz file; arrays that the model does not need stay out."""
  names = _NAMES | (_ANSWERS if answers else {})
  try:
    with np.load(path, allow_pickle=False) as file:
      found = {ours: file[name] for name, ours in names.items() if name in file}
  except (OSError, ValueError, zipfile.BadZipFile) as error:
    raise errors.UserError(
      f"{path}: not a readable .npz file ({error})"
    ) from error
  texts = ("text", "answer") if answers else ("text",)
  for text in texts:
    if f"{text}_ids" in found and f"{text}_mask" not in found:
      found[f"{text}_mask"] = np.ones(found[f"{text}_ids"].shape, bool)
  missing = [name for name, ours in names.items() if ours not in found]
  if missing:
    raise errors.UserError(
      f"{path}: lacks {', '.join(missing)}; arrays are images [b, 3, h, w], "
      "input_ids [b, n] and attention_mask [b, n]"
    )
  images = found.pop("image")
  if images.ndim != 4 or images.shape[1] != 3:
    raise errors.UserError(
      f"{path}: images have shape {images.shape}, wanted [b, 3, h, w]"
    )
  theirs = {ours: name for name, ours in names.items()}
  batch = {}
  for text in texts:
    ids, mask = found[f"{text}_ids"], found[f"{text}_mask"]
    if ids.ndim != 2 or mask.shape != ids.shape:
      raise errors.UserError(
        f"{path}: {theirs[f'{text}_ids']} {ids.shape} and "
        f"{theirs[f'{text}_mask']} {mask.shape} must be [b, n] alike"
      )
    batch[f"{text}_ids"] = jnp.asarray(ids.astype(np.int32))
    batch[f"{text}_mask"] = jnp.asarray(mask.astype(bool))
  if answers:
    batch |= {n: x[:, None] for n, x in batch.items() if "answer" in n}
  if images.dtype != np.uint8:
    images = images.astype(np.float32)
  return {"image": jnp.asarray(images.transpose(0, 2, 3, 1)), **batch}

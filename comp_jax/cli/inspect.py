"""`inspect cost`: MACs and parameters of a model, layer by layer.

Its other subjects are in `diagnostics` and `trials`.
"""

import argparse
import dataclasses
import pathlib

import jax
import numpy as np
import rich.box
import rich.console
import rich.table

from comp_jax import errors
from comp_jax.cli import convert, diagnostics, trials
from comp_jax.core import cost as cost_lib
from comp_jax.models import families, macs, presets, specs, towers

# Words of the vocabulary that presets need and costs do not depend on.
_VOCABULARY = dict.fromkeys(presets.FROM_SCRATCH, {"vocab_size": 2048})
# Tokens of a text where nothing else is said: the published papers' inputs.
_TEXT_TOKENS = {"retrieval": 35, "caption": 15, "vqa": 14}
_BERT_TOKENS = 36
_ANSWER_TOKENS = 5


def add(verbs: argparse._SubParsersAction) -> None:
  """Declares the verb."""
  parser = verbs.add_parser("inspect", help="look into a model, or into runs")
  what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
  cost = what.add_parser("cost", help="MACs and parameters, layer by layer")
  cost.add_argument(
    "--model",
    required=True,
    help=f"folder, file, or one of {', '.join(sorted(presets.NAMES))}",
  )
  convert.add_options(cost)
  cost.add_argument(
    "--text_tokens",
    type=int,
    help="valid tokens of the text (CLIP: all 77; caption: 15; question: 14; "
    f"else {_BERT_TOKENS})",
  )
  cost.set_defaults(run=run)
  diagnostics.add(what)
  trials.add(what)


def run(arguments: argparse.Namespace) -> None:
  """Prints the table."""
  spec, caps = _model(arguments)
  tokens = arguments.text_tokens
  if tokens is None:
    longest = spec.text.max_length
    usual = _TEXT_TOKENS.get(spec.family, _BERT_TOKENS)
    tokens = longest if spec.text.kind == "clip" else min(usual, longest)
  if not 1 <= tokens <= spec.text.max_length:
    raise errors.UserError(
      f"--text_tokens must be in 1..{spec.text.max_length}, not {tokens}"
    )
  images = spec.images
  valid = {
    "vision": [spec.vision.tokens] * images,
    "text": [tokens] * spec.readings,
    "answer": [_ANSWER_TOKENS],
  }
  counts = {
    tower: cost_lib.static_counts(
      np.array(valid[tower]),
      caps.get(tower),
      getattr(spec, tower).encoder.depth,
    )
    for tower in spec.towers
  }
  console = rich.console.Console()
  table = rich.table.Table(
    title=f"{arguments.model}: MACs in millions", box=rich.box.SIMPLE_HEAD
  )
  for column in ("tower", "layer", "tokens", "heads", "neurons"):
    table.add_column(column, justify="right")
  for column in ("self, MLP", "cross", "params, M"):
    table.add_column(column, justify="right")
  for row in rows(spec, counts):
    table.add_row(*row)
  console.print(table)
  total = families.macs(spec, None, counts)
  answer = ""
  if "answer" in spec.towers:
    answer = f", one answer of {_ANSWER_TOKENS}"
  lines = [
    f"inference, {images} image{'s' * (images > 1)} and one text of {tokens} "
    f"tokens{answer}: {total / 1e9:.4f} G MACs"
  ]
  lines.append(f"parameters: {families.params_count(spec):,}")
  legacy = families.legacy_macs(spec, counts)
  if legacy == total:
    lines.append("legacy, the published papers' convention: the same")
  elif legacy is not None:
    lines.append(
      "legacy, the published papers' training graph, momentum twins counted: "
      f"{legacy / 1e9:.4f} G MACs, {families.legacy_params_count(spec):,} "
      "parameters"
    )
  for line in lines:
    console.print(line, highlight=False)


def rows(spec: specs.ModelSpec, counts: dict[str, np.ndarray]):
  """One row of text cells per layer."""
  # Slices of the scan, as a model without one is longer to trace.
  shapes = jax.eval_shape(
    lambda params: towers.unrolled(spec, params)[1], families.param_shapes(spec)
  )
  for tower in spec.towers:
    encoder = dataclasses.replace(getattr(spec, tower).encoder, scan=False)
    for index, layer in enumerate(encoder.layers):
      one = dataclasses.replace(encoder, layers=(layer,))
      seen = counts[tower][:1, index : index + 2]
      crossed = 0
      if layer.cross:
        keys = (counts[spec.sources[tower]][:1, -1],) * len(layer.cross)
        merge = encoder.merge_from
        merge = 0 if merge is not None and index >= merge else None
        one = dataclasses.replace(one, merge_from=merge)
        crossed = macs.cross(one, None, seen, keys)[0]
      size = towers.params_count(shapes[tower]["encoder"][f"layers_{index}"])
      heads = str(layer.heads)
      heads += "".join(f"+{block.heads}" for block in layer.cross)
      yield (
        tower,
        str(index),
        str(int(seen[0, 0])),
        heads,
        str(layer.mlp),
        f"{macs.layers(one, None, seen)[0] / 1e6:,.1f}",
        f"{crossed / 1e6:,.1f}" if layer.cross else "",
        f"{size / 1e6:.3f}",
      )


def _model(arguments):
  """The spec, and the static counts of a compact model."""
  name = arguments.model
  if name in presets.NAMES:
    for option in ("task", "heads"):
      if getattr(arguments, option) is not None:
        raise errors.UserError(
          f"--{option} says how a checkpoint is to be read; {name} is a "
          "preset, which has its own"
        )
    options = dict(_VOCABULARY.get(name, {}))
    if arguments.image_size is not None:
      options["image_size"] = arguments.image_size
    try:
      return presets.spec(name, **options), {}
    except ValueError as error:
      raise errors.UserError(f"--image_size: {error}") from error
  if not pathlib.Path(name).exists():
    raise errors.UserError(
      f"--model: {name} is no file or folder, and no model of "
      f"{', '.join(sorted(presets.NAMES))}"
    )
  loaded = convert.load(name, arguments)
  caps = {t: p.keep for t, p in loaded.policies.items() if p.keep is not None}
  return loaded.spec, caps

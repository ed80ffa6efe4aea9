"""BLIP checkpoints against transformers' BlipForImageTextRetrieval."""

import jax
import numpy as np
import pytest

import comp_jax
from comp_jax import errors
from comp_jax.interop import blip, load
from tests.models import model_kit as kit

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip(
  "transformers", reason="transformers is not installed"
)


@pytest.fixture(scope="module")
def model():
  config = transformers.BlipConfig(
    text_config={
      "hidden_size": 16,
      "encoder_hidden_size": 24,
      "intermediate_size": 36,
      "num_hidden_layers": 2,
      "num_attention_heads": 4,
      "vocab_size": kit.VOCAB,
      "max_position_embeddings": kit.LENGTH,
      "projection_dim": 8,
    },
    vision_config={
      "hidden_size": 24,
      "intermediate_size": 40,
      "num_hidden_layers": 2,
      "num_attention_heads": 3,
      "image_size": 32,
      "patch_size": 8,
    },
    image_text_hidden_size=8,
  )
  config._attn_implementation = "eager"
  built = transformers.BlipForImageTextRetrieval(config)
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, value in built.named_parameters():
      noise = 0.2 * torch.randn(value.shape, generator=generator)
      norm = "norm" in name.lower() and name.endswith("weight")
      value.copy_(1 + noise if norm else noise)
  return built.eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
  path = tmp_path_factory.mktemp("blip")
  model.save_pretrained(path)
  return path


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(3)
  ids, mask = kit.texts(rng, 3)
  images = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
  return {"image": images, "text_ids": ids, "text_mask": mask}


def _expected(model, inputs, itm=True):
  with torch.no_grad():
    return model(
      input_ids=torch.tensor(inputs["text_ids"], dtype=torch.long),
      attention_mask=torch.tensor(inputs["text_mask"], dtype=torch.long),
      pixel_values=torch.tensor(inputs["image"]).permute(0, 3, 1, 2),
      use_itm_head=itm,
    ).itm_score.numpy()


def test_a_hugging_face_folder_gives_torchs_logits(model, folder, inputs):
  loaded = comp_jax.load(folder, task="matching")
  output, _ = loaded(inputs)
  np.testing.assert_allclose(
    output["logits"], _expected(model, inputs), rtol=0, atol=1e-4
  )
  with pytest.raises(errors.UserError, match="no joint space"):
    loaded.encode_image(inputs["image"])


def test_a_joint_space_gives_torchs_similarities(model, folder, inputs):
  loaded = comp_jax.load(folder)
  assert loaded.spec.family == "retrieval" and loaded.spec.joint_width == 8
  output, _ = loaded(inputs)
  np.testing.assert_allclose(
    output["logits"], _expected(model, inputs), rtol=0, atol=1e-4
  )
  images = loaded.encode_image(inputs["image"])
  texts = loaded.encode_text(inputs["text_ids"], inputs["text_mask"])
  similarity = _expected(model, inputs, itm=False)
  np.testing.assert_allclose(images @ texts.T, similarity, rtol=0, atol=1e-5)
  texts = inputs["text_ids"], inputs["text_mask"]
  np.testing.assert_allclose(
    loaded.logits(inputs["image"], *texts), similarity / 0.07, atol=1e-3
  )


def _original(model):
  """The same weights under the authors' names."""
  names = {
    "vision_model.encoder.layers": "visual_encoder.blocks",
    "vision_model.embeddings.class_embedding": "visual_encoder.cls_token",
    "vision_model.embeddings.patch_embedding": (
      "visual_encoder.patch_embed.proj"
    ),
    "vision_model.embeddings.position_embedding": "visual_encoder.pos_embed",
    "vision_model.post_layernorm": "visual_encoder.norm",
    "self_attn.qkv": "attn.qkv",
    "self_attn.projection": "attn.proj",
    "layer_norm": "norm",
  }
  arrays = {}
  for name, value in model.state_dict().items():
    for theirs, original in names.items():
      name = name.replace(theirs, original)
    arrays[name] = value.numpy()
  arrays["temp"] = np.float32(0.05)
  # Momentum twins and queues; what they hold does not matter.
  for name in ("visual_encoder", "text_encoder", "vision_proj", "text_proj"):
    of = [key for key in arrays if key.startswith(f"{name}.")]
    twins = {k.replace(name, f"{name}_m", 1): arrays[k] + 1 for k in of}
    arrays |= twins
  for name in ("image_queue", "text_queue"):
    arrays[name] = np.zeros((8, 10), np.float32)
  arrays["idx_queue"] = np.full((1, 10), -100)
  arrays["ptr_queue"] = np.zeros(1, np.int64)
  return arrays


@pytest.mark.parametrize("task", ["matching", "retrieval"])
def test_the_authors_layout_gives_the_same_parameters(
  model, folder, tmp_path, task
):
  ours = dict(load.load(folder, task).params)
  if task == "retrieval":
    ours["temperature"] = np.float32(0.05)
  arrays = _original(model)
  state = {k: torch.tensor(np.asarray(v)) for k, v in arrays.items()}
  torch.save({"model": state, "epoch": 3}, tmp_path / "model_base.pth")
  loaded = load.load(tmp_path / "model_base.pth", task=task, heads=(3, 4))
  # The layouts do not tell the vision norms' epsilon; the config does.
  jax.tree.map(np.testing.assert_array_equal, dict(loaded.params), ours)
  assert loaded.spec.vision.encoder.norm_eps == 1e-6


def compressed(model):
  """UPop's slices of one cross-attention."""
  arrays = _original(model)
  layer = "text_encoder.encoder.layer.1.crossattention"
  live = np.tile([True, False, True, False], 4)
  for name in ("query", "key", "value"):
    for kind in ("weight", "bias"):
      key = f"{layer}.self.{name}.{kind}"
      arrays[key] = arrays[key][live]
  arrays[f"{layer}.output.dense.weight"] = arrays[
    f"{layer}.output.dense.weight"
  ][:, live]
  return arrays


def test_a_compressed_text_encoder_keeps_its_own_scale(model):
  """UPop's BERT divides by the root of the channels that are left."""
  arrays = compressed(model)
  layer = "text_encoder.encoder.layer.1.crossattention"
  spec, params = blip.matching(arrays, "small", heads=(3, 4))
  assert spec.text.encoder.layers[1].cross[0].head_width == 2
  assert spec.text.encoder.scale_width == 4
  query = params["text"]["encoder"]["layers_1"]["cross"]["query"]["kernel"]
  stored = arrays[f"{layer}.self.query.weight"].T.reshape(16, 4, 2)
  np.testing.assert_allclose(query, stored * 2**0.5, rtol=1e-6)


def test_every_wrong_array_is_named_at_once(model):
  arrays = _original(model)
  del arrays["itm_head.bias"]
  arrays["stranger"] = np.zeros(2, np.float32)
  for read in (blip.matching, blip.retrieval):
    with pytest.raises(errors.UserError) as caught:
      read(arrays, "file.pth", heads=(3, 4))
    assert "itm_head.bias: missing" in str(caught.value)
    assert "stranger" in str(caught.value)
    assert "2 arrays" in str(caught.value)

"""CLIP checkpoints against transformers' CLIPModel, and their layouts."""

import json

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

import comp_jax
from comp_jax import errors
from comp_jax.core import cost
from comp_jax.interop import clip, load
from comp_jax.models import families, presets
from tests.models import model_kit as kit

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip(
  "transformers", reason="transformers is not installed"
)

EOT = 39


def build(vision=None, text=None):
  """A small random model of transformers; fields of its towers' configs."""
  shared = {"num_hidden_layers": 2, "projection_dim": 20}
  config = transformers.CLIPConfig(
    text_config={
      "hidden_size": 16,
      "intermediate_size": 36,
      "num_attention_heads": 4,
      "vocab_size": kit.VOCAB,
      "max_position_embeddings": kit.LENGTH,
      "eos_token_id": EOT,
      "bos_token_id": 2,
      "pad_token_id": 0,
      **shared,
      **(text or {}),
    },
    vision_config={
      "hidden_size": 24,
      "intermediate_size": 40,
      "num_attention_heads": 3,
      "image_size": 32,
      "patch_size": 8,
      **shared,
      **(vision or {}),
    },
    projection_dim=20,
  )
  config._attn_implementation = "eager"
  built = transformers.CLIPModel(config)
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, value in built.named_parameters():
      noise = 0.2 * torch.randn(value.shape, generator=generator)
      norm = ("norm" in name or "layrnorm" in name) and name.endswith("weight")
      value.copy_(1 + noise if norm else noise)
    built.logit_scale.fill_(2.0)
  return built.eval()


@pytest.fixture(scope="module")
def model():
  return build()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
  path = tmp_path_factory.mktemp("clip")
  model.save_pretrained(path)
  return path


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(3)
  ids, mask = kit.texts(rng, 4)
  ids[ids == EOT] = EOT - 1
  ids[np.arange(4), mask.sum(axis=1) - 1] = EOT
  images = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
  return images, ids, mask


def _expected(model, inputs):
  images, ids, mask = inputs
  with torch.no_grad():
    output = model(
      input_ids=torch.tensor(ids, dtype=torch.long),
      attention_mask=torch.tensor(mask, dtype=torch.long),
      pixel_values=torch.tensor(images).permute(0, 3, 1, 2),
    )
  return output.logits_per_image.numpy()


def test_a_hugging_face_folder_gives_torchs_logits(model, folder, inputs):
  loaded = comp_jax.load(folder)
  assert loaded.spec.text.encoder.causal
  logits = loaded.logits(*inputs)
  np.testing.assert_allclose(
    logits, _expected(model, inputs), rtol=0, atol=1e-4
  )


def test_each_tower_has_its_own_activation_and_epsilon(inputs, tmp_path):
  vision = {"hidden_act": "gelu", "layer_norm_eps": 0.3}
  model = build(vision, {"layer_norm_eps": 0.1})
  model.save_pretrained(tmp_path)
  logits = comp_jax.load(tmp_path).logits(*inputs)
  np.testing.assert_allclose(
    logits, _expected(model, inputs), rtol=0, atol=1e-4
  )


def test_the_bin_layout_and_another_image_size(model, folder, tmp_path):
  (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
  torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
  ours, bins = load.load(folder), load.load(tmp_path)
  jax.tree.map(np.testing.assert_array_equal, ours.params, bins.params)
  larger = load.load(folder, image_size=48)
  assert larger.params["vision"]["position_embedding"].shape == (37, 24)


@pytest.mark.parametrize("safe", [True, False])
def test_the_weights_of_a_folder_are_those_that_transformers_reads(
  model, folder, tmp_path, safe
):
  """Whatever lies beside them."""
  name = "model.safetensors" if safe else "pytorch_model.bin"
  arrays = load.read(folder).arrays
  save = safetensors_numpy.save_file if safe else _save_bin

  def same():
    ours = load.load(tmp_path).params
    jax.tree.map(np.testing.assert_array_equal, ours, load.load(folder).params)

  (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
  # A name of another's own, while it is alone.
  save(arrays, tmp_path / f"own-{name}")
  same()
  for stranger in ("open_clip_", "training_args."):
    other = tmp_path / f"{stranger}{name}"
    save({"visual.proj": np.ones((2, 2), np.float32)}, other)
  with pytest.raises(errors.UserError, match="neither .* name one file"):
    load.load(tmp_path)
  # In shards, which an index names.
  halves = dict(list(arrays.items())[::2]), dict(list(arrays.items())[1::2])
  places = {}
  for half, shard in zip(halves, (f"1-{name}", f"2-{name}"), strict=True):
    save(half, tmp_path / shard)
    places |= dict.fromkeys(half, shard)
  index = tmp_path / f"{name}.index.json"
  index.write_text(json.dumps({"weight_map": places}))
  same()
  (tmp_path / f"2-{name}").unlink()
  with pytest.raises(errors.UserError, match="names 2-.*, not in the folder"):
    load.load(tmp_path)
  for text in ("{", "[]", '{"weight_map": {"x": 3}}', '{"weight_map": null}'):
    index.write_text(text)
    with pytest.raises(errors.UserError, match="not a readable index"):
      load.load(tmp_path)
  # Whole, beside them.
  save(arrays, tmp_path / name)
  same()


def _save_bin(arrays, path):
  torch.save({k: torch.tensor(v) for k, v in arrays.items()}, path)


def _openai(model):
  """The same weights under OpenAI's names."""
  state = {k: v.detach().numpy() for k, v in model.state_dict().items()}
  arrays = {
    "visual.conv1.weight": state[
      "vision_model.embeddings.patch_embedding.weight"
    ],
    "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
    "visual.positional_embedding": state[
      "vision_model.embeddings.position_embedding.weight"
    ],
    "visual.proj": state["visual_projection.weight"].T,
    "token_embedding.weight": state[
      "text_model.embeddings.token_embedding.weight"
    ],
    "positional_embedding": state[
      "text_model.embeddings.position_embedding.weight"
    ],
    "text_projection": state["text_projection.weight"].T,
    "logit_scale": state["logit_scale"],
    "context_length": np.array(kit.LENGTH),
  }
  norms = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
  }
  names = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
  }
  for ours, theirs in (("visual.", "vision_model"), ("", "text_model")):
    for layer in range(2):
      to = f"{ours}transformer.resblocks.{layer}."
      of = f"{theirs}.encoder.layers.{layer}."
      norms.update({to + a: of + b for a, b in names.items()})
      for kind in ("weight", "bias"):
        arrays[f"{to}attn.in_proj_{kind}"] = np.concatenate(
          [state[f"{of}self_attn.{x}_proj.{kind}"] for x in "qkv"]
        )
  for to, of in norms.items():
    for kind in ("weight", "bias"):
      arrays[f"{to}.{kind}"] = state[f"{of}.{kind}"]
  return arrays


def test_openais_layout_gives_the_same_parameters(model, folder):
  ours = load.load(folder)
  spec, params = clip.two_tower(
    _openai(model), "file", heads=(3, 4), eot_id=EOT
  )
  assert spec == ours.spec
  jax.tree.map(np.testing.assert_array_equal, params, dict(ours.params))


def compressed(model):
  """UPop's slices, and the dense arrays with zeros for what they lack.

  The same channels of every head went, in each layer others.
  """
  arrays = _openai(model)
  kept = {
    ("visual.", 0): ([0, 2, 5], 8, 3),
    ("visual.", 1): ([1, 2, 3, 4], 8, 3),
    ("", 0): ([0, 3], 4, 4),
    ("", 1): ([2], 4, 4),
  }
  small = dict(arrays)
  masked = dict(arrays)
  for (tower, layer), (channels, width, heads) in kept.items():
    prefix = f"{tower}transformer.resblocks.{layer}."
    one = np.isin(np.arange(width), channels)
    live = np.tile(one, heads)
    for kind in ("weight", "bias"):
      name = f"{prefix}attn.in_proj_{kind}"
      keep = np.tile(live, 3)
      small[name] = arrays[name][keep]
      masked[name] = arrays[name] * keep.reshape(-1, *[1] * (kind == "weight"))
      # UPop's CLIP divides by the root of what is left.
      rows = slice(0, small[name].shape[0] // 3)
      small[name][rows] *= (len(channels) / width) ** 0.5
    name = f"{prefix}attn.out_proj.weight"
    small[name] = arrays[name][:, live]
    for part, axis in (("mlp.c_fc", 0), ("mlp.c_proj", 1)):
      name = f"{prefix}{part}.weight"
      small[name] = np.take(arrays[name], np.arange(9 + layer), axis=axis)
      gone = np.arange(arrays[name].shape[axis]) >= 9 + layer
      masked[name] = np.where(
        gone.reshape((-1, 1) if axis == 0 else (1, -1)), 0, arrays[name]
      )
    name = f"{prefix}mlp.c_fc.bias"
    small[name] = arrays[name][: 9 + layer]
    masked[name] = np.where(
      np.arange(len(arrays[name])) < 9 + layer, arrays[name], 0
    )
  return small, masked


def test_a_compressed_checkpoint_describes_itself(model, inputs):
  small, masked = compressed(model)
  spec, params = clip.two_tower(small, "small", heads=(3, 4))
  assert [x.head_width for x in spec.vision.encoder.layers] == [3, 4]
  assert [x.mlp for x in spec.text.encoder.layers] == [9, 10]
  dense, whole = clip.two_tower(masked, "masked", heads=(3, 4))
  images, ids, mask = inputs
  batch = {"image": images[:3], "text_ids": ids[:3], "text_mask": mask[:3]}
  ours, _ = kit.apply(spec, params, batch)
  theirs, _ = kit.apply(dense, whole, batch)
  for key in ("image_embedding", "text_embedding"):
    np.testing.assert_allclose(ours[key], theirs[key], rtol=0, atol=1e-5)


def test_every_wrong_array_is_named_at_once(model):
  arrays = _openai(model)
  del arrays["ln_final.bias"]
  arrays["visual.ln_post.weight"] = np.zeros(5, np.float32)
  arrays["stranger"] = np.zeros(2, np.float32)
  with pytest.raises(errors.UserError) as caught:
    clip.two_tower(arrays, "file.pt", heads=(3, 4))
  for part in ("ln_final.bias: missing", "ln_post.weight: (5,)", "stranger"):
    assert part in str(caught.value)
  assert "They belong to another model, or are not all of" in str(caught.value)


def test_what_is_no_clip_is_refused(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "bert"}')
  with pytest.raises(errors.UserError, match="no \\*.safetensors"):
    load.load(tmp_path)
  torch.save({"x": torch.ones(2)}, tmp_path / "pytorch_model.bin")
  with pytest.raises(errors.UserError, match="a bert model"):
    load.load(tmp_path)
  with pytest.raises(errors.UserError, match="unknown layout"):
    load.load(tmp_path / "pytorch_model.bin")
  with pytest.raises(errors.UserError, match="task must be"):
    load.load(tmp_path, task="poetry")


def test_a_file_that_asks_for_more_than_it_holds_is_refused(tmp_path):
  """A few bytes that would become terabytes; a rank that no size is read of."""
  whole = torch.zeros(4)
  torch.save({"x": whole.expand(10**6, 10**6, 4)}, tmp_path / "wide.pth")
  with pytest.raises(errors.UserError, match="larger than its storage"):
    load.load(tmp_path / "wide.pth")
  arrays = {
    "token_embedding.weight": torch.zeros(9, 8),
    "visual.conv1.weight": torch.zeros(8, 3),
    "visual.positional_embedding": torch.zeros(5, 8),
    "positional_embedding": torch.zeros(7, 8),
    "visual.proj": torch.zeros(8, 4),
  }
  for change, message in (
    ({}, r"visual.conv1.weight has shape \(8, 3\), not 4 axes"),
    ({"visual.conv1.weight": torch.zeros(8, 3, 4, 4)}, "no layers, it lacks"),
  ):
    torch.save({**arrays, **change}, tmp_path / "x.pth")
    with pytest.raises(errors.UserError, match=message):
      load.load(tmp_path / "x.pth", heads=(1, 1))
  (tmp_path / "config.json").write_text('{"vision_config": 3}')
  torch.save(arrays, tmp_path / "pytorch_model.bin")
  with pytest.raises(errors.UserError, match="vision_config and text_config"):
    load.load(tmp_path)


@pytest.mark.parametrize(
  ("name", "params", "macs"),
  [
    # Sizes of the published checkpoints.
    ("clip_b32", 151_277_313, None),
    ("clip_b16", 149_620_737, None),
    # Half of UPop's 855.888 M, which holds the momentum twins (spec part 4).
    ("clip_l14_336", 427_944_193, 197_761_936_128),
  ],
)
def test_published_sizes_and_macs(name, params, macs):
  spec = presets.spec(name)
  assert families.params_count(spec) == params
  grid = spec.vision.grid
  expected = cost.clip_macs(
    patches=grid**2,
    patch_size=spec.vision.patch_size,
    vision_width=spec.vision.encoder.width,
    vision_layers=spec.vision.encoder.depth,
    text_width=spec.text.encoder.width,
    text_layers=spec.text.encoder.depth,
    joint_width=spec.joint_width,
  )
  counts = {
    "vision": np.full((1, spec.vision.encoder.depth + 1), grid**2 + 1),
    "text": np.full((1, spec.text.encoder.depth + 1), 77),
  }
  assert families.macs(spec, None, counts) == expected
  if macs is not None:
    assert round(expected / 1e9, 1) == round(macs / 1e9, 1) == 197.8


def test_causal_scores_of_the_tower_follow_numpy(model, inputs):
  """Eq. 6 over what each token could receive, on real activations."""
  spec, params = clip.two_tower(_openai(model), "file", heads=(3, 4))
  images, ids, mask = inputs
  batch = {"image": images[:3], "text_ids": ids[:3], "text_mask": mask[:3]}
  _, aux = kit.apply(spec, params, batch)
  scores = np.asarray(aux["text"]["scores"])[0]
  # Nothing behind the end of text, nor the end itself, is scored.
  ends = mask[:3].sum(axis=1) - 1
  for row, end in zip(scores, ends, strict=True):
    assert np.all(row[end:] == 0)
    np.testing.assert_allclose(row.sum(), 1.0, atol=1e-6)

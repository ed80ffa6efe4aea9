"""Captioning and question answering against transformers' PyTorch models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import comp_jax
from comp_jax import errors
from comp_jax.core.execution import DENSE
from comp_jax.interop import blip, export, load
from comp_jax.models import families, generation, published, spec_json
from comp_jax.tasks import caption, vqa
from tests.interop import test_blip, test_export
from tests.models import model_kit as kit

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip(
  "transformers", reason="transformers is not installed"
)

BOS = kit.VOCAB - 2
# transformers' answer decoder reads questions as wide as images.
WIDTH = {"caption": 16, "vqa": 24}
KINDS = {
  "caption": "BlipForConditionalGeneration",
  "vqa": "BlipForQuestionAnswering",
}
LOSSES = {"caption": caption.loss, "vqa": vqa.loss}


def build(task, width=None, activations=("gelu", "gelu")):
  """A small random model of transformers, with text towers of a width.

  Activations are those of the vision and of the text towers.
  """
  config = transformers.BlipConfig(
    text_config={
      "hidden_size": width or WIDTH[task],
      "encoder_hidden_size": 24,
      "intermediate_size": 36,
      "num_hidden_layers": 2,
      "num_attention_heads": 4,
      "vocab_size": kit.VOCAB,
      "max_position_embeddings": kit.LENGTH,
      "bos_token_id": BOS,
      "sep_token_id": kit.SEP,
      "eos_token_id": kit.SEP,
      "label_smoothing": 0.1,
      "hidden_act": activations[1],
    },
    vision_config={
      "hidden_size": 24,
      "intermediate_size": 40,
      "num_hidden_layers": 2,
      "num_attention_heads": 3,
      "image_size": 32,
      "patch_size": 8,
      "layer_norm_eps": 1e-6,
      "hidden_act": activations[0],
    },
  )
  config._attn_implementation = "eager"
  built = getattr(transformers, KINDS[task])(config)
  if task == "vqa":
    # The answer reads questions, whose width transformers takes for images'.
    config.text_config.encoder_hidden_size = config.text_config.hidden_size
    built.text_decoder = type(built.text_decoder)(config.text_config)
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, value in built.named_parameters():
      noise = 0.2 * torch.randn(value.shape, generator=generator)
      norm = "norm" in name.lower() and name.endswith("weight")
      value.copy_(1 + noise if norm else noise)
  return built.eval()


def batch_of(task):
  """Padded texts that begin as the decoder wants them."""
  rng = np.random.default_rng(3)
  ids, mask = kit.texts(rng, 3)
  image = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
  batch = {"image": image, "text_ids": ids, "text_mask": mask}
  if task == "vqa":
    batch |= kit.answers()
    batch["answer_weight"] = np.float32([[0.7, 0.3], [0.9, 0.1], [1.0, 0.0]])
  name = "text_ids" if task == "caption" else "answer_ids"
  batch[name][..., 0] = BOS
  return batch


@pytest.fixture(scope="module", params=list(KINDS))
def case(request, tmp_path_factory):
  task = request.param
  model = build(task)
  folder = tmp_path_factory.mktemp(task) / "published"
  model.save_pretrained(folder)
  return task, model, folder, batch_of(task)


def _long(array):
  return torch.tensor(array, dtype=torch.long)


def _decoded(model, task, batch):
  """Logits [b, a, m, v] or [b, n, v], and each tower's last two states."""
  image = torch.tensor(batch["image"]).permute(0, 3, 1, 2)
  seen = model.vision_model(pixel_values=image).last_hidden_state
  more = {"output_hidden_states": True}
  if task == "caption":
    out = model.text_decoder(
      input_ids=_long(batch["text_ids"]),
      attention_mask=_long(batch["text_mask"]),
      encoder_hidden_states=seen,
      **more,
    )
    return out.logits, {"text": out.hidden_states[-2:]}
  logits, states = [], {"text": [], "answer": []}
  # One by one: this decoder reads the padding of a question too, whatever
  # encoder_attention_mask says.
  for i, length in enumerate(batch["text_mask"].sum(axis=-1)):
    asked = model.text_encoder(
      input_ids=_long(batch["text_ids"][i : i + 1, :length]),
      encoder_hidden_states=seen[i : i + 1],
      **more,
    )
    answers = len(batch["answer_ids"][i])
    out = model.text_decoder(
      input_ids=_long(batch["answer_ids"][i]),
      attention_mask=_long(batch["answer_mask"][i]),
      encoder_hidden_states=asked.last_hidden_state.expand(answers, -1, -1),
      **more,
    )
    pad = (0, 0, 0, batch["text_ids"].shape[1] - length)
    logits.append(out.logits)
    states["answer"].append(torch.stack(out.hidden_states[-2:]))
    states["text"].append(
      torch.nn.functional.pad(torch.stack(asked.hidden_states[-2:]), pad)
    )
  return torch.stack(logits), {k: torch.cat(v, 1) for k, v in states.items()}


def _loss(model, task, batch):
  """The loss by PyTorch's own cross entropy."""
  logits = _decoded(model, task, batch)[0][..., :-1, :]
  logits = logits.reshape(-1, kit.VOCAB)
  name = "text" if task == "caption" else "answer"
  ids, mask = batch[f"{name}_ids"], batch[f"{name}_mask"]
  targets = np.where(mask, ids, -100)
  if task == "caption":
    targets[:, : caption.PROMPT_TOKENS] = -100
    return torch.nn.functional.cross_entropy(
      logits, _long(targets[:, 1:]).flatten(), label_smoothing=0.1
    )
  losses = torch.nn.functional.cross_entropy(
    logits,
    _long(targets[..., 1:]).flatten(),
    label_smoothing=0.1,
    reduction="none",
  )
  losses = losses.reshape(*ids.shape[:2], -1).sum(-1)
  return (losses * torch.tensor(batch["answer_weight"])).sum() / len(ids)


def _equals_torch(loaded, model, task, batch):
  """Logits to 1e-4, every layer's states to 1e-5."""
  output, _, hidden = jax.jit(families.traced, static_argnums=0)(
    loaded.spec, loaded.params, batch, None
  )
  with torch.no_grad():
    logits, states = _decoded(model, task, batch)
  real = batch[f"{loaded.spec.towers[-1]}_mask"]
  np.testing.assert_allclose(
    output["logits"][real], logits.numpy()[real], rtol=0, atol=1e-4
  )
  for tower, theirs in states.items():
    real = batch[f"{tower}_mask"]
    real = real.reshape(-1, real.shape[-1])
    for ours, expected in zip(hidden[tower], theirs, strict=True):
      np.testing.assert_allclose(
        ours[real], expected.numpy()[real], rtol=0, atol=1e-5
      )


def test_it_equals_torch_layer_by_layer(case):
  task, model, folder, batch = case
  loaded = comp_jax.load(folder)
  assert loaded.spec.family == task
  assert spec_json.from_dict(spec_json.to_dict(loaded.spec)) == loaded.spec
  _equals_torch(loaded, model, task, batch)


@pytest.mark.parametrize(
  ("task", "activations"),
  [("caption", ("gelu", "quick_gelu")), ("vqa", ("quick_gelu", "gelu"))],
)
def test_each_tower_has_the_activation_of_its_config(
  task, activations, tmp_path
):
  """The decoder's head too."""
  model = build(task, activations=activations)
  model.save_pretrained(tmp_path)
  _equals_torch(comp_jax.load(tmp_path), model, task, batch_of(task))


def test_questions_may_be_narrower_than_images(tmp_path):
  """As beside a ViT-L: the question reads 24 channels, the answer 16."""
  model = build("vqa", width=16)
  torch.save({"model": authors(model)}, tmp_path / "model_large_vqa.pth")
  loaded = comp_jax.load(tmp_path / "model_large_vqa.pth", heads=(3, 4))
  widths = [
    getattr(loaded.spec, tower).encoder.source_width
    for tower in ("text", "answer")
  ]
  assert widths == [24, 16]
  _equals_torch(loaded, model, "vqa", batch_of("vqa"))


def test_losses_and_gradients_equal_torchs(case):
  task, model, folder, batch = case
  loaded = comp_jax.load(folder, task=task)
  run = families.prunable(loaded.spec).forward
  inputs = jax.tree.map(jnp.asarray, batch)

  @jax.jit
  def ours(params):
    def loss(params):
      output, _ = run(params, inputs, DENSE)
      return LOSSES[task](output, inputs)

    return jax.value_and_grad(loss)(params)

  value, gradients = ours(loaded.params)
  model.zero_grad()
  expected = _loss(model, task, batch)
  expected.backward()
  np.testing.assert_allclose(value, expected.item(), rtol=0, atol=1e-4)
  decoder = gradients[loaded.spec.towers[-1]]
  bert, width = model.text_decoder.bert, WIDTH[task]
  key = decoder["encoder"]["layers"]["cross"]["key"]["kernel"][1]
  pairs = {
    "words": (decoder["word_embedding"], bert.embeddings.word_embeddings),
    "head": (
      decoder["transform"]["kernel"].T,
      model.text_decoder.cls.predictions.transform.dense,
    ),
    "cross": (
      key.reshape(-1, width).T,
      bert.encoder.layer[1].crossattention.self.key,
    ),
    "vision": (
      gradients["vision"]["encoder"]["layers"]["mlp"]["up"]["kernel"][0].T,
      model.vision_model.encoder.layers[0].mlp.fc1,
    ),
  }
  for name, (gradient, module) in pairs.items():
    np.testing.assert_allclose(
      gradient, module.weight.grad, rtol=0, atol=1e-4, err_msg=name
    )


def authors(model):
  """The same weights as the authors store them, tied arrays twice."""
  arrays = test_blip._original(model)
  del arrays["temp"]
  for copy, first in blip.TIED.items():
    arrays[copy] = arrays[first]
  return {k: torch.tensor(np.asarray(v)) for k, v in arrays.items()}


def test_the_authors_layout_gives_the_same_parameters(case, tmp_path):
  task, model, folder, _ = case
  ours, state = load.load(folder), authors(model)
  torch.save({"model": state}, tmp_path / "model.pth")
  loaded = load.load(tmp_path / "model.pth", heads=(3, 4))
  assert loaded.spec.family == task
  # [DEC] is the last word but one.
  decoder = getattr(loaded.spec, loaded.spec.towers[-1])
  assert decoder.bos_id == BOS and decoder.encoder.causal
  jax.tree.map(
    np.testing.assert_array_equal, dict(loaded.params), dict(ours.params)
  )
  # What is tied follows what it is tied to.
  words = "text_decoder.bert.embeddings.word_embeddings.weight"
  changed = jax.tree.map(lambda x: 2 * np.asarray(x), dict(loaded.params))
  twice = load.store.Loaded(
    spec=loaded.spec, params=changed, policies={}, tokenizer_json="", recipe={}
  )
  export.export(twice, tmp_path / "model.pth", tmp_path / "out", heads=(3, 4))
  arrays = load.read(tmp_path / "out" / export.FILE).arrays
  for name in (words, *blip.TIED):
    np.testing.assert_array_equal(arrays[name], 2 * state[name].numpy())
  state["text_decoder.cls.predictions.decoder.weight"] = state[words] + 1
  torch.save({"model": state}, tmp_path / "untied.pth")
  with pytest.raises(errors.UserError, match="BLIP ties it"):
    load.load(tmp_path / "untied.pth", heads=(3, 4))


def test_transformers_computes_what_the_compact_model_does(case, tmp_path):
  task, model, folder, batch = case
  small = test_export._pruned(comp_jax.load(folder))
  output, _ = kit.apply(small.spec, small.params, batch)
  export.export(small, folder, tmp_path / "out")
  kind = type(model)
  theirs = kind.from_pretrained(tmp_path / "out", attn_implementation="eager")
  with torch.no_grad():
    expected, dense = (
      _decoded(each, task, batch)[0].numpy() for each in (theirs.eval(), model)
    )
  real = batch[f"{small.spec.towers[-1]}_mask"]
  np.testing.assert_allclose(
    output["logits"][real], expected[real], rtol=0, atol=1e-4
  )
  assert np.max(np.abs(dense[real] - expected[real])) > 1e-2


def test_beam_search_equals_transformers(case):
  task, model, folder, batch = case
  loaded = comp_jax.load(folder)
  beam = generation.Beam(width=3, max_length=10, min_length=5)
  prompt = (BOS, 8, 9) if task == "caption" else (BOS,)
  run = jax.jit(
    lambda params, batch: generation.write(
      loaded.spec, params, batch, jnp.array([prompt] * 3), beam
    )
  )
  ids, scores = run(loaded.params, jax.tree.map(jnp.asarray, batch))
  image = torch.tensor(batch["image"]).permute(0, 3, 1, 2)
  search = {
    "num_beams": 3,
    "max_length": 10,
    "min_length": 5,
    "output_scores": True,
    "return_dict_in_generate": True,
  }
  for i, length in enumerate(batch["text_mask"].sum(axis=-1)):
    given = {"input_ids": _long([[*prompt, kit.SEP]])}
    if task == "vqa":
      given = {"input_ids": _long(batch["text_ids"][i : i + 1, :length])}
    found = model.generate(pixel_values=image[i : i + 1], **given, **search)
    text = np.zeros(beam.max_length, np.int32)
    text[: found.sequences.shape[1]] = found.sequences[0]
    np.testing.assert_array_equal(ids[i], text)
    np.testing.assert_allclose(
      scores[i], found.sequences_scores[0], rtol=0, atol=1e-4
    )


def test_another_task_is_refused(case):
  task, _, folder, _ = case
  for other in {"matching", "caption", "vqa"} - {task}:
    with pytest.raises(errors.UserError, match=f"that does {other}"):
      comp_jax.load(folder, task=other)


def test_the_published_vocabulary_brings_dec_and_enc():
  arrays = {
    name: value.numpy() for name, value in authors(build("vqa")).items()
  }
  for prefix in ("text_encoder.", "text_decoder.bert."):
    arrays[f"{prefix}embeddings.word_embeddings.weight"] = np.zeros(
      (published.BLIP_WORDS, 24), np.float32
    )
  arrays["text_decoder.cls.predictions.bias"] = np.zeros(published.BLIP_WORDS)
  spec, _ = blip.vqa(arrays, "published", heads=(3, 4))
  assert (spec.answer.bos_id, spec.text.enc_id) == (30522, 30523)

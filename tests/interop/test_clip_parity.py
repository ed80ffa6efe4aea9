"""CLIP in float32 against transformers: every layer, the loss, its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core.execution import DENSE
from comp_jax.interop import clip
from comp_jax.models import families
from comp_jax.tasks import retrieval
from tests.models import model_kit as kit

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from tests.interop import test_clip  # noqa: E402

PAIRS = 4
# Of every kind of parameter that the two towers have; all others too.
NAMED = (
  "vision/patch_embed/kernel",
  "vision/encoder/layers/attention/query/kernel",
  "text/encoder/layers/attention/query/kernel",
  "text/encoder/layers/mlp/up/kernel",
  "text/word_embedding",
  "vision_projection/kernel",
  "logit_scale",
)


def tree(arrays):
  """Arrays under transformers' names as a model and its parameters."""
  copied = lambda value: value.detach().numpy().copy()  # noqa: E731
  arrays = {name: copied(value) for name, value in arrays.items()}
  spec, params = clip.two_tower(
    arrays, "CLIPModel", heads=(3, 4), eot_id=test_clip.EOT
  )
  return spec, jax.tree.map(jnp.asarray, params)


def batch(seed=3):
  """Texts of different lengths, padding behind them, and floats as pixels."""
  rng = np.random.default_rng(seed)
  ids, mask = kit.texts(rng, PAIRS)
  ids[ids == test_clip.EOT] -= 1
  ids[np.arange(PAIRS), mask.sum(axis=1) - 1] = test_clip.EOT
  assert not mask.all()
  arrays = {
    "image": rng.normal(size=(PAIRS, 32, 32, 3)).astype(np.float32),
    "text_ids": ids,
    "text_mask": mask,
    "concept": np.arange(PAIRS, dtype=np.int32),
  }
  return jax.tree.map(jnp.asarray, arrays)


def run(model, inputs, **options):
  there = lambda name: torch.tensor(np.asarray(inputs[name]))  # noqa: E731
  return model(
    input_ids=there("text_ids").long(),
    attention_mask=there("text_mask").long(),
    pixel_values=there("image").permute(0, 3, 1, 2),
    **options,
  )


def test_the_hidden_state_of_every_layer():
  model, inputs = test_clip.build(), batch()
  spec, params = tree(model.state_dict())
  _, _, hidden = families.traced(spec, params, inputs, None)
  with torch.no_grad():
    output = run(model, inputs, output_hidden_states=True)
  # Of padding nothing is asked.
  real = {"vision": np.s_[:], "text": np.asarray(inputs["text_mask"])}
  for tower, told in (
    ("vision", output.vision_model_output),
    ("text", output.text_model_output),
  ):
    # The first is the embedding.
    layers = told.hidden_states[1:]
    assert len(layers) == len(hidden[tower]) == 2
    for ours, theirs in zip(hidden[tower], layers, strict=True):
      assert ours.dtype == np.float32
      np.testing.assert_allclose(
        np.asarray(ours)[real[tower]],
        theirs.numpy()[real[tower]],
        rtol=0,
        atol=1e-5,
      )


def test_the_contrastive_loss_and_its_gradient():
  model, inputs = test_clip.build(), batch()
  spec, params = tree(model.state_dict())
  forward = families.prunable(spec).forward

  def loss(params):
    output, _ = forward(params, inputs, DENSE)
    return retrieval.loss(output, inputs)

  ours, gradient = jax.jit(jax.value_and_grad(loss))(params)
  theirs = run(model, inputs, return_loss=True).loss
  theirs.backward()
  np.testing.assert_allclose(ours, theirs.item(), rtol=0, atol=1e-4)
  # The key map is linear: it turns gradients over as it does weights.
  _, expected = tree({k: v.grad for k, v in model.named_parameters()})
  found, wanted = (
    {
      jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
      for path, leaf in jax.tree.leaves_with_path(x)
    }
    for x in (gradient, expected)
  )
  assert found.keys() == wanted.keys()
  for name, value in wanted.items():
    np.testing.assert_allclose(
      found[name], value, rtol=0, atol=1e-4, err_msg=name
    )
  for name in NAMED:
    assert np.abs(wanted[name]).max() > 1e-2, name

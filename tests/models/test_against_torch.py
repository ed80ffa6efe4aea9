"""The towers against transformers' PyTorch models, random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.interop import pretrained
from comp_jax.models import bert, specs, vit
from comp_jax.models import encoder as encoder_lib
from tests.models import model_kit as kit

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip(
  "transformers", reason="transformers is not installed"
)

DEPTH = 2


def _randomise(model, seed):
  """Every parameter random, so that no bias, norm or LayerScale is trivial."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, value in model.named_parameters():
      noise = torch.randn(value.shape, generator=generator)
      scale = "norm" in name.lower() and name.endswith("weight")
      value.copy_(1 + 0.2 * noise if scale else 0.2 * noise)
  return model.eval()


def _layers(module, params, *inputs):
  """The tokens after every layer, from the unrolled model."""

  @functools.partial(jax.jit, compiler_options=kit.FAST)
  def run(params, *inputs):
    _, state = module.apply(
      {"params": params},
      *inputs,
      mutable=["intermediates"],
      capture_intermediates=lambda module, _: isinstance(
        module, encoder_lib.EncoderLayer
      ),
    )
    captured = state["intermediates"]["encoder"]
    return [
      captured[f"layers_{i}"]["__call__"][0][0][0].x for i in range(DEPTH)
    ]

  return [np.asarray(x) for x in run(params, *inputs)]


@functools.partial(jax.jit, static_argnums=0, compiler_options=kit.FAST)
def _readout(module, params, *inputs):
  return module.apply({"params": params}, *inputs)[0]


def _unrolled(params):
  encoder = {
    f"layers_{i}": jax.tree.map(
      lambda x, i=i: x[i], params["encoder"]["layers"]
    )
    for i in range(DEPTH)
  }
  return {**params, "encoder": encoder}


def _bert(scan, readout="mean"):
  return specs.BertSpec(
    vocab_size=kit.VOCAB,
    max_length=kit.LENGTH,
    readout=readout,
    sep_id=kit.SEP,
    encoder=specs.encoder(
      width=24,
      depth=DEPTH,
      heads=3,
      mlp=40,
      norm_first=False,
      norm_eps=1e-12,
      scan=scan,
    ),
  )


@pytest.fixture(scope="module")
def torch_bert():
  config = transformers.BertConfig(
    vocab_size=kit.VOCAB,
    hidden_size=24,
    num_hidden_layers=DEPTH,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=16,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    attn_implementation="eager",
  )
  return _randomise(transformers.BertModel(config), seed=0)


@pytest.fixture(scope="module")
def texts():
  ids, mask = kit.texts(np.random.default_rng(3), 4)
  assert not mask.all()
  return ids, mask


def _arrays(state):
  return {name: value.detach().numpy() for name, value in state.items()}


def test_bert_equals_torch_layer_by_layer(torch_bert, texts):
  ids, mask = texts
  with torch.no_grad():
    outputs = torch_bert(
      input_ids=torch.tensor(ids, dtype=torch.long),
      attention_mask=torch.tensor(mask, dtype=torch.long),
      output_hidden_states=True,
    )
  arrays = _arrays(torch_bert.state_dict())
  params = pretrained.bert_params(arrays, _bert(True), "bert")
  ours = _layers(bert.Bert(_bert(False)), _unrolled(params), ids, mask)
  theirs = [hidden.numpy() for hidden in outputs.hidden_states[1:]]
  assert len(theirs) == len(ours) == DEPTH
  for mine, other in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(mine[mask], other[mask], rtol=0, atol=1e-5)
  last = theirs[-1]
  mean = (last * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
  for readout, expected in (("mean", mean), ("cls", last[:, 0])):
    pooled = _readout(bert.Bert(_bert(True, readout)), params, ids, mask)
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-5)


def test_bert_gradients_equal_torch(torch_bert, texts):
  ids, mask = texts
  cotangent = np.random.default_rng(4).normal(size=(len(ids), 24))
  cotangent = cotangent.astype(np.float32)
  torch_bert.zero_grad()
  hidden = torch_bert(
    input_ids=torch.tensor(ids, dtype=torch.long),
    attention_mask=torch.tensor(mask, dtype=torch.long),
  ).last_hidden_state
  weights = torch.tensor(mask / mask.sum(1, keepdims=True)).float()
  mean = torch.einsum("bn,bnd->bd", weights, hidden)
  (mean * torch.tensor(cotangent)).sum().backward()
  gradients = {
    name: np.zeros(value.shape, np.float32)
    if value.grad is None
    else value.grad.numpy()
    for name, value in torch_bert.named_parameters()
  }
  # Our position table has token type 0 inside; its gradient is the position's.
  gradients["embeddings.token_type_embeddings.weight"] *= 0.0
  expected = pretrained.bert_params(gradients, _bert(True), "gradients")
  params = pretrained.bert_params(
    _arrays(torch_bert.state_dict()), _bert(True), "bert"
  )

  def loss(params):
    pooled, _ = bert.Bert(_bert(True)).apply(
      {"params": params}, jnp.asarray(ids), jnp.asarray(mask)
    )
    return jnp.sum(pooled * cotangent)

  actual = jax.jit(jax.grad(loss), compiler_options=kit.FAST)(params)
  jax.tree.map(
    lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4),
    actual,
    expected,
  )
  assert all(
    np.abs(leaf).max() > 1e-3
    for leaf in jax.tree.leaves(
      {k: v for k, v in expected.items() if k != "encoder"}
    )
  )


def _vit(scan, image_size):
  return specs.VitSpec(
    image_size=image_size,
    patch_size=8,
    encoder=specs.encoder(
      width=24,
      depth=DEPTH,
      heads=3,
      mlp=48,
      norm_first=True,
      norm_eps=1e-6,
      layer_scale=True,
      scan=scan,
    ),
  )


_NAMES = {
  # transformers 5 renames these when it loads a checkpoint.
  "attention.q_proj": "attention.attention.query",
  "attention.k_proj": "attention.attention.key",
  "attention.v_proj": "attention.attention.value",
  "attention.o_proj": "attention.output.dense",
}


def _checkpoint_names(state):
  renamed = {}
  for name, value in _arrays(state).items():
    for new, old in _NAMES.items():
      name = name.replace(new, old)
    renamed[name] = value
  return renamed


@pytest.mark.parametrize("image_size", [48, 32])
def test_vit_equals_torch_layer_by_layer(image_size):
  """48 pixels are the table's own size; 32 resample it."""
  config = transformers.Dinov2Config(
    hidden_size=24,
    num_hidden_layers=DEPTH,
    num_attention_heads=3,
    mlp_ratio=2,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    image_size=48,
    patch_size=8,
    attn_implementation="eager",
  )
  model = _randomise(transformers.Dinov2Model(config), seed=1)
  rng = np.random.default_rng(2)
  images = rng.normal(size=(2, image_size, image_size, 3)).astype(np.float32)
  with torch.no_grad():
    outputs = model(
      torch.tensor(images).permute(0, 3, 1, 2), output_hidden_states=True
    )
  arrays = _checkpoint_names(model.state_dict())
  spec = _vit(True, image_size)
  params = pretrained.vit_params(arrays, spec, "vit")
  table = model.embeddings.interpolate_pos_encoding(
    outputs.hidden_states[0], image_size, image_size
  )
  np.testing.assert_allclose(
    params["position_embedding"], table[0].detach(), rtol=0, atol=1e-6
  )
  ours = _layers(vit.Vit(_vit(False, image_size)), _unrolled(params), images)
  theirs = [hidden.numpy() for hidden in outputs.hidden_states[1:]]
  assert len(theirs) == len(ours) == DEPTH
  for mine, other in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5)
  pooled = _readout(vit.Vit(spec), params, images)
  np.testing.assert_allclose(
    pooled, outputs.last_hidden_state[:, 0], rtol=0, atol=1e-4
  )

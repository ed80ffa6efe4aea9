"""Compact models back in their source's layout, run by transformers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import comp_jax
from comp_jax import errors
from comp_jax.cli import verbs
from comp_jax.core import compact
from comp_jax.core import masks as masks_lib
from comp_jax.interop import export, load, store
from comp_jax.models import families, towers
from tests.interop import test_blip, test_clip

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip(
  "transformers", reason="transformers is not installed"
)


@pytest.fixture(scope="module", params=["clip", "blip"])
def case(request, tmp_path_factory):
  """A published folder, its compact model, transformers' class, inputs."""
  build = {"clip": test_clip, "blip": test_blip}[request.param]
  published = build.model.__wrapped__()
  folder = tmp_path_factory.mktemp(request.param)
  published.save_pretrained(folder)
  loaded = comp_jax.load(folder)
  small = _pruned(loaded)
  path = tmp_path_factory.mktemp("small") / "model"
  store.save(
    path,
    params=small.params,
    spec=small.spec,
    policies={},
    tokenizer_json="{}",
    recipe={"name": "test"},
  )
  inputs = build.inputs.__wrapped__()
  return folder, path, type(published), inputs, build


def _pruned(loaded):
  groups = families.groups(loaded.spec)
  rng = np.random.default_rng(4)

  def leaf(group):
    mask = (rng.random((group.layers, group.units)) < 0.6).astype(np.float32)
    mask[:, 1], mask[:, 0] = 1.0, 0.0
    return jnp.asarray(mask)

  masks = masks_lib.build(groups, leaf)
  params = jax.device_get(loaded.params)
  return store.Loaded(
    spec=towers.compacted(loaded.spec, compact.units_left(groups, masks)),
    params=compact.slice_params(params, groups, masks),
    policies={},
    tokenizer_json="",
    recipe={},
  )


def test_transformers_computes_what_the_compact_model_does(case, tmp_path):
  folder, path, kind, inputs, build = case
  to = tmp_path / "out"
  arguments = ["--model", str(path), "--like", str(folder), "--to", str(to)]
  assert verbs.main(["export", *arguments]) == 0
  theirs = kind.from_pretrained(to, attn_implementation="eager").eval()
  expected = build._expected(theirs, inputs)
  model = comp_jax.load(path)
  if isinstance(inputs, dict):
    ours = model(inputs)[0]["logits"]
  else:
    ours = model.logits(*inputs)
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
  dense = build._expected(kind.from_pretrained(folder).eval(), inputs)
  assert np.max(np.abs(dense - expected)) > 1e-2
  # The dense shapes, and zeros in them.
  arrays = load.read(to).arrays
  for name, array in load.read(folder).arrays.items():
    assert arrays[name].shape == array.shape
  assert verbs.main(["export", *arguments]) == 2


def test_a_dense_model_comes_back_bit_for_bit(case, tmp_path):
  folder, _, _, _, _ = case
  export.export(comp_jax.load(folder), folder, tmp_path / "out")
  before, after = (load.read(x).arrays for x in (folder, tmp_path / "out"))
  assert before.keys() == after.keys()
  for name, array in before.items():
    np.testing.assert_array_equal(after[name], array)


def test_half_precision_comes_back_as_the_float32_that_it_was_pruned_in(
  case, tmp_path
):
  """In its config as well: transformers casts to what that names."""
  folder, _, kind, inputs, build = case
  half = kind.from_pretrained(folder).half()
  half.config.vision_config.torch_dtype = "float16"
  half.save_pretrained(tmp_path / "half")
  assert "float16" in (tmp_path / "half" / "config.json").read_text()
  loaded = comp_jax.load(tmp_path / "half")
  changed = jax.tree.map(lambda x: x * np.float32(1.0001), dict(loaded.params))
  loaded = dataclasses.replace(loaded, params=changed)
  export.export(loaded, tmp_path / "half", tmp_path / "out")
  assert "float16" not in (tmp_path / "out" / "config.json").read_text()
  theirs = kind.from_pretrained(tmp_path / "out")
  assert theirs.dtype == torch.float32
  again = comp_jax.load(tmp_path / "out").params
  for tower in ("vision", "text"):
    jax.tree.map(np.testing.assert_array_equal, again[tower], changed[tower])
  if isinstance(inputs, dict):
    ours = loaded(inputs)[0]["logits"]
  else:
    ours = loaded.logits(*inputs)
  expected = build._expected(theirs.eval(), inputs)
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def test_another_source_is_refused(case, tmp_path):
  folder, path, _, _, build = case
  other = {test_clip: test_blip, test_blip: test_clip}[build]
  other.model.__wrapped__().save_pretrained(tmp_path / "other")
  with pytest.raises(errors.UserError, match="the one to export"):
    export.export(store.load(path), tmp_path / "other", tmp_path / "out")
  assert not (tmp_path / "out").exists()


def _saved(arrays, path):
  """A file of the authors."""
  state = {k: torch.tensor(np.asarray(v)) for k, v in arrays.items()}
  torch.save({"model": state}, path)


def test_the_authors_layout_of_retrieval_comes_back_whole(tmp_path):
  """Twins and queues too; a temperature of our own replaces theirs."""
  arrays = test_blip._original(test_blip.model.__wrapped__())
  path = tmp_path / "model_base_retrieval.pth"
  # What no parameter is made of keeps its type and bits.
  arrays["idx_queue"] = np.full((1, 10), 2**53 + 1)
  arrays["image_queue"] = np.full((8, 10), 0.1, np.float16).T
  _saved(arrays, path)
  loaded = comp_jax.load(path, heads=(3, 4))
  loaded.params["temperature"] = np.float32(0.06)
  export.export(loaded, path, tmp_path / "out", heads=(3, 4))
  after = load.read(tmp_path / "out" / export.FILE).arrays
  assert after.keys() == arrays.keys()
  assert after["temp"] == np.float32(0.06)
  for name in arrays.keys() - {"temp"}:
    np.testing.assert_array_equal(after[name], arrays[name])
    assert after[name].dtype == arrays[name].dtype


@pytest.mark.parametrize("kind", ["clip", "blip"])
def test_a_compressed_source_keeps_its_own_scale(kind, tmp_path):
  """UPop's attention divides by the root of what is left, ours does not."""
  build = {"clip": test_clip, "blip": test_blip}[kind]
  arrays = build.compressed(build.model.__wrapped__())
  arrays = arrays[0] if kind == "clip" else arrays
  path = tmp_path / "compressed.pth"
  _saved(arrays, path)
  loaded = comp_jax.load(path, heads=(3, 4))
  export.export(loaded, path, tmp_path / "same", heads=(3, 4))
  after = load.read(tmp_path / "same" / export.FILE).arrays
  for name, array in arrays.items():
    np.testing.assert_allclose(after[name], array, rtol=1e-6, atol=0)
  trained = dataclasses.replace(
    loaded, params=jax.tree.map(lambda x: 1.5 * x, dict(loaded.params))
  )
  export.export(trained, path, tmp_path / "out", heads=(3, 4))
  again = comp_jax.load(tmp_path / "out" / export.FILE, heads=(3, 4))
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=0)
  jax.tree.map(close, dict(again.params), dict(trained.params))


def test_a_layout_without_room_for_the_model_is_refused(tmp_path):
  """A BLIP that looks at one image cannot hold one that looks at two."""
  path = tmp_path / "generic.pth"
  _saved(test_blip._original(test_blip.model.__wrapped__()), path)
  loaded = comp_jax.load(path, "nlvr", heads=(3, 4))
  with pytest.raises(errors.UserError, match="one place for .*/cross1/"):
    export.export(loaded, path, tmp_path / "out", heads=(3, 4))
  assert not (tmp_path / "out").exists()

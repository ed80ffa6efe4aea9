"""One safetensors file holds what was saved, or says why not."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from comp_jax import errors
from comp_jax.interop import tensors


def _params():
  rng = np.random.default_rng(0)
  return {
    "vision": {
      "layers": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)},
      # A view whose bytes do not lie in order.
      "turned": rng.normal(size=(2, 5)).astype(np.float32).T,
    },
    "half": jnp.asarray(rng.normal(size=(4,)), jnp.bfloat16),
    "logit_scale": jnp.float32(2.5),
  }


def test_params_and_metadata_come_back(tmp_path):
  path = tmp_path / "new" / "dense.safetensors"
  params = _params()
  tensors.save_params(path, params, {"spec": '{"a": 1}', "recipe": "é"})
  loaded, metadata = tensors.load_params(path)
  assert metadata == {"spec": '{"a": 1}', "recipe": "é"}
  assert jax.tree.structure(loaded) == jax.tree.structure(params)
  for got, want in zip(
    jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True
  ):
    assert got.dtype == want.dtype and got.shape == want.shape
    assert got.tobytes() == np.asarray(want).tobytes()
  assert os.listdir(path.parent) == [path.name]
  tensors.save_params(path, params, {})
  assert tensors.load_params(path)[1] == {}


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "dense.safetensors"
  tensors.save_params(path, _params(), {"old": "yes"})

  def fill_disk(arrays, file, metadata):
    file.write_bytes(b"half")
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(safetensors_numpy, "save_file", fill_disk)
  with pytest.raises(errors.UserError, match="No space left"):
    tensors.save_params(path, _params(), {"old": "no"})
  assert tensors.load_params(path)[1] == {"old": "yes"}
  assert os.listdir(tmp_path) == [path.name]


def test_missing_and_damaged_files(tmp_path):
  path = tmp_path / "dense.safetensors"
  with pytest.raises(errors.UserError, match="no such checkpoint"):
    tensors.load_params(path)
  tensors.save_params(path, _params(), {})
  data = path.read_bytes()
  for broken in (data[:-8], data[:20], b"", b"PK" + data):
    path.write_bytes(broken)
    with pytest.raises(errors.UserError, match="not a whole safetensors"):
      tensors.load_params(path)


def test_check_tree_names_every_difference():
  params = _params()
  tensors.check_tree(params, jax.eval_shape(lambda: params), "here")
  expected = {
    "vision": {"layers": {"kernel": (3, 5)}, "turned": (5, 2)},
    "half": (4,),
    "text": {"bias": (7,)},
  }
  with pytest.raises(errors.UserError) as raised:
    tensors.check_tree(params, expected, "dense.safetensors")
  text = str(raised.value)
  assert "\n" not in text and text.startswith("dense.safetensors: ")
  assert "3 of 5 arrays" in text
  assert "vision/layers/kernel: (3, 4), the model has (3, 5)" in text
  assert "text/bias: missing, the model has (7,)" in text
  assert "logit_scale: (), unknown to the model" in text
  assert "turned" not in text


def test_check_tree_of_two_strangers_lists_all_after_what_to_do():
  ours = {str(i): np.zeros(1) for i in range(30)}
  with pytest.raises(errors.UserError, match="31 of 31 .* or another") as told:
    tensors.check_tree(ours, {"model": (3,)}, "x")
  assert str(told.value).partition("another checkpoint: ")[2].count(";") == 30

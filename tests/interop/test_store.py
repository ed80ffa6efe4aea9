"""Saved models: from their own files alone, whole or not at all."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

import comp_jax
from comp_jax import errors
from comp_jax.core import compact
from comp_jax.core import masks as masks_lib
from comp_jax.core.tokens import TokenPolicy
from comp_jax.interop import store
from comp_jax.models import families, towers
from tests.models import model_kit as kit

TOKENIZER = json.dumps({"version": "1.0", "model": {"type": "WordPiece"}})
RECIPE = {"name": "comp", "ratio": 0.5}
BATCH = kit.batch()


def _compact(depth=(12, 2), granularity="head"):
  """A compact model of 12 layers, so that `layers_10` sorts before 2."""
  model = kit.spec(depth=depth, granularity=granularity)
  rng = np.random.default_rng(7)

  def leaf(group):
    live = rng.random((group.layers, group.units)) < 0.6
    live[:, 0] = True
    return live.astype(np.float32)

  groups = families.groups(model)
  masks = masks_lib.build(groups, leaf)
  small = towers.compacted(model, compact.units_left(groups, masks))
  return small, compact.slice_params(kit.params(model), groups, masks)


POLICIES = {
  "vision": TokenPolicy(keep=(17, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5)),
  "text": TokenPolicy(theta=0.7, rule="madtp", combine="merge"),
}


@pytest.fixture(scope="module")
def model():
  return _compact()


def _save(path, model, policies=POLICIES, recipe=RECIPE):
  spec, params = model
  store.save(
    path,
    params=params,
    spec=spec,
    policies=policies,
    tokenizer_json=TOKENIZER,
    recipe=recipe,
  )


_READ = """
import sys
import numpy as np
import comp_jax
assert "jax" not in sys.modules
model = comp_jax.load(sys.argv[1])
inputs = np.load(sys.argv[2])
np.save(sys.argv[3], model.logits(*(inputs[k] for k in sorted(inputs))))
"""


def test_a_saved_model_gives_equal_logits_in_a_new_process(tmp_path, model):
  folder = tmp_path / "saved"
  _save(folder, model)
  assert {entry.name for entry in folder.iterdir()} == set(store.FILES)
  moved = tmp_path / "elsewhere" / "copy"
  moved.parent.mkdir()
  folder.rename(moved)
  np.savez(tmp_path / "inputs.npz", **BATCH)  # Sorted as logits' arguments.
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      _READ,
      moved,
      tmp_path / "inputs.npz",
      tmp_path / "logits.npy",
    ],
    capture_output=True,
    text=True,
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": "--xla_backend_optimization_level=0",
    },
  )
  assert done.returncode == 0, done.stderr
  actual = np.load(tmp_path / "logits.npy")
  spec, params = model
  output, aux = kit.apply(spec, params, BATCH, policies=POLICIES)
  expected = output["logit_scale"] * (
    output["image_embedding"] @ output["text_embedding"].T
  )
  assert actual.shape == (3, 3)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
  np.testing.assert_array_equal(aux["vision"]["counts"][:, -1], 5)


def test_load_returns_what_was_saved(tmp_path, model):
  folder = tmp_path / "deep" / "saved"
  _save(folder, model)
  loaded = comp_jax.load(folder)
  assert loaded.spec == model[0]
  assert loaded.policies == POLICIES
  assert loaded.tokenizer_json == TOKENIZER
  assert loaded.recipe == RECIPE
  assert jax.tree.structure(loaded.params) == jax.tree.structure(model[1])
  jax.tree.map(np.testing.assert_array_equal, loaded.params, model[1])


def test_equal_models_give_equal_bytes(tmp_path, model):
  for name in ("a", "b"):
    _save(tmp_path / name, model)
  for file in store.FILES:
    one, other = ((tmp_path / n / file).read_bytes() for n in ("a", "b"))
    assert one == other


def test_a_dense_checkpoint_loads_too(tmp_path):
  spec = kit.spec()
  params = kit.params(spec)
  _save(tmp_path / "dense", (spec, params), policies={})
  loaded = comp_jax.load(tmp_path / "dense")
  assert loaded.spec.vision.encoder.scan and loaded.policies == {}
  output, _ = kit.apply(spec, params, BATCH)
  np.testing.assert_allclose(
    loaded.encode_image(BATCH["image"]),
    output["image_embedding"],
    rtol=0,
    atol=1e-5,
  )
  np.testing.assert_allclose(
    loaded.encode_text(BATCH["text_ids"], BATCH["text_mask"]),
    output["text_embedding"],
    rtol=0,
    atol=1e-5,
  )


def test_saving_again_replaces_and_leaves_nothing_else(tmp_path, model):
  _save(tmp_path / "saved", model)
  _save(tmp_path / "saved", model, recipe={"name": "other"})
  assert comp_jax.load(tmp_path / "saved").recipe == {"name": "other"}
  assert [entry.name for entry in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize("where", ["file", "rename"])
def test_a_failed_save_keeps_the_older_model(
  tmp_path, model, monkeypatch, where
):
  _save(tmp_path / "saved", model)

  def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")

  if where == "file":
    monkeypatch.setattr(store.tensors_lib, "save_params", fail)
  else:
    rename = os.rename

    def sometimes(source, target):
      if ".tmp." in str(source):
        fail()
      rename(source, target)

    monkeypatch.setattr(store.os, "rename", sometimes)
  with pytest.raises(errors.UserError, match="No space left"):
    _save(tmp_path / "saved", model, recipe={"name": "other"})
  monkeypatch.undo()
  assert [entry.name for entry in tmp_path.iterdir()] == ["saved"]
  assert comp_jax.load(tmp_path / "saved").recipe == RECIPE


def test_other_files_are_never_deleted(tmp_path, model):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(errors.UserError, match="notes.txt"):
    _save(tmp_path, model)
  assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]
  with pytest.raises(errors.UserError, match="is a file"):
    _save(tmp_path / "notes.txt", model)
  with pytest.raises(errors.UserError, match="cannot write"):
    _save(tmp_path / "notes.txt" / "model", model)


def test_a_save_cut_short_between_renames_is_explained(tmp_path, model):
  _save(tmp_path / "saved", model)
  (tmp_path / "saved").rename(tmp_path / ".saved.previous")
  with pytest.raises(errors.UserError, match=".saved.previous"):
    comp_jax.load(tmp_path / "saved")
  _save(tmp_path / "saved", model)
  assert [entry.name for entry in tmp_path.iterdir()] == ["saved"]


@pytest.fixture
def folder(tmp_path, model):
  _save(tmp_path / "saved", model)
  return tmp_path / "saved"


def _refused(folder, *parts):
  with pytest.raises(errors.UserError) as info:
    comp_jax.load(folder)
  for part in parts:
    assert part in str(info.value)


@pytest.mark.parametrize("file", store.FILES)
def test_a_missing_file_is_named(folder, file):
  (folder / file).unlink()
  _refused(folder, str(folder), file)
  _refused(folder / "nowhere", "no such folder")


@pytest.mark.parametrize("file", store.FILES)
@pytest.mark.parametrize("how", ["cut", "garbage", "empty"])
def test_a_corrupt_file_is_named(folder, file, how):
  content = (folder / file).read_bytes()
  wrong = {
    "cut": content[: len(content) // 2],
    "garbage": b"\xff" * 64,
    "empty": b"",
  }
  (folder / file).write_bytes(wrong[how])
  _refused(folder, str(folder / file))


def test_a_flipped_bit_is_noticed(folder):
  """A file's form does not tell: the model would load, and answer wrongly."""
  path = folder / store.PARAMS
  content = bytearray(path.read_bytes())
  content[-100] ^= 1
  path.write_bytes(content)
  _refused(folder, str(path), "SHA-256")
  about = json.loads((folder / store.SPEC).read_text())
  del about["sha256"]  # As older versions wrote it.
  (folder / store.SPEC).write_text(json.dumps(about))
  comp_jax.load(folder)


def test_other_shapes_are_all_listed(folder):
  path = folder / store.PARAMS
  arrays = safetensors_numpy.load_file(path)
  arrays["text_projection/kernel"] = np.zeros((16, 21), np.float32)
  arrays["vision/stray"] = np.zeros(2, np.float32)
  del arrays["vision/cls_token"]
  safetensors_numpy.save_file(arrays, path)
  _refused(
    folder,
    str(path),
    "text_projection/kernel: (16, 21), the model has (16, 20)",
    "vision/stray: (2,), unknown to the model",
    "vision/cls_token: missing, the model has (24,)",
  )


def test_a_swapped_pair_of_layers_is_noticed(folder):
  """Widths differ, so a wrong order of the layers cannot pass unseen."""
  values = json.loads((folder / store.SPEC).read_text())
  layers = values["spec"]["vision"]["encoder"]["layers"]
  other = next(i for i, layer in enumerate(layers) if layer != layers[0])
  layers[0], layers[other] = layers[other], layers[0]
  (folder / store.SPEC).write_text(json.dumps(values))
  _refused(folder, "vision/encoder/layers_0/mlp/up/kernel", "the model has")


def _set(*path):
  *parents, name, value = path

  def change(values):
    for key in parents:
      values = values[key]
    values[name] = value

  return change


@pytest.mark.parametrize(
  ("change", "part"),
  [
    (_set("format", 2), "format 2"),
    (_set("spec", "joint_width", "wide"), "not the description of a model"),
    (_set("spec", "vision", "colour", 1), "colour"),
    (_set("spec", None), "not the description"),
    (_set("policies", "vision", "keep", [5, 5]), "[5, 5] for 12 layers"),
    (_set("policies", "vision", "theta", -1), "theta"),
    (_set("policies", "vision", "combine", "mix"), "mix"),
    (_set("policies", "vision", "rule", "guess"), "guess"),
    (_set("policies", "audio", {}), "description"),
  ],
)
def test_a_wrong_spec_is_explained(folder, change, part):
  values = json.loads((folder / store.SPEC).read_text())
  change(values)
  (folder / store.SPEC).write_text(json.dumps(values))
  _refused(folder, str(folder / store.SPEC), part)


def test_save_refuses_what_does_not_belong_together(tmp_path, model):
  spec, params = model
  with pytest.raises(ValueError, match="unrolled"):
    _save(tmp_path / "x", (kit.spec(depth=(12, 2)), params))
  with pytest.raises(ValueError, match="for 12 layers"):
    _save(tmp_path / "x", model, {"vision": TokenPolicy(keep=(3,))})
  with pytest.raises(ValueError, match="logit_scale: missing"):
    fewer = {k: v for k, v in params.items() if k != "logit_scale"}
    _save(tmp_path / "x", (spec, fewer))
  assert list(tmp_path.iterdir()) == []

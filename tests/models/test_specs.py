"""Specs, presets and parameter counts."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from comp_jax.core import compact
from comp_jax.core import masks as masks_lib
from comp_jax.models import families, presets, spec_json, towers
from tests.models import model_kit as kit


def _size(tree):
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _compact(model):
  """Units left of different widths in every layer, by a simple rule."""
  rng = np.random.default_rng(0)

  def leaf(group):
    live = rng.random((group.layers, group.units)) < 0.6
    live[:, 0] = True
    return live.astype(np.float32)

  groups = families.groups(model)
  masks = masks_lib.build(groups, leaf)
  return masks, towers.compacted(model, compact.units_left(groups, masks))


MODELS = [
  kit.spec(),
  kit.spec(layer_scale=False, granularity="channel"),
  presets.spec("tiny", vocab_size=500),
  presets.spec("dinov2_s14_minilm"),
  kit.spec(readout="caption"),
  kit.spec(readout="vqa"),
]


@pytest.mark.parametrize("model", MODELS)
def test_params_count_equals_the_tree(model):
  dense = families.param_shapes(model)
  assert families.params_count(model) == _size(dense)
  _, small = _compact(model)
  assert families.params_count(small) == _size(families.param_shapes(small))
  assert families.params_count(small) < families.params_count(model)


@pytest.mark.parametrize("model", MODELS)
def test_specs_round_trip_through_json(model):
  for each in (model, _compact(model)[1]):
    assert (
      spec_json.from_dict(json.loads(json.dumps(spec_json.to_dict(each))))
      == each
    )


def test_unknown_fields_are_refused():
  values = spec_json.to_dict(kit.spec())
  values["vision"]["colour"] = 1
  with pytest.raises(TypeError, match="colour"):
    spec_json.from_dict(values)


@pytest.mark.parametrize("granularity", ["head", "channel"])
def test_sliced_parameters_have_the_shapes_of_the_compacted_spec(granularity):
  model = kit.spec(granularity=granularity, depth=(12, 2))
  masks, small = _compact(model)
  sliced = compact.slice_params(
    kit.params(model), families.groups(model), masks
  )
  shapes = families.param_shapes(small)
  assert jax.tree.map(np.shape, sliced) == jax.tree.map(np.shape, shapes)
  assert len(set(small.vision.encoder.layers)) > 1
  assert not small.vision.encoder.scan


def test_compacted_checks_its_layers():
  model = kit.spec()
  left = {"vision/attn": [3] * 2, "vision/mlp": [40] * 2}
  with pytest.raises(KeyError):
    towers.compacted(model, left)
  left |= {"text/attn": [4], "text/mlp": [36]}
  with pytest.raises(ValueError, match="text: widths of 1 and 1 layers"):
    towers.compacted(model, left)


def test_presets_by_name():
  clips = {"clip_b32", "clip_b16", "clip_l14", "clip_l14_336"}
  blips = {f"blip_{family}" for family in ("matching", "nlvr", "retrieval")}
  blips |= {"blip_caption", "blip_vqa"}
  assert set(presets.NAMES) == {
    "tiny",
    "dinov2_s14_minilm",
    "dinov2_s14_minilm_itm",
    "tiny_nlvr",
    "tiny_retrieval",
    "tiny_vqa",
    *blips,
    *(f"{name}_large" for name in blips),
    *clips,
  }
  tiny = presets.spec(
    "tiny", vocab_size=700, granularity="channel", dtype="bfloat16", unroll=2
  )
  assert tiny.text.vocab_size == 700
  for encoder in (tiny.vision.encoder, tiny.text.encoder):
    assert (encoder.width, encoder.granularity) == (96, "channel")
    assert (encoder.dtype, encoder.unroll) == ("bfloat16", 2)
  assert (tiny.vision.encoder.depth, tiny.text.encoder.depth) == (6, 3)
  assert tiny.vision.tokens == 65
  asking = presets.spec("tiny_vqa", vocab_size=50, max_length=9)
  assert asking.text.max_length == asking.answer.max_length == 9
  assert asking.answer.encoder.causal and not asking.text.encoder.causal
  pair = presets.spec("dinov2_s14_minilm", image_size=224, remat=True)
  assert pair.vision.tokens == 257 and pair.text.encoder.remat
  with pytest.raises(ValueError, match="there are: blip_caption, "):
    presets.spec("clip")
  with pytest.raises(ValueError, match="multiple of 14"):
    presets.spec("dinov2_s14_minilm", image_size=100)
  with pytest.raises(ValueError, match="512"):
    presets.spec("dinov2_s14_minilm", max_length=513)


def test_specs_are_hashable():
  assert hash(kit.spec()) == hash(dataclasses.replace(kit.spec()))

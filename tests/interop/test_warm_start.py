"""Models whose towers begin as those of another one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax import errors
from comp_jax.interop import store, tensors, warm_start
from comp_jax.models import bert, blocks, families, presets, specs


def _sevens(spec):
  """A model whose weights are all 7."""
  shapes = families.param_shapes(spec)
  params = jax.tree.map(lambda x: np.full(x.shape, 7, np.float32), shapes)
  return store.Loaded(
    spec=spec, params=params, policies={}, tokenizer_json="{}", recipe={}
  )


def test_towers_go_on_where_another_model_ended():
  source = _sevens(presets.spec("tiny", vocab_size=40, max_length=24))
  nlvr = presets.spec("tiny_nlvr", vocab_size=40, max_length=32)
  begun = tensors.flatten(warm_start.begun_with(nlvr, source, seed=0))
  tensors.check_tree(begun, tensors.flatten(families.param_shapes(nlvr)), "")
  positions = begun.pop("text/position_embedding")
  assert np.all(positions[:24] == 7) and np.all(positions[24:] != 7)
  own = {key for key, array in begun.items() if np.any(array != 7)}
  assert own == {
    key
    for key in begun
    if "cross" in key or "merge" in key or key.startswith("head")
  }


def test_new_cross_attention_is_silent_and_compares_as_the_joint_space():
  tiny = presets.spec("tiny", vocab_size=40, max_length=24)
  source = store.Loaded(
    params=jax.device_get(families.initial_params(tiny, 3)),
    spec=tiny,
    policies={},
    tokenizer_json="",
    recipe={},
  )
  nlvr = presets.spec("tiny_nlvr", vocab_size=40, max_length=24)
  layers = warm_start.begun_with(nlvr, source, 0)["text"]["encoder"]["layers"]
  fresh = families.initial_params(nlvr, 0)["text"]["encoder"]["layers"]
  for block in ("cross0", "cross1"):
    maps = {name: each["kernel"] for name, each in layers[block].items()}
    assert not maps["out"].any() and maps["value"].any()
    for name, tower in (("query", "text"), ("key", "vision")):
      joint = source.params[f"{tower}_projection"]["kernel"]
      last = maps[name][-1]
      np.testing.assert_array_equal(last.reshape(joint.shape), joint)
      random = fresh[block][name]["kernel"]
      np.testing.assert_array_equal(maps[name][:-1], random[:-1])


def test_cross_attention_that_was_trained_stays():
  nlvr = presets.spec("tiny_nlvr", vocab_size=40, max_length=24)
  begun = tensors.flatten(warm_start.begun_with(nlvr, _sevens(nlvr), seed=0))
  out = begun["text/encoder/layers/cross0/out/kernel"]
  assert np.all(out == 7)


def test_towers_with_more_positions_than_the_texts_lose_them():
  source = _sevens(presets.spec("tiny", vocab_size=40, max_length=24))
  nlvr = presets.spec("tiny_nlvr", vocab_size=40, max_length=16)
  begun = warm_start.begun_with(nlvr, source, seed=0)
  assert begun["text"]["position_embedding"].shape[0] == 16


def test_towers_of_a_compact_model_are_refused():
  tiny = presets.spec("tiny", vocab_size=40)
  source = _sevens(specs.with_encoders(tiny, scan=False))
  nlvr = presets.spec("tiny_nlvr", vocab_size=40)
  with pytest.raises(errors.UserError, match="config.train.towers: a compact"):
    warm_start.begun_with(nlvr, source, seed=0)


def test_an_array_that_a_tower_lacks_is_named():
  source = _sevens(presets.spec("tiny", vocab_size=40))
  del source.params["text"]["encoder"]["layers"]["norm2"]
  nlvr = presets.spec("tiny_nlvr", vocab_size=40)
  with pytest.raises(errors.UserError, match="text/encoder/layers/norm2"):
    warm_start.begun_with(nlvr, source, seed=0)


def test_towers_of_other_sizes_are_named():
  source = _sevens(presets.spec("tiny", vocab_size=40, image_size=32))
  nlvr = presets.spec("tiny_nlvr", vocab_size=40)
  with pytest.raises(errors.UserError, match="vision/position_embedding.*17"):
    warm_start.begun_with(nlvr, source, seed=0)


def test_projections_come_along_to_a_joint_space_of_the_same_width():
  source = _sevens(presets.spec("tiny", vocab_size=40, max_length=24))
  blip = presets.spec("tiny_retrieval", vocab_size=40, max_length=24)
  begun = warm_start.begun_with(blip, source, seed=0)
  for name in ("vision_projection", "text_projection"):
    assert np.all(begun[name]["kernel"] == 7)
  wider = presets.spec(
    "tiny", vocab_size=40, max_length=24, joint_width=blip.joint_width * 2
  )
  begun = warm_start.begun_with(blip, _sevens(wider), seed=0)
  fresh = families.initial_params(blip, 0)
  for name in ("vision_projection", "text_projection"):
    np.testing.assert_array_equal(begun[name]["kernel"], fresh[name]["kernel"])


def test_two_images_begin_with_what_was_learnt_on_one():
  single = presets.spec("tiny_retrieval", vocab_size=40, max_length=24)
  rng = np.random.default_rng(0)
  # Biases and norms too: what is lost would show.
  source = store.Loaded(
    params=jax.tree.map(
      lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32),
      families.param_shapes(single),
    ),
    spec=single,
    policies={},
    tokenizer_json="",
    recipe={},
  )
  nlvr = presets.spec("tiny_nlvr", vocab_size=40, max_length=24)
  params = warm_start.begun_with(nlvr, source, seed=0)
  image = blocks.Source(
    x=jnp.asarray(rng.normal(size=(3, 9, 96)), jnp.float32),
    valid=jnp.ones((3, 9), bool),
    weights=jnp.zeros((3, 9)),
  )
  text_ids = jnp.asarray(rng.integers(4, 40, (3, 24)))
  text_mask = jnp.arange(24)[None] < jnp.asarray([[5], [24], [11]])

  def read(spec, params, images):
    state, _ = bert.Bert(spec.text).apply(
      {"params": params["text"]}, text_ids, text_mask, sources=images
    )
    return state

  # The same picture twice says what it says once.
  np.testing.assert_allclose(
    read(nlvr, params, (image, image)),
    read(single, source.params, (image,)),
    atol=1e-5,
  )

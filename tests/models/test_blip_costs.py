"""BLIP's sizes and MACs against closed forms and published figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import cost
from comp_jax.core import masks as masks_lib
from comp_jax.models import families, presets


def test_macs_of_cross_attention_follow_the_closed_form():
  """Spec `upop.md` part 4, one cross-attention per layer."""
  queries, keys, d, e = 5, 17, 16, 24
  per_layer = queries * d * d + 2 * keys * e * d + 2 * queries * keys * d
  per_layer += queries * d * d
  macs = cost.cross_macs(
    width=d,
    source_width=e,
    attention_widths=[d, d],
    queries=np.full((1, 2), queries),
    keys=np.array([keys]),
  )
  assert macs.tolist() == [2 * per_layer]


@pytest.mark.parametrize(
  ("name", "tokens", "params", "inference", "legacy"),
  [
    ("blip_caption", {"text": 15}, 223.972, 65.7196, 65.7196),
    ("blip_vqa", {"text": 14, "answer": 5}, 361.479, 107.3026, 186.1213),
  ],
)
def test_published_sizes_and_costs(name, tokens, params, inference, legacy):
  """Spec `upop.md` part 4, in exact integers and without any weights."""
  spec = presets.spec(name)
  assert round(families.params_count(spec) / 1e6, 3) == params
  tokens = {"vision": spec.vision.tokens, **tokens}
  counts = {tower: np.full((1, 13), n) for tower, n in tokens.items()}
  total = families.macs(spec, None, counts)
  assert round(total / 1e9, 4) == inference
  published = families.legacy_macs(spec, counts)
  assert round(published / 1e9, 4) == legacy


def _vit(tokens, width, depth):
  """Parameters and MACs of a ViT/16, spec `upop.md` part 4."""
  params = width * (3 * 16**2 + 1) + width * (1 + tokens) + 2 * width
  params += depth * (12 * width**2 + 13 * width)
  macs = (tokens - 1) * width * 3 * 16**2 + 5 * tokens * width
  layer = 12 * tokens * width**2 + 2 * tokens**2 * width + 10 * tokens * width
  return np.array([params, macs + depth * layer])


@pytest.mark.parametrize(
  "family", ["matching", "nlvr", "retrieval", "caption", "vqa"]
)
def test_a_large_vision_tower_costs_what_the_closed_form_says(family):
  """Beside the published figures of ViT-B, which other tests hold.

  Keys and values of cross-attention read 1,024 channels where they read 768.
  """

  def measured(name):
    spec = presets.spec(name)
    text = {"caption": 15, "vqa": 14, "retrieval": 35}.get(family, 36)
    tokens = {"vision": spec.vision.tokens, "text": text, "answer": 5}
    rows = {"vision": spec.images, "text": spec.readings}
    counts = {
      tower: np.full(
        (rows.get(tower, 1), getattr(spec, tower).encoder.depth + 1), n
      )
      for tower, n in tokens.items()
      if tower in spec.towers
    }
    legacy = families.legacy_macs(spec, counts) or 0
    macs = families.macs(spec, None, counts)
    return np.array([families.params_count(spec), macs, legacy])

  base, large = (measured(f"blip_{family}{size}") for size in ("", "_large"))
  spec = presets.spec(f"blip_{family}")
  n, images = spec.vision.tokens, spec.images
  params, macs = _vit(n, 1024, 24) - _vit(n, 768, 12)
  # 12 layers look at each image with a cross-attention of 768 channels.
  wider = images * 12 * 2 * (1024 - 768) * 768
  read = n * wider
  joint = (1024 - 768) * 256 if family == "retrieval" else 0
  expected = [params + wider + joint, *[images * macs + read + joint] * 2]
  if family == "matching":  # No published paper has it alone.
    expected[2] = 0
  if family == "retrieval":  # Towers and twins, three matches.
    expected[2] = 2 * (macs + joint) + 3 * read
  if family == "vqa":  # One image, whose keys and values are made once.
    expected[2] = macs + read
  np.testing.assert_array_equal(large - base, expected)


def test_traced_macs_of_long_texts_are_those_of_whole_numbers():
  """512 tokens: the products of NLVR2's merging maps need more than 31 bits."""
  spec = presets.spec("blip_nlvr")
  counts = {
    "vision": np.full((spec.images, 13), spec.vision.tokens),
    "text": np.full((1, 13), 512),
  }
  exact = families.macs(spec, None, counts)
  masks = masks_lib.ones(families.groups(spec))
  traced = jax.jit(lambda m, c: families.macs(spec, m, c))(
    masks, jax.tree.map(lambda n: jnp.asarray(n, jnp.int32), counts)
  )
  np.testing.assert_allclose(float(traced), exact, rtol=1e-5)

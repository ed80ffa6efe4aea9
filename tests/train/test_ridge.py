"""Projections in closed form."""

import dataclasses

import jax
import numpy as np
import pytest

from comp_jax import errors
from comp_jax.models import bert, families, vit
from comp_jax.train import ridge
from tests.train import kit


def _batches(count=24, size=8):
  """Evaluation batches of the kit's pairs, the last one padded."""
  pairs = kit.pairs(count, 3)
  for start in range(0, count, size):
    rows = slice(start, start + size)
    batch = {key: value[rows] for key, value in pairs.items()}
    for key in ("text_ids", "text_mask"):
      batch[key] = batch[key][:, None]
    real = size - 3 if start + size == count else size
    batch["_mask"] = np.arange(size) < real
    yield batch


@pytest.fixture(scope="module")
def model():
  spec = kit.spec()
  params = jax.device_get(families.initial_params(spec, 0))
  return spec, params, ridge.aligned(spec, params, list(_batches()))


def test_it_solves_the_damped_least_squares(model):
  spec, params, fitted = model
  batches = list(_batches())
  image, ids, mask = (
    np.concatenate([batch[key][batch["_mask"]] for batch in batches])
    for key in ("image", "text_ids", "text_mask")
  )

  @jax.jit
  def pooled(params, image, ids, mask):
    pictures, _ = vit.Vit(spec.vision).apply(
      {"params": params["vision"]}, image
    )
    texts, _ = bert.Bert(spec.text).apply({"params": params["text"]}, ids, mask)
    return pictures, texts

  x, y = (
    np.asarray(rows, np.float64)
    for rows in pooled(params, image, ids[:, 0], mask[:, 0])
  )
  x, y = (
    rows / np.linalg.norm(rows, axis=-1, keepdims=True) for rows in (x, y)
  )
  assert len(x) == 21  # Padding is left out.
  rotation = fitted["text_projection"]["kernel"]
  np.testing.assert_allclose(rotation.T @ rotation, np.eye(8), atol=1e-5)
  found = fitted["vision_projection"]["kernel"].astype(np.float64)
  damping = ridge.STRENGTH * np.trace(x.T @ x) / x.shape[1]
  # The gradient of |X W - Y R|^2 + damping |W|^2 is zero.
  gradient = x.T @ (x @ found - y @ rotation) + damping * found
  scale = np.abs(x.T @ (y @ rotation)).max()
  assert np.abs(gradient).max() < 1e-3 * scale


def test_the_towers_stay_and_the_scale_is_one_of_those_tried(model):
  _, params, fitted = model
  for tower in ("vision", "text"):
    jax.tree.map(np.testing.assert_array_equal, fitted[tower], params[tower])
  scale = np.exp(fitted["logit_scale"])
  assert np.min(np.abs(ridge.SCALES - scale)) < 1e-3


def test_a_joint_space_wider_than_the_texts_is_refused(model):
  spec, params, _ = model
  wide = dataclasses.replace(spec, joint_width=17)
  with pytest.raises(errors.UserError, match="ridge_examples"):
    ridge.aligned(wide, params, [])

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
  images, texts = [], []
  for batch in _batches():
    real = batch["_mask"]
    image, _ = vit.Vit(spec.vision).apply(
      {"params": params["vision"]}, jax.numpy.asarray(batch["image"][real])
    )
    text, _ = bert.Bert(spec.text).apply(
      {"params": params["text"]},
      jax.numpy.asarray(batch["text_ids"][real, 0]),
      jax.numpy.asarray(batch["text_mask"][real, 0]),
    )
    images.append(np.asarray(image, np.float64))
    texts.append(np.asarray(text, np.float64))
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
  x, y = unit(np.concatenate(images)), unit(np.concatenate(texts))
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

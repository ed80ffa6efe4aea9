"""Projections of pretrained towers in closed form: a ridge map.

Towers that were pretrained apart share no space. A linear map from image to
text features, fitted by least squares on some training pairs, is where dense
training starts instead of at random, and a floor for what it reaches.
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from comp_jax import errors
from comp_jax.models import bert, specs, vit
from comp_jax.tasks import retrieval

# Relative to the mean variance of an image feature.
STRENGTH = 0.03
# Logit scales that are tried; CLIP's initial one is 14.3, its largest 100.
SCALES = np.geomspace(5.0, 100.0, 27)
# Pairs of one softmax in that trial: of the order of a batch.
PAIRS = 64


def aligned(
  spec: specs.TwoTowerSpec, params: Mapping, batches: Iterable[Mapping]
) -> dict:
  """The parameters with both projections and the logit scale fitted.

  Text features are rotated (to their principal axes, which keeps every cosine
  where the joint space is as wide); image features are mapped onto the mean
  feature of their captions. The logit scale is the best of `SCALES` for the
  contrastive loss of what results.

  Args:
    spec: the model.
    params: weights of pretrained towers.
    batches: evaluation batches of training pairs, each image with all of its
      captions.

  Raises:
    UserError: a joint space wider than the text features.
  """
  joint, width = spec.joint_width, spec.text.encoder.width
  if joint > width:
    raise errors.UserError(
      f"config.train.ridge_examples: the joint space ({joint}) is wider than "
      f"the text features ({width}); set it to 0"
    )
  images, texts = _features(spec, params, batches)
  captions = texts.mean(axis=1)
  _, _, axes = np.linalg.svd(captions, full_matrices=False)
  rotation = axes[:joint].T
  covariance = images.T @ images
  damping = STRENGTH * np.trace(covariance) / len(covariance)
  map_ = np.linalg.solve(
    covariance + damping * np.eye(len(covariance)),
    images.T @ (captions @ rotation),
  )
  return {
    **params,
    "vision_projection": {"kernel": map_.astype(np.float32)},
    "text_projection": {"kernel": rotation.astype(np.float32)},
    "logit_scale": _logit_scale(_unit(images @ map_), texts[:, 0] @ rotation),
  }


def _features(spec, params, batches):
  """Unit image [n, d] and caption [n, c, d] features of the towers."""
  towers = vit.Vit(spec.vision), bert.Bert(spec.text)

  @jax.jit
  def forward(params, batch):
    b, c, n = batch["text_ids"].shape
    image, _ = towers[0].apply({"params": params["vision"]}, batch["image"])
    text, _ = towers[1].apply(
      {"params": params["text"]},
      batch["text_ids"].reshape(b * c, n),
      batch["text_mask"].reshape(b * c, n),
    )
    return image, text.reshape(b, c, -1)

  keys = ("image", "text_ids", "text_mask")
  found = []
  for batch in batches:
    features = jax.device_get(forward(params, {k: batch[k] for k in keys}))
    found.append([_unit(x[batch["_mask"]]) for x in features])
  images, texts = (np.concatenate(x) for x in zip(*found, strict=True))
  return images.astype(np.float64), texts.astype(np.float64)


def _unit(x: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _logit_scale(images, texts) -> np.ndarray:
  """log of the scale with the least contrastive loss, over small batches."""
  count = len(images) // PAIRS * PAIRS or len(images)

  def fold(x):
    parts = x[:count].reshape(-1, min(PAIRS, count), x.shape[-1])
    return jnp.asarray(parts, jnp.float32)

  concept = {"concept": jnp.arange(min(PAIRS, count))}

  def loss(scale, image, text):
    output = {
      "image_embedding": image,
      "text_embedding": text,
      "logit_scale": scale,
    }
    return retrieval.loss(output, concept)

  over_batches = jax.vmap(loss, (None, 0, 0))
  over_scales = jax.jit(jax.vmap(over_batches, (0, None, None)))
  losses = over_scales(
    jnp.asarray(SCALES, jnp.float32), fold(images), fold(_unit(texts))
  )
  best = int(np.argmin(np.mean(losses, axis=1)))
  return np.asarray(np.log(SCALES[best]), np.float32)

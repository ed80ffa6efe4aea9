"""A CLIP-like two-tower model and its MACs."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num

from comp_jax.core import cost
from comp_jax.core import execution as execution_lib
from comp_jax.models import bert, clip_text, specs, towers, vit
from comp_jax.models import macs as macs_lib

# What a joint space is made of; the scale of its logits has no twin.
TWINS = ("vision", "text", "vision_projection", "text_projection")


class TwoTower(nn.Module):
  """Images and texts to unit vectors of a joint space."""

  spec: specs.TwoTowerSpec

  def setup(self):
    self.vision = vit.Vit(self.spec.vision)
    text = {"bert": bert.Bert, "clip": clip_text.ClipText}
    self.text = text[self.spec.text.kind](self.spec.text)
    joint = self.spec.joint_width
    self.vision_projection = nn.Dense(joint, use_bias=False)
    self.text_projection = nn.Dense(joint, use_bias=False)
    # exp(2.66) = 1 / 0.07, CLIP's initial temperature.
    self.logit_scale = self.param(
      "logit_scale", nn.initializers.constant(2.6592), ()
    )

  def scale(self) -> Float[Array, ""]:
    """The factor of similarities; at most 100, as CLIP."""
    return jnp.exp(within(self.logit_scale, 0.0, 4.6052))

  def encode_image(
    self,
    image: Num[Array, "b s s 3"],
    execution: execution_lib.TowerExecution = execution_lib.DENSE_TOWER,
  ) -> tuple[Float[Array, "b p"], dict]:
    """Unit image embeddings, and the vision tower's aux."""
    pooled, aux = self.vision(image, execution)
    return unit(self.vision_projection(pooled)), aux

  def encode_text(
    self,
    text_ids,
    text_mask,
    execution: execution_lib.TowerExecution = execution_lib.DENSE_TOWER,
  ) -> tuple[Float[Array, "b p"], dict]:
    """Unit text embeddings, and the text tower's aux."""
    pooled, aux = self.text(text_ids, text_mask, execution)
    return unit(self.text_projection(pooled)), aux

  def __call__(
    self,
    batch: Mapping,
    execution: execution_lib.Execution = execution_lib.DENSE,
  ) -> tuple[dict[str, Array], dict[str, dict]]:
    """Embeddings of the pairs of a batch.

    Args:
      batch: `image` [b, s, s, 3], `text_ids` and `text_mask` [b, n].
      execution: units, tokens and what is gathered of the towers `vision` and
        `text`.

    Returns:
      `image_embedding`, `text_embedding` and `logit_scale` (a factor), and
      {"vision": aux, "text": aux}.
    """
    images, vision_aux = self.encode_image(
      batch["image"], execution.of("vision")
    )
    texts, text_aux = self.encode_text(
      batch["text_ids"], batch["text_mask"], execution.of("text")
    )
    output = {
      "image_embedding": images,
      "text_embedding": texts,
      "logit_scale": self.scale(),
    }
    return output, {"vision": vision_aux, "text": text_aux}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def within(
  x: Float[ArrayLike, ""], low: float, high: float
) -> Float[Array, ""]:
  """x in its bounds; beyond them only gradients that lead back pass.

  The published code sets the weight itself back before each step, so that it
  never gets stuck there as it would where clipping has no gradient.
  """
  return jnp.clip(x, low, high)


def _within_forward(x, low, high):
  return within(x, low, high), x


def _within_backward(low, high, x, cotangent):
  # Descent moves x against its gradient.
  further = jnp.where(x > high, cotangent < 0, (x < low) & (cotangent > 0))
  return (jnp.where(further, 0.0, cotangent),)


within.defvjp(_within_forward, _within_backward)


def unit(x: Float[Array, "b p"]) -> Float[Array, "b p"]:
  """Rows of length 1, in float32; those shorter than 1e-12 stay short."""
  x = x.astype(jnp.float32)
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x / jnp.sqrt(jnp.maximum(square, 1e-24))


def pairs(
  model: nn.Module, params: Mapping, batch: Mapping
) -> dict[str, Float[Array, "b p"]]:
  """The embeddings `image` and `text` of pairs, nothing masked or dropped.

  Args:
    model: a module with `encode_image` and `encode_text`.
    params: its weights.
    batch: `image` [b, s, s, 3], `text_ids` and `text_mask` [b, n].
  """
  variables = {"params": params}
  image, _ = model.apply(variables, batch["image"], method="encode_image")
  text, _ = model.apply(
    variables, batch["text_ids"], batch["text_mask"], method="encode_text"
  )
  return {"image": image, "text": text}


def embed(
  model: nn.Module,
  params: Mapping,
  batch: Mapping,
  execution: execution_lib.Execution,
) -> tuple[Float[Array, "b p"], Float[Array, "b c p"]]:
  """Image and caption embeddings of an evaluation batch.

  Args:
    model: a module with `encode_image` and `encode_text`.
    params: its weights.
    batch: `image` [b, s, s, 3], `text_ids` and `text_mask` [b, c, n].
    execution: masks and token policies.
  """
  images, _ = model.apply(
    {"params": params},
    batch["image"],
    execution.of("vision"),
    method="encode_image",
  )
  return images, captions(model, params, batch, execution)


def captions(
  model: nn.Module,
  params: Mapping,
  batch: Mapping,
  execution: execution_lib.Execution,
) -> Float[Array, "b c p"]:
  """The text half of `embed`."""
  b, c, n = batch["text_ids"].shape
  texts, _ = model.apply(
    {"params": params},
    batch["text_ids"].reshape(b * c, n),
    batch["text_mask"].reshape(b * c, n),
    execution.of("text"),
    method="encode_text",
  )
  return texts.reshape(b, c, -1)


def macs(
  spec: specs.TwoTowerSpec,
  masks: Mapping | None,
  counts: Mapping[str, Num[Array | np.ndarray, "b _"]],
) -> Float[Array, ""] | float:
  """Mean MACs of one image and one text, `inference` convention.

  Args:
    spec: the model; a compact one with `masks=None`.
    masks: hard or soft masks, or None to cost the spec's own widths.
    counts: valid tokens of each tower: at the input and after each layer.
      NumPy integers give exact arithmetic.

  Returns:
    A traced scalar, or a float for NumPy counts without masks.
  """
  seen, read = (execution_lib.part(masks, tower) for tower in spec.towers)
  vision = macs_lib.vision(spec.vision, seen, counts["vision"])
  text = macs_lib.text(spec.text, read, counts["text"])
  widths = spec.vision.encoder.width + spec.text.encoder.width
  return macs_lib.mean(vision) + macs_lib.mean(text) + widths * spec.joint_width


def legacy(spec: specs.TwoTowerSpec, counts: Mapping) -> float:
  """MACs of the published papers' training graph of CLIP.

  The momentum twins see everything too, and four products compare both
  modalities with the queues (spec `upop.md` part 4).
  """
  queues = 4 * spec.joint_width * (cost.QUEUE + 1)
  return 2 * macs(spec, None, counts) + queues


FAMILY = towers.Family(
  model=TwoTower,
  macs=macs,
  alone={
    "vision": ("encode_image", ("image",)),
    "text": ("encode_text", ("text_ids", "text_mask")),
  },
  legacy=legacy,
  twins=TWINS,
)

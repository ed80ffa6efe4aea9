"""BLIP for retrieval: a joint space to find, cross-attention to judge.

The text tower reads a text twice: alone ([CLS] first) for its place in the
joint space, and looking at an image ([ENC] first) for the matching head. One
mask and one token threshold serve both readings (spec `upop.md` 3.7).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num

from comp_jax.core import cost
from comp_jax.core import execution as execution_lib
from comp_jax.models import blip, blocks, specs, towers, two_tower
from comp_jax.models import macs as macs_lib

READINGS = specs.RetrievalSpec.readings


class Retrieval(blip.Matching):
  """Images and texts to a joint space, and pairs to the logits of a match."""

  spec: specs.RetrievalSpec

  def setup(self):
    super().setup()
    self.vision_projection = nn.Dense(self.spec.joint_width)
    self.text_projection = nn.Dense(self.spec.joint_width)
    self.temperature = self.param(
      "temperature", nn.initializers.constant(0.07), ()
    )

  def scale(self) -> Float[Array, ""]:
    """The factor of similarities, within the authors' bounds."""
    return 1.0 / two_tower.within(self.temperature, 0.001, 0.5)

  def encode_image(
    self,
    image: Num[Array, "b s s 3"],
    execution: execution_lib.TowerExecution = execution_lib.DENSE_TOWER,
  ) -> tuple[Float[Array, "b p"], dict]:
    """Unit image embeddings, and the vision tower's aux."""
    source, aux = self.look(image, execution)
    return self.embedded(source), aux

  def encode_text(
    self,
    text_ids,
    text_mask,
    execution: execution_lib.TowerExecution = execution_lib.DENSE_TOWER,
  ) -> tuple[Float[Array, "b p"], dict]:
    """Unit text embeddings, and the aux of the reading without an image."""
    pooled, aux = self.text(text_ids, text_mask, execution)
    return two_tower.unit(self.text_projection(pooled)), aux

  def embedded(self, source: blocks.Source) -> Float[Array, "b p"]:
    """Unit embeddings of images whose tokens are known."""
    # CLS is protected and order is kept: it is always token 0.
    return two_tower.unit(self.vision_projection(source.x[:, 0]))

  def __call__(
    self,
    batch: Mapping,
    execution: execution_lib.Execution = execution_lib.DENSE,
  ) -> tuple[dict[str, Array], dict[str, dict]]:
    """Embeddings and logits of the pairs of a batch, and of hard negatives.

    Args:
      batch: `image` [b, s, s, 3], `text_ids` and `text_mask` [b, n]; for
        negatives also `concept` [b], and `key` [b] to draw them.
      execution: units, tokens and what is gathered of the towers `vision` and
        `text`.

    Returns:
      `image_embedding`, `text_embedding`, `logit_scale` (a factor) and
      `logits` [b, 2] of no match and match; with concepts `negative_logits`
      [b, 2, 2], of each text with another image and of each image with
      another text, and `has_negative` [b]. And {"vision": aux, "text": aux};
      the text's counts have two rows per text, alone and looking.
    """
    read = execution.of("text")
    texts = batch["text_ids"], batch["text_mask"]
    b = texts[0].shape[0]
    source, vision_aux = self.look(batch["image"], execution.of("vision"))
    images = self.embedded(source)
    embedded, alone = self.encode_text(*texts, read)
    output = {
      "image_embedding": images,
      "text_embedding": embedded,
      "logit_scale": self.scale(),
    }
    if "concept" in batch:
      similarity = output["logit_scale"] * (images @ embedded.T)
      others, output["has_negative"] = hard_negatives(
        jax.lax.stop_gradient(similarity), batch["concept"], batch.get("key")
      )
      own = jnp.arange(b)
      source = _rows(source, jnp.concatenate([own, others[0], own]))
      texts = _rows(texts, jnp.concatenate([own, own, others[1]]))
    logits, looking = self.read(source, *texts, read)
    logits = logits.astype(jnp.float32)
    output["logits"] = logits[:b]
    if "concept" in batch:
      output["negative_logits"] = jnp.stack(jnp.split(logits[b:], 2), axis=1)
    return output, {"vision": vision_aux, "text": _both(alone, looking, b)}


def hard_negatives(
  similarity: Float[Array, "b b"],
  concept: Int[Array, " b"],
  key: Key[Array, " b"] | None,
) -> tuple[tuple[Int[Array, " b"], Int[Array, " b"]], Bool[Array, " b"]]:
  """For each text another image, for each image another text.

  Drawn from the softmax of the similarities, those of the same concept left
  out; without a key the most similar. Where the batch has nothing else, the
  last result is False and the indices mean nothing.

  Args:
    similarity: scaled, images by texts.
    concept: of each pair.
    key: of each pair.
  """
  same = concept[:, None] == concept[None, :]

  def chosen(logits, half):
    logits = jnp.where(same, -jnp.inf, logits)
    if key is None:
      return jnp.argmax(logits, axis=1)
    keys = jax.vmap(lambda k: jax.random.fold_in(k, half))(key)
    return jax.vmap(jax.random.categorical)(keys, logits)

  others = chosen(similarity.T, 0), chosen(similarity, 1)
  return others, ~jnp.all(same, axis=1)


def _rows(tree, index: Int[Array, " r"]):
  return jax.tree.map(lambda x: x[index], tree)


def _both(alone: Mapping, looking: Mapping, b: int) -> dict[str, Any]:
  """The aux of both readings of a text, the pairs before any negatives.

  Scores are those of the reading that looks at the image; moments are means
  over the readings in which a block runs.
  """
  pairs = lambda tree: jax.tree.map(lambda x: x[..., :b, :], tree)  # noqa: E731
  aux = {name: pairs(looking[name]) for name in ("scores", "valid")}
  counts = jnp.stack([alone["counts"], looking["counts"][:b]], axis=1)
  aux["counts"] = counts.reshape(READINGS * b, -1)
  if "moments" in looking:
    aux["moments"] = {
      name: (moment + alone["moments"][name]) / READINGS
      if name in alone["moments"]
      else moment
      for name, moment in looking["moments"].items()
    }
  return aux


def _parts(spec, masks, counts) -> tuple:
  """Mean MACs: an image, a text alone, a text that looks at the image."""
  seen, read = (execution_lib.part(masks, tower) for tower in spec.towers)
  images, texts = counts["vision"], counts["text"]
  alone, looking = (texts[index::READINGS] for index in range(READINGS))
  vision = macs_lib.vision(spec.vision, seen, images)
  judged = macs_lib.text(spec.text, read, looking)
  judged = judged + macs_lib.cross(
    spec.text.encoder, read, looking, (images[:, -1],)
  )
  width, joint = spec.text.encoder.width, spec.joint_width
  return (
    macs_lib.mean(vision) + spec.vision.encoder.width * joint,
    macs_lib.mean(macs_lib.text(spec.text, read, alone)) + width * joint,
    macs_lib.mean(judged) + 2 * width,
  )


def macs(
  spec: specs.RetrievalSpec,
  masks: Mapping | None,
  counts: Mapping[str, Num[Array | np.ndarray, "r _"]],
) -> Float[Array, ""] | float:
  """Mean MACs of one image, one text and one match, `inference` convention.

  Args:
    spec: the model; a compact one with `masks=None`.
    masks: hard or soft masks, or None to cost the spec's own widths.
    counts: valid tokens of each tower: at the input and after each layer; of
      the text two rows per example, alone and looking at the image.

  Returns:
    A traced scalar, or a float for NumPy counts without masks.
  """
  return sum(_parts(spec, masks, counts))


def legacy(spec: specs.RetrievalSpec, counts: Mapping) -> float:
  """MACs of the published papers' training graph on one pair.

  Image and text go through the towers and their momentum twins, three pairs
  through the matching head, and four products compare both modalities with
  the queues (spec `upop.md` part 4).
  """
  image, alone, match = _parts(spec, None, counts)
  queues = 4 * spec.joint_width * (cost.QUEUE + 1)
  return 2 * (image + alone) + 3 * match + queues


FAMILY = towers.Family(
  model=Retrieval,
  macs=macs,
  alone={"vision": ("look", ("image",))},
  legacy=legacy,
  twins=two_tower.TWINS,
)

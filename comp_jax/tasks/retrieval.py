"""Image-text retrieval: symmetric contrastive loss, recall at 1, 5 and 10."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from comp_jax.models import families, specs, two_tower
from comp_jax.tasks import momentum, outcomes, task

RECALLS = tuple(f"{way}_r{k}" for way in ("t2i", "i2t") for k in (1, 5, 10))
# Of a query without a match: beyond any k.
_NOWHERE = np.iinfo(np.int32).max


def loss(
  output: Mapping[str, Array], batch: Mapping[str, Array]
) -> Float[Array, ""]:
  """The mean cross entropy of both directions over the pairs of a batch.

  Pairs of the same `concept` are no negatives of each other: they leave the
  softmax.

  Args:
    output: `image_embedding`, `text_embedding` [b, p] and `logit_scale`.
    batch: `concept` [b].
  """
  concept = batch["concept"]
  logits = output["logit_scale"] * jnp.einsum(
    "ip,tp->it", output["image_embedding"], output["text_embedding"]
  )
  own = jnp.eye(logits.shape[0], dtype=bool)
  twins = (concept[:, None] == concept[None, :]) & ~own
  logits = jnp.where(twins, -1e30, logits)
  to_text = jnp.diagonal(jax.nn.log_softmax(logits, axis=1))
  to_image = jnp.diagonal(jax.nn.log_softmax(logits, axis=0))
  return -0.5 * jnp.mean(to_text + to_image)


def recall_at_10(
  output: Mapping[str, Array], batch: Mapping[str, Array]
) -> Float[Array, ""]:
  """R@10 of the pairs of a batch, the mean of both directions; traceable.

  A similarity that is NaN counts as a miss.
  """
  similarity = jnp.einsum(
    "ip,tp->it", output["image_embedding"], output["text_embedding"]
  )
  matches = batch["concept"][:, None] == batch["concept"][None, :]

  def at_10(similarity):
    best = jnp.max(jnp.where(matches, similarity, -2.0), axis=1)
    ahead = jnp.sum(~(similarity < best[:, None]) & ~matches, axis=1)
    return jnp.mean((ahead < 10) & jnp.isfinite(best))

  return 0.5 * (at_10(similarity) + at_10(similarity.T))


def best_ranks(
  scores: Float[np.ndarray, "q g"], matches: Bool[np.ndarray, "q g"]
) -> Int[np.ndarray, " q"]:
  """The rank (0 is best) of each query's best match among its candidates.

  An entry that ties with the best match counts as ahead of it, so equal
  embeddings cannot score by luck; so does NaN. Without a match, or with one
  that is NaN, the rank is beyond any k.
  """
  best = np.max(np.where(matches, scores, -np.inf), axis=1)
  ahead = np.sum(~(scores < best[:, None]) & ~matches, axis=1)
  return np.where(np.isfinite(best), ahead, _NOWHERE).astype(np.int32)


def outcome(
  t2i: Int[np.ndarray, " t"], i2t: Int[np.ndarray, " i"]
) -> outcomes.Outcomes:
  """The recalls of both directions, each in [0, 1], and what they come from.

  A query is answered at k when any entry of its concept is among the first k.

  Args:
    t2i: best rank of each text, those of an image side by side.
    i2t: best rank of each image.
  """
  examples = {"t2i_rank": t2i.reshape(len(i2t), -1), "i2t_rank": i2t}
  return outcomes.Outcomes(
    metrics=outcomes.means(RECALLS, examples), examples=examples
  )


def by_similarity(
  images: Float[np.ndarray, "i p"],
  texts: Float[np.ndarray, "t p"],
  image_concepts: Int[np.ndarray, " i"],
  text_concepts: Int[np.ndarray, " t"],
  chunk: int = 512,
) -> outcomes.Outcomes:
  """What is found when candidates are ordered by similarity alone.

  Queries are taken in chunks, so that the similarities of a large gallery need
  not fit into memory.
  """

  def ranks(queries, query_concepts, gallery, concepts):
    return np.concatenate(
      [
        best_ranks(
          queries[start : start + chunk] @ gallery.T,
          query_concepts[start : start + chunk, None] == concepts[None],
        )
        for start in range(0, len(queries), chunk)
      ]
    )

  return outcome(
    t2i=ranks(texts, text_concepts, images, image_concepts),
    i2t=ranks(images, image_concepts, texts, text_concepts),
  )


def evaluate(
  embed: Callable[[Mapping], tuple[Array, Array]],
  batches: Iterable[Mapping[str, np.ndarray]],
) -> outcomes.Outcomes:
  """Recalls over a split that is streamed batch by batch.

  Args:
    embed: evaluation batch -> image [b, p] and caption [b, c, p] embeddings.
    batches: evaluation batches; rows whose `_mask` is False are padding.
  """
  images, texts, concepts = [], [], []
  for batch in batches:
    real = np.asarray(batch["_mask"])
    image, text = jax.device_get(embed(batch))
    images.append(image[real])
    texts.append(text[real])
    concepts.append(np.asarray(batch["concept"])[real])
  text, concept = np.concatenate(texts), np.concatenate(concepts)
  captions = text.shape[1]
  return by_similarity(
    np.concatenate(images),
    text.reshape(-1, text.shape[-1]),
    concept,
    np.repeat(concept, captions),
  )


def predict(spec: specs.TwoTowerSpec) -> task.Predict:
  """Image and caption embeddings of evaluation batches."""
  model = families.module(spec)

  def embed(params, execution, batch):
    return two_tower.embed(model, params, batch, execution)

  return embed


TASK = task.Task(
  name="retrieval",
  loss=loss,
  metrics={
    "loss": lambda output, batch: -loss(output, batch),
    "recall": recall_at_10,
  },
  predict=predict,
  evaluate=evaluate,
)


def build(options: task.Options) -> task.Task:
  """Retrieval within the batch or, with a queue, by momentum contrast."""
  if not options.queue:
    return TASK
  return dataclasses.replace(
    TASK,
    loss=momentum.contrast,
    memory=lambda spec: momentum.Momentum(spec=spec, options=options),
  )

"""BLIP's retrieval: momentum contrast, hard negatives, re-ranked recalls.

Training adds the contrastive loss and the matching loss of each pair and its
hard negatives; evaluation finds candidates by similarity and lets the matching
head judge them (spec `upop.md` 3.7 and part 5).
"""

import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from comp_jax.models import blocks, families, specs, two_tower
from comp_jax.tasks import momentum, outcomes, retrieval, task


def match_loss(output: Mapping[str, Array]) -> Float[Array, ""]:
  """The mean cross entropy of the pairs and their hard negatives.

  Args:
    output: `logits` [b, 2], `negative_logits` [b, 2, 2] and `has_negative`.
  """
  pairs = -jax.nn.log_softmax(output["logits"], axis=-1)[:, 1]
  others = -jax.nn.log_softmax(output["negative_logits"], axis=-1)[..., 0]
  real = output["has_negative"].astype(jnp.float32)
  total = jnp.sum(pairs) + jnp.sum(others * real[:, None])
  return total / (pairs.shape[0] + 2 * jnp.sum(real))


def loss(
  output: Mapping[str, Array], batch: Mapping[str, Array], seen: Mapping
) -> Float[Array, ""]:
  """The sum of both losses; see `momentum.contrast` for the arguments."""
  return momentum.contrast(output, batch, seen) + match_loss(output)


def selection(
  output: Mapping[str, Array], batch: Mapping[str, Array]
) -> Float[Array, ""]:
  """Minus the loss without a memory: the batch is contrasted with itself."""
  return -retrieval.loss(output, batch) - match_loss(output)


def predict(spec: specs.RetrievalSpec) -> task.Predict:
  """What evaluation asks for, by the arrays of a batch.

  Of images with captions: `image` [b, p] and `text` [b, c, p] embeddings, and
  the image tokens `tokens` [b, n, d], `valid` [b, n]. Of such tokens with
  `image_index` [r], `text_ids` and `text_mask` [r, n]: the logit of a match of
  each text with the image of its index.
  """
  module = families.module(spec)

  def run(params, execution, batch):
    apply = functools.partial(module.apply, {"params": params})
    if "tokens" in batch:
      index = batch["image_index"]
      tokens, valid = batch["tokens"][index], batch["valid"][index]
      source = blocks.Source(
        x=tokens, valid=valid, weights=jnp.zeros(valid.shape, jnp.float32)
      )
      logits, _ = apply(
        source,
        batch["text_ids"],
        batch["text_mask"],
        execution.of("text"),
        method="read",
      )
      return logits[:, 1]
    source, _ = apply(batch["image"], execution.of("vision"), method="look")
    return {
      "image": apply(source, method="embedded"),
      "text": two_tower.captions(module, params, batch, execution),
      "tokens": source.x,
      "valid": source.valid,
    }

  return run


def evaluate(
  predict: Callable[[Mapping], Mapping],
  batches: Iterable[Mapping[str, np.ndarray]],
  rerank: int,
) -> outcomes.Outcomes:
  """`t2i_r{1,5,10}` and `i2t_r{1,5,10}` over a split that is streamed.

  The `rerank` most similar candidates of each query are ordered by similarity
  plus the logit of a match. Image tokens stay on the devices meanwhile.

  Args:
    predict: see `predict`.
    batches: evaluation batches; rows whose `_mask` is False are padding.
    rerank: candidates that are judged; 0 orders by similarity alone.
  """
  found, tokens = _streamed(predict, batches, keep=rerank > 0)
  images, texts = found["image"], found["text"]
  concepts = (
    found["concept"],
    np.repeat(found["concept"], len(texts) // len(images)),
  )
  if not rerank:
    return retrieval.by_similarity(images, texts, *concepts)
  # Candidates of either direction; a pair that both name is judged once.
  to_text = nearest(images, texts, rerank)
  to_image = nearest(texts, images, rerank)
  number = lambda image, text: image.astype(np.int64) * len(texts) + text  # noqa: E731
  by_image = number(np.arange(len(images))[:, None], to_text)
  by_text = number(to_image, np.arange(len(texts))[:, None])
  pairs = np.unique(np.concatenate([by_image.ravel(), by_text.ravel()]))
  image, text = np.divmod(pairs, len(texts))
  scores = _judged(predict, tokens, found, image, text)
  matches = concepts[0][image] == concepts[1][text]

  def ranks(asked):
    rows = np.searchsorted(pairs, asked)
    return retrieval.best_ranks(scores[rows], matches[rows])

  return retrieval.outcome(t2i=ranks(by_text), i2t=ranks(by_image))


def _streamed(
  predict, batches, keep: bool
) -> tuple[dict[str, np.ndarray], list[dict]]:
  """Arrays of all images and texts on the host; each batch's tokens, or not."""
  parts, tokens = [], []
  for batch in batches:
    # Padding is at the end of the last batch: rows keep their numbers.
    real = np.asarray(batch["_mask"])
    found = dict(predict(batch))
    block = {name: found.pop(name) for name in ("tokens", "valid")}
    tokens += [block] if keep else []
    texts = {name: batch[name] for name in ("text_ids", "text_mask")}
    rows = {**found, **texts, "concept": batch["concept"]}
    parts.append({name: np.asarray(x)[real] for name, x in rows.items()})
  whole = {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }
  for name in ("text", "text_ids", "text_mask"):
    whole[name] = whole[name].reshape(-1, whole[name].shape[-1])
  return whole, tokens


def _judged(
  predict,
  tokens,
  found,
  image: Int[np.ndarray, " r"],
  text: Int[np.ndarray, " r"],
) -> Float[np.ndarray, " r"]:
  """Similarity plus logit of pairs that are sorted by image."""
  size = tokens[0]["valid"].shape[0]
  scores = np.empty(len(image), np.float32)
  for number, block in enumerate(tokens):
    start = number * size
    low, high = np.searchsorted(image, [start, start + size])
    for first in range(low, high, size):
      # The last pair fills a batch that is not full.
      rows = np.minimum(np.arange(first, first + size), high - 1)
      one = {
        name: found[name][text[rows]] for name in ("text_ids", "text_mask")
      }
      index = (image[rows] - start).astype(np.int32)
      logits = predict({**block, **one, "image_index": index})
      pairs = found["image"][image[rows]], found["text"][text[rows]]
      scores[rows] = np.einsum("rp,rp->r", *pairs) + np.asarray(logits)
  return scores


def nearest(
  queries: Float[np.ndarray, "q p"],
  gallery: Float[np.ndarray, "g p"],
  count: int,
  chunk: int = 512,
) -> Int[np.ndarray, "q k"]:
  """The `count` most similar entries of each query, in no order."""
  count = min(count, len(gallery))
  rows = []
  for start in range(0, len(queries), chunk):
    similarity = queries[start : start + chunk] @ gallery.T
    rows.append(np.argpartition(-similarity, count - 1, axis=1)[:, :count])
  return np.concatenate(rows)


def build(options: task.Options) -> task.Task:
  """The task, with the queues and candidates of these options."""
  return task.Task(
    name="retrieval",
    loss=loss,
    metrics={"loss": selection, "recall": retrieval.recall_at_10},
    predict=predict,
    evaluate=functools.partial(evaluate, rerank=options.rerank),
    memory=lambda spec: momentum.Momentum(spec=spec, options=options),
  )

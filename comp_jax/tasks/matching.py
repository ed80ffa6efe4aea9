"""Image-text matching: does the sentence belong to the image?

A binary decision per pair, as BLIP's ITM head makes it.
"""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from comp_jax.models import families, specs
from comp_jax.tasks import outcomes, task


def loss(
  output: Mapping[str, Array], batch: Mapping[str, Array]
) -> Float[Array, ""]:
  """The mean cross entropy of the pairs.

  Args:
    output: `logits` [b, 2].
    batch: `label` [b], 1 for a match.
  """
  log_p = jax.nn.log_softmax(output["logits"], axis=-1)
  chosen = jnp.take_along_axis(log_p, batch["label"][:, None], axis=-1)
  return -jnp.mean(chosen)


def accuracy(
  output: Mapping[str, Array], batch: Mapping[str, Array]
) -> Float[Array, ""]:
  """The share of pairs that are judged right; traceable."""
  return jnp.mean(jnp.argmax(output["logits"], axis=-1) == batch["label"])


def area_under_curve(
  scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]
) -> float:
  """How often a match scores above a mismatch; ties count half."""
  positive, negative = scores[labels], scores[~labels]
  if not len(positive) or not len(negative):
    return float("nan")
  # Here, as it takes longer to import than all of JAX.
  import scipy.stats

  statistic = scipy.stats.mannwhitneyu(positive, negative).statistic
  return float(statistic / (len(positive) * len(negative)))


def evaluate(
  predict: Callable[[Mapping], Array],
  batches: Iterable[Mapping[str, np.ndarray]],
) -> outcomes.Outcomes:
  """`accuracy` and `auc` over a split that is streamed batch by batch.

  Args:
    predict: evaluation batch -> logits [b, 2].
    batches: evaluation batches; rows whose `_mask` is False are padding.
  """
  logits, labels = [], []
  for batch in batches:
    real = np.asarray(batch["_mask"])
    logits.append(np.asarray(predict(batch))[real])
    labels.append(np.asarray(batch["label"])[real] == 1)
  logits, labels = np.concatenate(logits), np.concatenate(labels)
  scores = logits[:, 1] - logits[:, 0]
  examples = {
    "accuracy": (scores > 0) == labels,
    "score": scores,
    "label": labels,
  }
  return outcomes.Outcomes(
    # The area compares examples with each other: it is no mean over them.
    metrics={
      **outcomes.means(("accuracy",), examples),
      "auc": area_under_curve(scores, labels),
    },
    examples=examples,
  )


def predict(spec: specs.MatchingSpec | specs.NlvrSpec) -> task.Predict:
  """Logits of evaluation batches, whose images have one sentence each."""
  forward = families.prunable(spec).forward

  def logits(params, execution, batch):
    one = {key: batch[key][:, 0] for key in ("text_ids", "text_mask")}
    pairs = {"image": batch["image"], **one}
    output, _ = forward(params, pairs, execution)
    return output["logits"]

  return logits


TASK = task.Task(
  name="matching",
  loss=loss,
  metrics={
    "loss": lambda output, batch: -loss(output, batch),
    "accuracy": accuracy,
  },
  predict=predict,
  evaluate=evaluate,
  needs=frozenset({"label"}),
)

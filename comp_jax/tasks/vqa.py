"""Question answering about images (spec `upop.md` 3.6)."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from comp_jax.core import execution as execution_lib
from comp_jax.data import pipelines, texts
from comp_jax.models import families, generation, specs
from comp_jax.tasks import outcomes, task, vqa_score, writing

BEAM = generation.Beam(width=3, max_length=10)


def loss(
  output: Mapping[str, Array], batch: Mapping[str, Array]
) -> Float[Array, ""]:
  """The weighted losses of all answers, divided by the images.

  An answer's loss is the sum over its tokens.

  Args:
    output: `logits` [b, a, m, v].
    batch: `answer_ids` and `answer_mask` [b, a, m], `answer_weight` [b, a].
  """
  losses, _ = writing.token_losses(
    output["logits"], batch["answer_ids"], batch["answer_mask"]
  )
  weighted = batch["answer_weight"] * jnp.sum(losses, axis=-1)
  return jnp.sum(weighted) / weighted.shape[0]


def rank(
  spec: specs.VqaSpec,
  params: Mapping,
  batch: Mapping,
  answers: tuple[Int[Array, "a m"], Bool[Array, "a m"]],
  best: int = 128,
  execution: execution_lib.Execution = execution_lib.DENSE,
) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
  """The index of the likeliest of given answers to each question; its loss.

  The `best` answers by the probability of their first token are compared by
  the loss of all their tokens, smoothed as in training (spec `upop.md` 3.6).

  Args:
    spec: the model.
    params: its weights.
    batch: `image`, `text_ids` and `text_mask`.
    answers: ids and mask; the first token of each stands for `bos_id`.
    best: answers that are compared whole.
    execution: masks and token policies.
  """
  module, variables = families.module(spec), {"params": params}
  source = module.apply(variables, batch, execution, method="read")
  ids, mask = answers
  b, k = len(source.x), min(best, len(ids))
  # What the answers read becomes keys and values once per question.
  begin = jnp.zeros((b, 1), jnp.int32), jnp.ones((b, 1), bool)
  logits, kept = module.apply(
    variables, source, *begin, execution, method="write", mutable=["seen"]
  )
  _, chosen = jax.lax.top_k(logits[:, 0][:, ids[:, 1]], k)
  axis = 1 if spec.answer.encoder.scan else 0
  kept = jax.tree.map(lambda x: jnp.repeat(x, k, axis=axis), kept)
  source = jax.tree.map(lambda x: jnp.repeat(x, k, axis=0), source)
  ids, mask = (x[chosen.reshape(-1)] for x in (ids, mask))
  logits = module.apply(
    {**variables, **kept}, source, ids, mask, execution, method="write"
  )
  losses, _ = writing.token_losses(logits, ids, mask)
  losses = jnp.sum(losses, axis=-1).reshape(b, k)
  likeliest = jnp.argmin(losses, axis=1, keepdims=True)
  of = lambda x: jnp.take_along_axis(x, likeliest, axis=1)[:, 0]  # noqa: E731
  return of(chosen), of(losses)


def predict(spec: specs.VqaSpec) -> task.Predict:
  """The ids [b, n] of answers that are written to questions; scores [b]."""

  def answers(params, execution, batch):
    prompt = jnp.zeros((len(batch["image"]), 1), jnp.int32)
    return generation.write(
      spec, params, _asked(batch), prompt, BEAM, execution
    )

  return answers


def choose(spec: specs.VqaSpec) -> task.Predict:
  """The index [b] and loss [b] of the likeliest of answers that are given."""

  def likeliest(params, execution, batch, *answers):
    return rank(spec, params, _asked(batch), answers, execution=execution)

  return likeliest


def _asked(batch: Mapping) -> dict[str, Array]:
  """Images and their questions, of which each example has one."""
  one = {key: batch[key][:, 0] for key in ("text_ids", "text_mask")}
  return {"image": batch["image"], **one}


def answers(options: task.Options) -> Callable[..., Iterator[str]]:
  """How a split's questions are answered, in its order: (predict, batches) ->.

  Written freely, or chosen among the answers that train gives most often.
  """
  if not options.rank:
    return writing.written
  return functools.partial(
    ranked, count=options.rank, length=options.answer_length
  )


def ranked(
  predict: Callable[..., tuple[Int[Array, " b"], Float[Array, " b"]]],
  batches: pipelines.EvalBatches,
  *,
  count: int,
  length: int,
) -> Iterator[str]:
  """The likeliest among answers that train gives.

  Args:
    predict: evaluation batch, ids and mask of answers -> which one, its loss.
    batches: of a source that brings the answers, the most frequent first.
    count: how many of them.
    length: of an answer, in tokens.
  """
  texts = batches.source.answers[:count]
  known = batches.tokenizer.encode(texts, length)
  for index in writing.predicted(lambda batch: predict(batch, *known), batches):
    yield texts[index]


def _scores(
  given: Iterable[str], batches: pipelines.EvalBatches
) -> outcomes.Outcomes:
  """The official `accuracy`, and that of who reads the questions alone.

  The latter, `question_only`, gives the answer that train gives most often to
  the same words.
  """
  scores = [
    [
      vqa_score.accuracy(each, example["answers"])
      for each in (answer, example["blind"])
    ]
    for answer, example in zip(given, batches.examples(), strict=True)
  ]
  accuracy, blind = np.transpose(scores)
  examples = {"accuracy": accuracy, "question_only": blind}
  return outcomes.Outcomes(
    metrics=outcomes.means(examples, examples), examples=examples
  )


def build(options: task.Options) -> task.Task:
  """The task, with the answers of these options."""
  answering = answers(options)

  def evaluate(predict, batches) -> outcomes.Outcomes:
    return _scores(answering(predict, batches), batches)

  return task.Task(
    name="question answering",
    loss=loss,
    metrics={"loss": lambda output, batch: -loss(output, batch)},
    predict=choose if options.rank else predict,
    evaluate=evaluate,
    needs=frozenset({"answers"}),
    layout=texts.Layout(
      answers=options.answers, answer_length=options.answer_length
    ),
  )

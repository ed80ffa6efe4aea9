"""Captioning: what is in the picture, in one sentence (spec `upop.md` 3.5)."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from comp_jax.data import pipelines, texts
from comp_jax.models import generation, specs
from comp_jax.tasks import caption_score, outcomes, task, writing

# Every text begins with these words; [DEC] and they are not predicted.
PROMPT = "a picture of "
PROMPT_TOKENS = 4
BEAM = generation.Beam(width=3, max_length=20, min_length=5)


def loss(
  output: Mapping[str, Array], batch: Mapping[str, Array]
) -> Float[Array, ""]:
  """The mean smoothed cross entropy of the words after the prompt.

  Args:
    output: `logits` [b, n, v].
    batch: `text_ids` and `text_mask` [b, n].
  """
  losses, real = writing.token_losses(
    output["logits"], batch["text_ids"], batch["text_mask"]
  )
  # The losses begin with the second token.
  position = jnp.arange(1, 1 + real.shape[1])[None]
  real = real & (position >= PROMPT_TOKENS)
  return jnp.sum(jnp.where(real, losses, 0.0)) / jnp.maximum(jnp.sum(real), 1)


def predict(spec: specs.CaptionSpec) -> task.Predict:
  """The ids [b, n] of captions, without their prompt, and scores [b]."""

  def words(params, execution, batch):
    prompt = batch["text_ids"][:, 0, :PROMPT_TOKENS]
    images = {"image": batch["image"]}
    ids, score = generation.write(spec, params, images, prompt, BEAM, execution)
    return ids[:, PROMPT_TOKENS:], score

  return words


def evaluate(
  predict: Callable[[Mapping], tuple[Int[Array, "b n"], Float[Array, " b"]]],
  batches: pipelines.EvalBatches,
) -> outcomes.Outcomes:
  """The scores of what is written about a split, CIDEr first.

  No outcomes of single examples: BLEU is a ratio of sums over a whole split,
  and CIDEr weighs words by how rare they are in it.
  """
  examples = {x["id"]: x["references"] for x in batches.examples()}
  written = writing.written(predict, batches)
  scores = caption_score.scores(
    dict(zip(examples, written, strict=True)), examples
  )
  return outcomes.Outcomes(metrics={"cider": scores.pop("cider"), **scores})


def build(options: task.Options) -> task.Task:
  """The task; UserError where its scores cannot be computed."""
  del options
  caption_score.scorers()
  return task.Task(
    name="captioning",
    loss=loss,
    metrics={"loss": lambda output, batch: -loss(output, batch)},
    predict=predict,
    evaluate=evaluate,
    needs=frozenset({"references"}),
    layout=texts.Layout(prompt=PROMPT, prompt_tokens=PROMPT_TOKENS),
  )

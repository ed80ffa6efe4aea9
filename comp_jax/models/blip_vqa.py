"""BLIP's question answering (spec `upop.md` 3.6).

The question's tower looks at the image, a decoder looks at the question's
tokens and writes the answer.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from comp_jax.core import execution as execution_lib
from comp_jax.models import bert, blip, blocks, specs, towers, vit
from comp_jax.models import macs as macs_lib

# The published papers' input: questions about one image, answers to the first
# of them (spec `upop.md` part 4).
LEGACY_QUESTIONS, LEGACY_ANSWERS = 32, 47


class Vqa(blip.Looking):
  """An image, a question and answers to the logits of the answers' tokens."""

  def setup(self):
    self.vision = vit.Vit(self.spec.vision)
    self.text = bert.Bert(self.spec.text)
    self.answer = bert.Decoder(self.spec.answer)

  def ask(
    self,
    batch: Mapping,
    execution: execution_lib.Execution = execution_lib.DENSE,
  ) -> tuple[blocks.Source, dict[str, dict]]:
    """The question's tokens that the decoder reads, and both towers' aux.

    Tokens that the question's tower dropped are not valid: they are gone for
    the decoder.
    """
    source, vision_aux = self.look(batch["image"], execution.of("vision"))
    state, text_aux = self.text(
      batch["text_ids"],
      batch["text_mask"],
      execution.of("text"),
      (source,),
    )
    source = blip.source_of(state, text_aux, execution.of("text"))
    return source, {"vision": vision_aux, "text": text_aux}

  def __call__(
    self,
    batch: Mapping,
    execution: execution_lib.Execution = execution_lib.DENSE,
  ) -> tuple[dict[str, Array], dict[str, dict]]:
    """Logits of the answers of a batch.

    Args:
      batch: `image` [b, s, s, 3]; `text_ids` and `text_mask` [b, n], the
        questions; `answer_ids` and `answer_mask` [b, a, m].
      execution: units and what is gathered of the towers `vision`, `text` (the
        question) and `answer`, tokens of the first two.

    Returns:
      `logits` [b, a, m, v] of the token after each one, and aux of the three
      towers. The decoder's aux has a row per answer, but its `counts` are
      those of the first answer alone, which is the one that is costed.
    """
    source, aux = self.ask(batch, execution)
    b, a, m = batch["answer_ids"].shape
    repeat = functools.partial(jnp.repeat, repeats=a, axis=0)
    logits, answer_aux = self.answer(
      batch["answer_ids"].reshape(b * a, m),
      batch["answer_mask"].reshape(b * a, m),
      jax.tree.map(repeat, source),
      execution.of("answer"),
    )
    counts = answer_aux["counts"][::a]
    aux["answer"] = {**answer_aux, "counts": counts}
    return {"logits": logits.reshape(b, a, m, -1)}, aux

  def read(
    self,
    batch: Mapping,
    execution: execution_lib.Execution = execution_lib.DENSE,
  ) -> blocks.Source:
    """What the decoder looks at while it writes."""
    return self.ask(batch, execution)[0]

  def write(
    self,
    source: blocks.Source,
    text_ids: Int[Array, "b n"],
    text_mask: Bool[Array, "b n"],
    execution: execution_lib.Execution = execution_lib.DENSE,
    first: int | Int[Array, ""] = 0,
  ) -> Float[Array, "b n v"]:
    """The logits of the decoder alone, see `bert.Decoder`."""
    own = execution.of("answer")
    return self.answer(text_ids, text_mask, source, own, first)[0]


def macs(
  spec: specs.VqaSpec,
  masks: Mapping | None,
  counts: Mapping[str, Num[Array | np.ndarray, "b _"]],
) -> Float[Array, ""] | float:
  """Mean MACs of one image, one question and one answer, `inference`.

  All tokens of the answer run at once and all are given to the head.

  Args:
    spec: the model; a compact one with `masks=None`.
    masks: hard or soft masks, or None to cost the spec's own widths.
    counts: valid tokens of each tower: at the input and after each layer.

  Returns:
    A traced scalar, or a float for NumPy counts without masks.
  """
  seen, asked, written = (
    execution_lib.part(masks, tower) for tower in spec.towers
  )
  images, questions = counts["vision"], counts["text"]
  vision = macs_lib.vision(spec.vision, seen, images)
  text = macs_lib.text(spec.text, asked, questions)
  keys = (images[:, -1],)
  cross = macs_lib.cross(spec.text.encoder, asked, questions, keys)
  answer = macs_lib.decoder(
    spec.answer, written, counts["answer"], questions[:, -1]
  )
  return (
    macs_lib.mean(vision) + macs_lib.mean(text + cross) + macs_lib.mean(answer)
  )


def legacy(spec: specs.VqaSpec, counts: Mapping) -> float:
  """MACs of the published papers' training graph.

  One image, 32 questions about it like the first of `counts`, and 47 answers
  to one of them like its first: what all questions read of the image, and all
  answers of the question, becomes keys and values once.
  """
  images, question, answer = (counts[tower][:1] for tower in spec.towers)
  encoder, decoder = spec.text.encoder, spec.answer.encoder

  def repeated(times, once, encoder, keys):
    nobody = np.zeros((1, encoder.depth + 1), np.int64)
    shared = macs_lib.cross(encoder, None, nobody, (keys,))
    return times * (once - shared) + shared

  asked = macs_lib.text(spec.text, None, question) + macs_lib.cross(
    encoder, None, question, (images[:, -1],)
  )
  answered = macs_lib.decoder(spec.answer, None, answer, question[:, -1])
  return float(
    macs_lib.mean(
      macs_lib.vision(spec.vision, None, images)
      + repeated(LEGACY_QUESTIONS, asked, encoder, images[:, -1])
      + repeated(LEGACY_ANSWERS, answered, decoder, question[:, -1])
    )
  )


def example(spec: specs.VqaSpec) -> dict[str, Array]:
  """A batch of one image, one question and one answer."""
  return {
    **towers.example(spec),
    "answer_ids": jnp.zeros((1, 1, 1), jnp.int32),
    "answer_mask": jnp.ones((1, 1, 1), bool),
  }


FAMILY = towers.Family(
  model=Vqa,
  macs=macs,
  example=example,
  alone={"vision": ("look", ("image",))},
  legacy=legacy,
  inputs=(*towers.INPUTS, "answer_ids", "answer_mask"),
)

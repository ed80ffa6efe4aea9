"""An example's texts as arrays, laid out as a task reads them."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from comp_jax.data import tokenizers

_SIDES = {"left": "right", "right": "left"}


def cleaned(text: str, words: int) -> str:
  """A text as BLIP reads it (spec `upop.md` 3.1).

  Lower case, some marks out, cut to a number of words.
  """
  return " ".join(re.sub(r'[.!"()*#:;~]', " ", text.lower()).split()[:words])


def sides_exchanged(text: str) -> str:
  """The same said of two images in the other order: left is right."""
  return re.sub(r"\b(left|right)\b", lambda side: _SIDES[side[0]], text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """What a task reads beside the captions themselves.

  Attributes:
    prompt: words that every caption is led in by.
    prompt_tokens: of the prompt, the first token of all texts included.
    answers: different answers to a question; 0 reads none.
    answer_length: tokens of an answer.
  """

  prompt: str = ""
  prompt_tokens: int = 1
  answers: int = 0
  answer_length: int = 0

  def arrays(
    self,
    example: Mapping[str, Any],
    captions: Sequence[str],
    tokenizer: tokenizers.TextTokenizer,
    length: int,
  ) -> dict[str, np.ndarray]:
    """`text_ids` and `text_mask` [c, S] of captions, and the answers' arrays.

    These are `answer_ids` and `answer_mask` [a, m] and `answer_weight` [a],
    the most frequent answer first. Where an example has fewer, the first one
    is repeated with weight 0: a text without a valid token can turn into NaN.
    Where it has none at all, the arrays are left out.
    """
    texts = [self.prompt + caption for caption in captions]
    ids, mask = tokenizer.encode(texts, length)
    found = {"text_ids": ids, "text_mask": mask}
    if self.answers and "answers" in example:
      counts = collections.Counter(example["answers"])
      best = counts.most_common(self.answers)
      texts = [answer for answer, _ in best]
      texts += texts[:1] * (self.answers - len(best))
      ids, mask = tokenizer.encode(texts, self.answer_length)
      weight = np.zeros(self.answers, np.float32)
      weight[: len(best)] = [count * example["weight"] for _, count in best]
      found |= {"answer_ids": ids, "answer_mask": mask}
      found["answer_weight"] = weight
    return found

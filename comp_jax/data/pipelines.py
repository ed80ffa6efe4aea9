"""Batches from sources: training by index, evaluation with padding.

Training batches are a function of the seed and the step alone. `ds[i]` is
batch i, whoever asks and in whatever order, so the resume state of the input
pipeline is the step number: `ds[step:]` continues a run exactly, with any
number of reader threads. Nothing of an iterator needs saving.
"""

import functools
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence

import grain
import numpy as np

from comp_jax import errors
from comp_jax.data import images, sources, texts, tokenizers

Batch = dict[str, np.ndarray]
AugmentSpec = images.AugmentSpec
# Captions as they are, and nothing else.
_CAPTIONS = texts.Layout()
# Whole batches read ahead, at most; a batch of 64 at 112 pixels is 2.4 MB.
_MAX_AHEAD = 64


def train_batches(
  source: sources.RandomAccessSource,
  tokenizer: tokenizers.TextTokenizer,
  *,
  batch_size: int,
  image_size: int,
  text_length: int,
  seed: int,
  augment: AugmentSpec | None = None,
  layout: texts.Layout = _CAPTIONS,
) -> grain.MapDataset:
  """Endless training batches by index, a new order in every epoch.

  Each draw takes one caption at random. Batches do not cross epochs: the
  remainder of an epoch is left out, a different one each time.

  Args:
    source: the examples.
    tokenizer: makes `text_ids` and `text_mask`.
    batch_size: b.
    image_size: H and W, in pixels.
    text_length: S, in tokens.
    seed: any integer from 0 to 2**32 - 1.
    augment: random crop, flip, tint and word dropout; None for the plain
      resize of evaluation.
    layout: what is read of the texts.

  Returns:
    `ds` with `ds[i]` = {image [b,H,W,3], text_ids [b,S], text_mask [b,S],
    concept [b]}, label [b] where the examples have one, and what else `layout`
    reads.
  """
  if not 1 <= batch_size <= len(source):
    raise errors.UserError(
      f"batch_size must be from 1 to the {len(source)} training examples, not"
      f" {batch_size}."
    )
  if not 0 <= seed < 2**32:
    raise errors.UserError(f"seed must be in [0, 2**32), not {seed}.")
  draw = functools.partial(
    _draw,
    tokenizer=tokenizer,
    image_size=image_size,
    text_length=text_length,
    augment=augment,
    layout=layout,
  )
  return (
    grain.MapDataset.source(source)
    .seed(seed)
    .shuffle()
    .random_map(draw)
    .batch(batch_size, drop_remainder=True)
    .repeat()
  )


def stage_iterator(
  ds: grain.MapDataset,
  *,
  start: int,
  steps_per_stage: int,
  num_threads: int | None = None,
) -> Iterator[Batch]:
  """Stages of `steps_per_stage` batches, stacked, from batch `start` on.

  Args:
    ds: the result of `train_batches`.
    start: the step to begin at; 0, or the step of a checkpoint.
    steps_per_stage: batches per yielded dict, its leading axis.
    num_threads: background threads; None for one per core. It changes the
      speed, never the batches.

  Returns:
    An iterator of dicts like those of `train_batches`, with arrays
    [steps, b, ...]. Close it to end its threads early.
  """
  if start < 0 or steps_per_stage < 1:
    raise errors.UserError(
      f"start must be 0 or more and steps_per_stage 1 or more, not {start} and"
      f" {steps_per_stage}."
    )
  threads = _num_threads() if num_threads is None else num_threads
  options = grain.ReadOptions(
    num_threads=threads,
    prefetch_buffer_size=max(threads, min(steps_per_stage, _MAX_AHEAD)),
  )
  stages = (
    ds[start:]
    .to_iter_dataset(options)
    .batch(steps_per_stage, drop_remainder=True)
  )
  return _closing(iter(stages))


class EvalBatches(Sequence):
  """Padded evaluation batches by index; may be iterated any number of times."""

  def __init__(
    self,
    source: sources.RandomAccessSource,
    tokenizer: tokenizers.TextTokenizer,
    *,
    batch_size: int,
    image_size: int,
    text_length: int,
    limit: int | None = None,
    layout: texts.Layout = _CAPTIONS,
  ):
    if batch_size < 1:
      raise errors.UserError(f"batch_size must be 1 or more, not {batch_size}.")
    self.num_examples = _limited(source, limit)
    self.tokenizer = tokenizer
    self.source = source
    view = functools.partial(
      _view,
      tokenizer=tokenizer,
      image_size=image_size,
      text_length=text_length,
      layout=layout,
    )
    self._ds = (
      grain.MapDataset.source(source)[: self.num_examples]
      .map(view)
      .batch(
        batch_size, batch_fn=functools.partial(_padded, batch_size=batch_size)
      )
    )

  def __len__(self) -> int:
    return len(self._ds)

  def __getitem__(self, index: int) -> Batch:
    if not 0 <= index < len(self):
      raise IndexError(index)
    return self._ds[index]

  def examples(self) -> Iterator[sources.Example]:
    """What the batches are made of, in their order and without padding."""
    return (self.source[index] for index in range(self.num_examples))

  def __iter__(self) -> Iterator[Batch]:
    threads = _num_threads()
    options = grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=2 * threads
    )
    return _closing(iter(self._ds.to_iter_dataset(options)))


def eval_batches(
  source: sources.RandomAccessSource,
  tokenizer: tokenizers.TextTokenizer,
  *,
  batch_size: int,
  image_size: int,
  text_length: int,
  limit: int | None = None,
  layout: texts.Layout = _CAPTIONS,
) -> EvalBatches:
  """All captions of the first `limit` examples, in batches of one shape.

  Pictures are resized whole (bicubic). The last batch is filled with copies
  of its last example whose `_mask` is False and whose `concept` is -1: copies,
  because a row of zeros has no valid token and can turn into NaN.

  Returns:
    A sequence of {image [b,H,W,3], text_ids [b,c,S], text_mask [b,c,S],
    concept [b], _mask [b]}, and what else `layout` reads.
  """
  return EvalBatches(
    source,
    tokenizer,
    batch_size=batch_size,
    image_size=image_size,
    text_length=text_length,
    limit=limit,
    layout=layout,
  )


def load_examples(
  source: sources.RandomAccessSource,
  tokenizer: tokenizers.TextTokenizer,
  *,
  image_size: int,
  text_length: int,
  indices: Iterable[int] | np.ndarray | None = None,
  limit: int | None = None,
  layout: texts.Layout = _CAPTIONS,
) -> Batch:
  """One evaluation dict of chosen examples, without padding.

  Args:
    source: the examples.
    tokenizer: makes `text_ids` and `text_mask`.
    image_size: H and W, in pixels.
    text_length: S, in tokens.
    indices: which examples, in this order; None for the first `limit`.
    limit: how many without `indices`; None for all.
    layout: what is read of the texts.
  """
  if indices is None:
    indices = range(_limited(source, limit))
  examples = [
    _view(
      source[int(i)],
      tokenizer=tokenizer,
      image_size=image_size,
      text_length=text_length,
      layout=layout,
    )
    for i in indices
  ]
  if not examples:
    raise errors.UserError("no examples to load: indices is empty.")
  return _padded(examples, batch_size=len(examples))


def _draw(
  example: sources.Example,
  rng: np.random.Generator,
  *,
  tokenizer: tokenizers.TextTokenizer,
  image_size: int,
  text_length: int,
  augment: AugmentSpec | None,
  layout: texts.Layout,
) -> dict[str, typing.Any]:
  """One training example with one of its captions."""
  caption = example["captions"][rng.integers(len(example["captions"]))]
  if augment is None:
    image = _pictures(example, lambda x: images.resize(x, image_size))
  else:
    pair = "image2" in example
    if pair and augment.swap and rng.uniform() < augment.swap:
      first, second = example["image"], example["image2"]
      example = {**example, "image": second, "image2": first}
      caption = texts.sides_exchanged(caption)
    caption = images.drop_words(caption, augment.word_dropout, rng)
    image = _pictures(
      example, lambda x: images.augment(x, image_size, augment, rng)
    )
  arrays = layout.arrays(example, [caption], tokenizer, text_length)
  one = {key: arrays[key][0] for key in ("text_ids", "text_mask")}
  return {"image": image, **arrays, **one, **_numbers(example)}


def _view(
  example: sources.Example,
  *,
  tokenizer: tokenizers.TextTokenizer,
  image_size: int,
  text_length: int,
  layout: texts.Layout,
) -> dict[str, typing.Any]:
  """One evaluation example with all of its captions."""
  return {
    "image": _pictures(example, lambda x: images.resize(x, image_size)),
    **layout.arrays(example, example["captions"], tokenizer, text_length),
    **_numbers(example),
  }


def _pictures(
  example: sources.Example, make: Callable[[images.Picture], np.ndarray]
) -> np.ndarray:
  """The picture [H,W,3], or a pair of them [2,H,W,3]."""
  try:
    if "image2" not in example:
      return make(example["image"])
    return np.stack([make(example["image"]), make(example["image2"])])
  # Prepared data were checked; files that are read where they lie were not.
  except (OSError, SyntaxError) as error:
    raise errors.UserError(
      f"example {example['id']}: its picture cannot be read ({error})."
    ) from error


def _numbers(example: sources.Example) -> dict[str, np.int32]:
  """The concept, and the label where the data set has one."""
  keys = ("concept", "label") if "label" in example else ("concept",)
  return {key: np.int32(example[key]) for key in keys}


def _padded(examples: Sequence[dict], *, batch_size: int) -> Batch:
  """The examples stacked and filled up to `batch_size`, with `_mask`."""
  missing = batch_size - len(examples)
  filled = list(examples) + [examples[-1]] * missing
  batch = {key: np.stack([e[key] for e in filled]) for key in examples[0]}
  batch["_mask"] = np.arange(batch_size) < len(examples)
  batch["concept"] = np.where(
    batch["_mask"], batch["concept"], np.int32(-1)
  ).astype(np.int32)
  return batch


def _limited(source: sources.RandomAccessSource, limit: int | None) -> int:
  """How many examples `limit` leaves; there is always one."""
  if limit is not None and limit < 1:
    raise errors.UserError(f"limit must be 1 or more, not {limit}.")
  return len(source) if limit is None else min(limit, len(source))


def _num_threads() -> int:
  return max(1, os.cpu_count() or 1)


def _closing(iterator) -> Iterator[Batch]:
  """`iterator`, whose threads end with the loop that reads it."""
  try:
    yield from iterator
  finally:
    iterator.close()

"""What a model reads: a data set at its size, in its task's layout."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import ml_collections
import numpy as np

from comp_jax import errors
from comp_jax.data import images, pipelines, sources, texts, tokenizers
from comp_jax.tasks import task as task_lib

# What examples of some data sets have beside an image and captions.
_EXTRAS = {
  "label": "labels",
  "image2": "pairs of images",
  "references": "captions to score by",
  "answers": "answers",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """A data set at the size a model wants.

  Attributes:
    splits: sources by name.
    tokenizer: text to ids.
    image_size: pixels.
    text_length: tokens.
    augment: of training images and texts.
    seed: of the order and the augmentation.
    layout: what is read of the texts.
  """

  splits: Mapping[str, sources.RandomAccessSource]
  tokenizer: tokenizers.TextTokenizer
  image_size: int
  text_length: int
  augment: images.AugmentSpec
  seed: int
  layout: texts.Layout = texts.Layout()

  def train(
    self, batch_size: int, chunk: int, first_step: int = 0
  ) -> Callable[[int], Iterator[Mapping]]:
    """A start chunk to an iterator over [chunk, b, ...] batches.

    Args:
      batch_size: examples per step.
      chunk: steps per yielded dict.
      first_step: step of the data stream that chunk 0 begins at.
    """
    batches = pipelines.train_batches(
      self.splits["train"],
      self.tokenizer,
      batch_size=batch_size,
      image_size=self.image_size,
      text_length=self.text_length,
      seed=self.seed,
      augment=self.augment,
      layout=self.layout,
    )
    return lambda start: pipelines.stage_iterator(
      batches, start=first_step + start * chunk, steps_per_stage=chunk
    )

  def evaluation(
    self, split: str, batch_size: int, limit: int | None = None
  ) -> pipelines.EvalBatches:
    """The padded batches of the first `limit` examples of a split."""
    return pipelines.eval_batches(
      self.splits[split],
      self.tokenizer,
      batch_size=batch_size,
      image_size=self.image_size,
      text_length=self.text_length,
      limit=limit,
      layout=self.layout,
    )

  def examples(self, split: str, limit: int) -> dict[str, np.ndarray]:
    """The first `limit` examples with their first caption each."""
    batch = pipelines.load_examples(
      self.splits[split],
      self.tokenizer,
      image_size=self.image_size,
      text_length=self.text_length,
      limit=limit,
      layout=self.layout,
    )
    batch = {k: v for k, v in batch.items() if k != "_mask"}
    for key in ("text_ids", "text_mask"):
      batch[key] = batch[key][:, 0]
    return batch


def read_by(data: Data, task: task_lib.Task, name: str) -> Data:
  """The data, their texts laid out as a task reads them.

  Args:
    data: as they were opened.
    task: the model's.
    name: of the data set, for the message.

  Raises:
    UserError: data that cannot be used for what the model does.
  """
  have = _EXTRAS.keys() & data.splits["train"][0].keys()
  wrong = sorted(have ^ task.needs)
  if wrong:
    has = " and ".join(
      f"{'has' if key in have else 'has no'} {_EXTRAS[key]}" for key in wrong
    )
    raise errors.UserError(
      f"config.data.name: {name} {has}, and the model's task is {task.name}: "
      "choose other data, or another model (config.model.preset, "
      "config.checkpoint)"
    )
  layout = task.layout
  length = layout.prompt_tokens + 1
  _, mask = data.tokenizer.encode([layout.prompt], length + 1)
  # With the token that ends a text.
  if np.sum(mask) != length:
    raise errors.UserError(
      f"{task.name} begins its texts with {layout.prompt!r}, and to the model's"
      " tokenizer these are not single words: take BERT's vocabulary"
    )
  return dataclasses.replace(data, layout=layout)


def open_data(
  config: ml_collections.ConfigDict,
  tokenizer: tokenizers.TextTokenizer | None,
) -> Data:
  """The data of a config.

  Args:
    config: the experiment.
    tokenizer: of the model; None trains one on the training texts.

  Raises:
    UserError: missing data, a split that they do not have, one that has no
      answers to learn or to report, or one that is both trained and chosen or
      reported on.
  """
  name = config.data.name
  splits = sources.open_source(name, dir=config.data.dir or None)
  reported, trained = config.data.report_splits, config.data.train_on
  for split in ("train", "select", *reported, *trained):
    check_split(splits, split, name)
    lacking = splits["train"][0].keys() - splits[split][0].keys()
    if wanted := [_EXTRAS[key] for key in sorted(lacking & _EXTRAS.keys())]:
      field, use = ("train_on", "learnt from")
      if split in reported:
        field, use = ("report_splits", "measured on")
      raise errors.UserError(
        f"config.data.{field}: {split} of {name} has no "
        f"{' and '.join(wanted)}, so nothing can be {use} it"
      )
  if not trained:
    raise errors.UserError("config.data.train_on names no split")
  # Reporting on `train` is allowed, choosing on what was trained on is not.
  both = sorted(({"select", *reported} - {"train"}) & set(trained))
  if both:
    raise errors.UserError(
      f"config.data.train_on: {', '.join(both)} would be trained on, and "
      "choices or reports need data that were not"
    )
  joined = sources.Joined([splits[split] for split in trained])
  splits = {**splits, "train": joined}
  if tokenizer is None:
    words = _words(splits["train"])
    tokenizer = tokenizers.train_wordpiece(words, vocab_size=2048)
  return Data(
    splits=splits,
    tokenizer=tokenizer,
    image_size=config.model.image_size,
    text_length=config.data.text_length,
    augment=images.AugmentSpec(**config.data.augment.to_dict()),
    seed=config.seed,
  )


def check_batches(data: Data, batches: Mapping[str, int]) -> None:
  """Raises a UserError where a training batch is larger than its split.

  Args:
    data: what is trained on.
    batches: config key -> examples per step.
  """
  available = len(data.splits["train"])
  for key, size in batches.items():
    if size > available:
      raise errors.UserError(
        f"config.{key} is {size}, train has only {available} examples"
      )


def check_split(
  splits: Mapping[str, sources.RandomAccessSource], split: str, name: str
) -> None:
  """Raises a UserError where data of this name do not have a split."""
  if split not in splits:
    raise errors.UserError(
      f"{name} has no split {split!r}; there are {', '.join(splits)}. Its "
      f"folder may hold {sources.BUILDERS[name].NEEDS}"
    )


def _words(source: sources.RandomAccessSource) -> Iterator[str]:
  """All texts of a split that a model reads or writes."""
  for index in range(len(source)):
    example = source[index]
    yield from example["captions"]
    yield from example.get("answers", ())

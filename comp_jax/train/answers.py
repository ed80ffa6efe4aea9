"""A model's answers to the questions of a split, and their file."""

import json
import os
import pathlib
from collections.abc import Mapping

import ml_collections

from comp_jax import errors
from comp_jax.interop import atomic, store
from comp_jax.tasks import task as task_lib
from comp_jax.tasks import vqa
from comp_jax.train import evaluation


def answers(
  config: ml_collections.ConfigDict, loaded: store.Loaded, split: str
) -> dict[str, str]:
  """Question id -> answer, ranked or written as the config has it.

  Args:
    config: data, protocol and batch size.
    loaded: a dense or compact model, at its own token counts.
    split: of the config's data.

  Raises:
    UserError: a model of another task or image size, or no such data.
  """
  if loaded.spec.family != "vqa":
    raise errors.UserError(
      f"a {loaded.spec.family} model answers no questions; give one of family "
      "vqa"
    )
  # Nothing is measured: the split's answers may be unknown.
  job = evaluation.opened(config, loaded, [split], measured=False)
  predict = job.evaluator.of(split, loaded.params, job.execution)
  batches = job.data.evaluation(split, config.evaluate.batch_size)
  answering = vqa.answers(task_lib.Options(**config.task.to_dict()))
  ids = (example["id"] for example in batches.examples())
  return dict(zip(ids, answering(predict, batches), strict=True))


def write(path: str | os.PathLike, found: Mapping[str, str]) -> None:
  """Writes the file that the evaluation server takes.

  Args:
    path: a .json file.
    found: question id -> answer. An id of digits is written as a number.

  Raises:
    UserError: the file cannot be written.
  """
  path = pathlib.Path(path)
  rows = [
    {"question_id": int(key) if key.isdigit() else key, "answer": answer}
    for key, answer in found.items()
  ]
  try:
    with atomic.replacing(path) as temporary:
      temporary.write_text(json.dumps(rows), encoding="utf-8")
  except OSError as error:
    raise errors.UserError(
      f"{path}: cannot write the results ({error.strerror or error})"
    ) from error

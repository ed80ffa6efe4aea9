"""A model's answers to the questions of a split, and their file."""

import json
import os
import pathlib
from collections.abc import Mapping

import ml_collections

from comp_jax import errors
from comp_jax.data import tokenizers
from comp_jax.interop import atomic, store
from comp_jax.tasks import task as task_lib
from comp_jax.tasks import vqa
from comp_jax.train import inputs, setup


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
  spec, size = loaded.spec, config.model.image_size
  if spec.family != "vqa":
    raise errors.UserError(
      f"a {spec.family} model answers no questions; give one of family vqa"
    )
  if spec.vision.image_size != size:
    raise errors.UserError(
      f"config.model.image_size is {size}, the model looks at images of "
      f"{spec.vision.image_size} pixels"
    )
  batch = config.evaluate.batch_size
  mesh, _ = setup.mesh_and_rules(config, {"evaluate.batch_size": (batch, 1)})
  task = setup.task_of(config, spec, {})
  config = config.copy_and_resolve_references()
  # Nothing is measured: the split's answers may be unknown.
  config.data.report_splits = ()
  data = inputs.open_data(config, tokenizers.load(loaded.tokenizer_json))
  inputs.check_split(data.splits, split, config.data.name)
  data = inputs.read_by(data, task, config.data.name)
  policies = {tower: loaded.policies.get(tower) for tower in spec.towers}
  predict = setup.Evaluator(task, spec, mesh).of(loaded.params, None, policies)
  batches = data.evaluation(split, batch)
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

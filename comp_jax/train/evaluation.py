"""What a saved model does on a split: its metrics, or its answers."""

import dataclasses

import ml_collections

from comp_jax import errors
from comp_jax.data import pipelines, tokenizers
from comp_jax.interop import store
from comp_jax.tasks import outcomes
from comp_jax.tasks import task as task_lib
from comp_jax.train import inputs, setup


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
  """A split, and the program that runs a model on it.

  Attributes:
    task: what the model does.
    evaluator: the program, on the config's devices.
    policies: the model's own token counts or thresholds, by tower.
    batches: of the split.
  """

  task: task_lib.Task
  evaluator: setup.Evaluator
  policies: dict
  batches: pipelines.EvalBatches


def opened(
  config: ml_collections.ConfigDict,
  loaded: store.Loaded,
  split: str,
  *,
  measured: bool = True,
) -> Opened:
  """A split of the config's data, as the model reads it.

  Args:
    config: data, protocol and batch size.
    loaded: a dense or compact model.
    split: of the config's data.
    measured: False for a split whose answers may be unknown.

  Raises:
    UserError: a model of another task or image size, or no such data.
  """
  spec, size = loaded.spec, config.model.image_size
  if spec.vision.image_size != size:
    raise errors.UserError(
      f"config.model.image_size is {size}, the model looks at images of "
      f"{spec.vision.image_size} pixels"
    )
  batch = config.evaluate.batch_size
  mesh, _ = setup.mesh_and_rules(config, {"evaluate.batch_size": (batch, 1)})
  task = setup.task_of(config, spec, {})
  config = config.copy_and_resolve_references()
  config.data.report_splits = (split,) if measured else ()
  data = inputs.open_data(config, tokenizers.load(loaded.tokenizer_json))
  inputs.check_split(data.splits, split, config.data.name)
  data = inputs.read_by(data, task, config.data.name)
  return Opened(
    task=task,
    evaluator=setup.Evaluator(task, spec, mesh),
    policies={tower: loaded.policies.get(tower) for tower in spec.towers},
    batches=data.evaluation(split, batch),
  )


def evaluate(
  config: ml_collections.ConfigDict, loaded: store.Loaded, split: str
) -> outcomes.Outcomes:
  """The metrics of a model on a split, as the report of its run has them.

  Args:
    config: data, protocol and batch size.
    loaded: a dense or compact model, at its own token counts or thresholds.
    split: of the config's data.

  Raises:
    UserError: see `opened`; or a split on which nothing can be measured.
  """
  job = opened(config, loaded, split)
  return job.evaluator(loaded.params, None, job.policies, job.batches)

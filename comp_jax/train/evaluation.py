"""What a saved model does on splits of data: its metrics, or its answers."""

import dataclasses
from collections.abc import Collection, Sequence

import ml_collections

from comp_jax import errors
from comp_jax.core import execution as execution_lib
from comp_jax.data import hidden, tokenizers
from comp_jax.interop import store
from comp_jax.tasks import outcomes
from comp_jax.train import inputs, setup


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
  """Data as a model reads them, and the program that runs it.

  Attributes:
    config: of the data; its reported splits are those asked for.
    data: laid out as the model's task reads them.
    evaluator: the program, on the config's devices.
    execution: with the model's own token counts or thresholds.
  """

  config: ml_collections.ConfigDict
  data: inputs.Data
  evaluator: setup.Evaluator
  execution: execution_lib.Execution


def opened(
  config: ml_collections.ConfigDict,
  loaded: store.Loaded,
  splits: Sequence[str],
  *,
  measured: bool = True,
  hide: Collection[str] = (),
) -> Opened:
  """The config's data, as the model reads them.

  Args:
    config: data, protocol and batch size.
    loaded: a dense or compact model.
    splits: that are wanted.
    measured: False where their answers may be unknown.
    hide: what the model does not see of the examples (`hidden.PARTS`).

  Raises:
    UserError: a model of another task, image size or length of texts, or no
      such data.
  """
  spec, size = loaded.spec, config.model.image_size
  if spec.vision.image_size != size:
    raise errors.UserError(
      f"config.model.image_size is {size}, the model looks at images of "
      f"{spec.vision.image_size} pixels"
    )
  setup.check_positions(config, spec, "the model")
  batch = config.evaluate.batch_size
  mesh, _ = setup.mesh_and_rules(config, {"evaluate.batch_size": (batch, 1)})
  task = setup.task_of(config, spec, {})
  config = config.copy_and_resolve_references()
  config.data.report_splits = tuple(splits) if measured else ()
  data = inputs.open_data(config, tokenizers.load(loaded.tokenizer_json))
  for split in splits:
    inputs.check_split(data.splits, split, config.data.name)
  if hide:
    blind = {s: hidden.Hidden(data.splits[s], hide) for s in splits}
    data = dataclasses.replace(data, splits={**data.splits, **blind})
  return Opened(
    config=config,
    data=inputs.read_by(data, task, config.data.name),
    evaluator=setup.Evaluator(task, spec, mesh),
    execution=execution_lib.Execution(policies=loaded.policies),
  )


def evaluate(
  config: ml_collections.ConfigDict,
  loaded: store.Loaded,
  splits: Sequence[str],
  hide: Collection[str] = (),
) -> dict[str, outcomes.Outcomes]:
  """The metrics of a model on each split, as the report of its run has them.

  Args:
    config: data, protocol and batch size.
    loaded: a dense or compact model, at its own token counts or thresholds.
    splits: of the config's data.
    hide: what the model does not see of the examples (`hidden.PARTS`).

  Raises:
    UserError: see `opened`; or a split on which nothing can be measured.
    NotFinite: the model says NaN of an example.
  """
  job = opened(config, loaded, splits, hide=hide)
  return job.evaluator(job.config, job.data, loaded.params, job.execution)

"""Dense training: train.py's job."""

import dataclasses
import pathlib

import jax
import ml_collections

from comp_jax import errors
from comp_jax.core import execution as execution_lib
from comp_jax.data import tokenizers
from comp_jax.interop import atomic, pretrained, store, warm_start
from comp_jax.interop import load as load_lib
from comp_jax.models import families, presets, specs
from comp_jax.train import checkpoints as checkpoints_lib
from comp_jax.train import (
  fit,
  inputs,
  metrics,
  preemption,
  ranges,
  rates,
  ridge,
  setup,
)
from comp_jax.train import step as step_lib
from comp_jax.train import workdir as workdir_lib


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict:
  """Trains a dense model; writes `model/` and `metrics.json`.

  Returns:
    {split: {metric: value}} of the trained model.

  Raises:
    UserError: a mistake in the config, the data or the workdir.
    fit.Interrupted: a signal; run again to go on.
  """
  ranges.check(config)
  # Devices first: a batch that does not fit them needs no data to be told.
  mesh, placement = setup.mesh_and_rules(
    config,
    {
      "train.batch_size": (
        config.train.batch_size,
        config.train.microbatches,
      ),
      "evaluate.batch_size": (config.evaluate.batch_size, 1),
    },
  )

  # Data and model.
  data, spec, task, params = _start(config)
  inputs.check_batches(data, {"train.batch_size": config.train.batch_size})
  rules = rates.check(config.train.rates, params)
  objective = step_lib.Objective(
    prunable=rates.freezing(families.prunable(spec), rules),
    loss=task.loss,
    microbatches=config.train.microbatches,
    memory=task.memory(spec),
  )

  # A mistake above leaves no workdir behind.
  with workdir_lib.claim(workdir, setup.plain(config), "train.py"):
    # Training.
    schedule = dataclasses.replace(setup.schedule(config.train), rates=rules)
    with (
      preemption.watch() as watch,
      checkpoints_lib.Checkpoints(workdir / "checkpoints") as checkpoints,
    ):
      params, _ = fit.fit(
        objective,
        params,
        objective.memory.initial(params, jax.random.key(config.seed)),
        execution_lib.DENSE,
        schedule,
        data.train(config.train.batch_size, config.train.chunk),
        mesh=mesh,
        rules=placement,
        checkpoints=checkpoints,
        writer=lambda first: metrics.MetricWriter(workdir, first),
        watch=watch,
        what="train",
      )

    # The model, and what it is worth.
    params = jax.device_get(params)
    store.save(
      workdir / "model",
      params=params,
      spec=spec,
      policies={},
      tokenizer_json=data.tokenizer.to_json(),
      recipe={"name": "dense", "config": setup.plain(config)},
    )
    evaluate = setup.Evaluator(task, spec, mesh)
    found = evaluate(config, data, params)
    results = {split: each.metrics for split, each in found.items()}
    atomic.write_json(workdir / "metrics.json", results)
    return results


def _start(config):
  """The data, the model and its task, the weights that training begins with."""
  batches = {"train.batch_size": config.train.batch_size}
  if config.train.start:
    loaded = setup.load_dense(config, config.train.start, "train.start")
    data = inputs.open_data(config, tokenizers.load(loaded.tokenizer_json))
    task = setup.task_of(config, loaded.spec, batches)
    data = inputs.read_by(data, task, config.data.name)
    return data, loaded.spec, task, loaded.params
  if not config.model.preset:
    raise errors.UserError(
      "config.model.preset is empty: name a model to train, or set "
      "config.train.start to the folder of one"
    )
  if config.train.towers and config.model.pretrained:
    raise errors.UserError(
      "config.train.towers and config.model.pretrained both say what the "
      "towers begin with: set one of them"
    )
  towers = load_lib.load(config.train.towers) if config.train.towers else None
  tokenizer = None
  if towers:
    tokenizer = tokenizers.load(towers.tokenizer_json)
  elif config.model.pretrained:
    tokenizer = tokenizers.minilm()
  data = inputs.open_data(config, tokenizer)
  spec = setup.new_spec(config, data.tokenizer)
  task = setup.task_of(config, spec, batches)
  data = inputs.read_by(data, task, config.data.name)
  return data, spec, task, _initial(config, spec, data, towers)


def _initial(config, spec, data, towers):
  if towers:
    return warm_start.begun_with(spec, towers, config.seed)
  if config.model.pretrained:
    params = pretrained.initial_params(spec, config.seed)
    if config.train.ridge_examples:
      if not isinstance(spec, specs.TwoTowerSpec):
        raise errors.UserError(
          f"config.train.ridge_examples: {config.model.preset} has no "
          "projections to fit; set it to 0"
        )
      batches = data.evaluation(
        "train", config.evaluate.batch_size, config.train.ridge_examples
      )
      params = ridge.aligned(spec, params, batches)
    return params
  if config.model.preset not in presets.FROM_SCRATCH:
    raise errors.UserError(
      f"config.model: {config.model.preset} is trained from its pretrained "
      "weights; set config.model.pretrained=True"
    )
  return families.initial_params(spec, config.seed)

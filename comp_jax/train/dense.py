"""Dense training: train.py's job."""

import pathlib

import jax
import ml_collections

from comp_jax import errors
from comp_jax.data import tokenizers
from comp_jax.interop import atomic, pretrained, store
from comp_jax.models import two_tower
from comp_jax.tasks import retrieval
from comp_jax.train import checkpoints as checkpoints_lib
from comp_jax.train import fit, metrics, preemption, ridge, setup
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
  with workdir_lib.claim(workdir, setup.plain(config)):
    # Devices first: a batch that does not fit them needs no data to be told.
    mesh, rules = setup.mesh_and_rules(
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
    own = tokenizers.minilm() if config.model.pretrained else None
    data = setup.open_data(config, own)
    spec = setup.new_spec(config, data.tokenizer)
    params = _initial(config, spec, data)
    objective = step_lib.Objective(
      prunable=two_tower.prunable(spec),
      loss=retrieval.loss,
      microbatches=config.train.microbatches,
    )

    # Training.
    schedule = setup.schedule(config.train)
    with (
      preemption.watch() as watch,
      checkpoints_lib.Checkpoints(workdir / "checkpoints") as checkpoints,
    ):
      params, _ = fit.fit(
        objective,
        params,
        None,
        schedule,
        data.train(config.train.batch_size, config.train.chunk),
        mesh=mesh,
        rules=rules,
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
    evaluate = setup.Evaluator(spec, mesh)
    results = {
      split: evaluate(
        params, None, None, data.evaluation(split, config.evaluate.batch_size)
      )
      for split in config.data.report_splits
    }
    atomic.write_json(workdir / "metrics.json", results)
    return results


def _initial(config, spec, data):
  if config.model.pretrained:
    params = pretrained.two_tower(spec, config.seed)
    if config.train.ridge_examples:
      batches = data.evaluation(
        "train", config.evaluate.batch_size, config.train.ridge_examples
      )
      params = ridge.aligned(spec, params, batches)
    return params
  if config.model.preset != "tiny":
    raise errors.UserError(
      f"config.model: {config.model.preset} is trained from its pretrained "
      "weights; set config.model.pretrained=True"
    )
  return two_tower.initial_params(spec, config.seed)

"""What both entry points build from a config: model, task, devices."""

import dataclasses
import importlib.metadata
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections

from comp_jax import errors
from comp_jax.core import execution as execution_lib
from comp_jax.data import tokenizers
from comp_jax.interop import load as load_lib
from comp_jax.interop import store, tensors
from comp_jax.models import families, presets, specs, towers
from comp_jax.tasks import library as tasks
from comp_jax.tasks import outcomes
from comp_jax.tasks import task as task_lib
from comp_jax.train import compiled, finite, fit, inputs, sharding

# What evaluation does with a batch by itself.
_ON_HOST = {"concept", "label", "_mask"}
RULES = {
  "replicated": sharding.REPLICATED,
  "fully_sharded": sharding.FULLY_SHARDED,
}


def task_of(
  config: ml_collections.ConfigDict,
  spec: specs.ModelSpec,
  batches: Mapping[str, int],
) -> task_lib.Task:
  """The task of a model, with the config's protocol.

  Args:
    config: the experiment.
    spec: the model.
    batches: name -> training batch size that its memory must fit.
  """
  task = tasks.of(spec, task_lib.Options(**config.task.to_dict()))
  for name, size in batches.items():
    try:
      task.memory(spec).check(size)
    except errors.UserError as error:
      raise errors.UserError(f"config.{name}: {error}") from error
  return task


def model_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Encoder options of a config; they change no parameter's shape."""
  return {
    "granularity": config.model.granularity,
    "dtype": config.model.dtype,
    "remat": config.model.remat,
    "unroll": config.model.unroll,
  }


def new_spec(
  config: ml_collections.ConfigDict, tokenizer: tokenizers.TextTokenizer
) -> specs.ModelSpec:
  """The spec of the config's preset, for this tokenizer."""
  options = model_options(config)
  options["image_size"] = config.model.image_size
  options["max_length"] = config.data.text_length
  if config.model.preset in presets.FROM_SCRATCH:
    options["vocab_size"] = tokenizer.vocab_size
  try:
    spec = presets.spec(config.model.preset, **options)
  except (TypeError, ValueError) as error:
    raise errors.UserError(f"config.model: {error}") from error
  check_positions(config, spec, config.model.preset)
  return spec


def load_dense(
  config: ml_collections.ConfigDict, path: str, field: str = "checkpoint"
) -> store.Loaded:
  """A dense checkpoint, checked against a config and its preset.

  Args:
    config: the experiment.
    path: folder or file of the checkpoint.
    field: where the config names it.

  Raises:
    UserError: missing, corrupt, not finite, compact already, or of another
      architecture (every mismatch is listed).
  """
  if not path:
    raise errors.UserError(
      f"config.{field} is empty: give the folder of a dense model, such as "
      "the `model` folder that train.py wrote"
    )
  size = config.model.image_size
  try:
    loaded = load_lib.load(path, image_size=size)
  except errors.UserError as error:
    raise errors.UserError(f"config.{field}: {error}") from error
  broken, count = finite.first(loaded.params)
  if count:
    raise errors.UserError(
      f"config.{field}: {path} holds numbers that are not finite, in {count} "
      f"of its arrays, the first {broken}; give a model that did not diverge"
    )
  if loaded.tokenizer_json in ("", "{}"):
    raise errors.UserError(
      f"{path} brings no tokenizer: put its tokenizer.json into the folder, or "
      "run python -m comp_jax convert with --tokenizer"
    )
  tokenizer = tokenizers.load(loaded.tokenizer_json, f"the tokenizer of {path}")
  if not towers.is_dense(loaded.spec):
    raise errors.UserError(
      f"{path} holds a compact model, and a dense one is "
      "needed: give the folder that train.py wrote"
    )
  if config.model.preset:
    wanted = _with_positions(new_spec(config, tokenizer), loaded.spec)
    shapes = families.param_shapes(wanted)
    tensors.check_tree(loaded.params, shapes, f"config.{field}: {path}")
  if loaded.spec.vision.image_size != size:
    raise errors.UserError(
      f"config.model.image_size is {size}, the model of {path} "
      f"was made for {loaded.spec.vision.image_size} pixels"
    )
  check_positions(config, loaded.spec, path)
  spec = specs.with_encoders(loaded.spec, **model_options(config))
  return dataclasses.replace(loaded, spec=spec)


def check_positions(
  config: ml_collections.ConfigDict, spec: specs.ModelSpec, where: str
) -> None:
  """Raises a UserError where texts or answers are longer than the model's."""
  lengths = {
    "text": ("data.text_length", config.data.text_length),
    "answer": ("task.answer_length", config.task.answer_length),
  }
  for tower in spec.towers[1:]:
    (name, length), positions = lengths[tower], getattr(spec, tower).max_length
    if positions < length:
      raise errors.UserError(
        f"config.{name} is {length}, the {tower} tower of {where} has "
        f"{positions} positions"
      )


def _with_positions(
  spec: specs.ModelSpec, other: specs.ModelSpec
) -> specs.ModelSpec:
  """The spec with the positions of another one's towers.

  More of them than the texts need are no other architecture.
  """
  sides = {}
  for name in set(spec.towers[1:]) & set(other.towers):
    length = getattr(other, name).max_length
    sides[name] = dataclasses.replace(getattr(spec, name), max_length=length)
  return dataclasses.replace(spec, **sides)


def mesh_and_rules(
  config: ml_collections.ConfigDict, batches: Mapping[str, tuple[int, int]]
) -> tuple[jax.sharding.Mesh, sharding.Rules]:
  """All devices, and the rules of the config.

  Args:
    config: the experiment.
    batches: name -> (batch size, microbatches), checked against the devices.
  """
  if config.sharding not in RULES:
    raise errors.UserError(
      f"config.sharding must be one of {', '.join(RULES)}, not "
      f"{config.sharding!r}"
    )
  mesh = sharding.make_mesh()
  for name, (size, parts) in batches.items():
    try:
      sharding.check_batch(size, mesh, parts)
    except errors.UserError as error:
      raise errors.UserError(f"config.{name}: {error}") from error
  return mesh, RULES[config.sharding]


def schedule(
  section: ml_collections.ConfigDict, extra: int = 0
) -> fit.Schedule:
  """The schedule of a `train` or `finetune` section, `extra` steps longer."""
  return fit.Schedule(
    steps=section.steps + extra,
    chunk=section.chunk,
    learning_rate=section.learning_rate,
    warmup=section.warmup,
    weight_decay=section.weight_decay,
    clip=section.clip,
    decay=section.decay,
    save_every=section.save_every,
  )


class Evaluator:
  """What one model does on any split, compiled once.

  Args:
    task: what is evaluated.
    spec: the model.
    mesh: devices; evaluation batches are split over them.
  """

  def __init__(
    self, task: task_lib.Task, spec: specs.ModelSpec, mesh: jax.sharding.Mesh
  ):
    self._task = task
    self._split = sharding.batch_sharding(mesh)
    self._whole = sharding.replicated(mesh)
    predict = task.predict(spec)

    def checked(*arguments):
      found = predict(*arguments)
      return found, finite.everywhere(found)

    self._predict = compiled.Compiled(checked)

  @property
  def compilations(self) -> int:
    return self._predict.compilations

  def __call__(
    self,
    config: ml_collections.ConfigDict,
    data: inputs.Data,
    params: Mapping,
    execution: execution_lib.Execution = execution_lib.DENSE,
  ) -> dict[str, outcomes.Outcomes]:
    """The metrics of every reported split, and the outcomes of its examples.

    Raises:
      NotFinite: the model says NaN of an example.
    """
    size = config.evaluate.batch_size
    # Once, not for every split.
    fixed = jax.device_put((params, execution), self._whole)
    return {
      split: self._task.evaluate(
        self.of(split, *fixed), data.evaluation(split, size)
      )
      for split in config.data.report_splits
    }

  def of(
    self,
    split: str,
    params: Mapping,
    execution: execution_lib.Execution = execution_lib.DENSE,
  ) -> Callable[..., Any]:
    """What the model says of an evaluation batch, on all devices.

    Args:
      split: of the batches, to name.
      params: weights.
      execution: masks and token policies.
    """
    fixed = jax.device_put((params, execution), self._whole)

    def predict(batch, *shared):
      arrays = {key: batch[key] for key in batch.keys() - _ON_HOST}
      arrays = jax.device_put(arrays, self._split)
      shared = jax.device_put(shared, self._whole)
      found, sound = self._predict(*fixed, arrays, *shared)
      # Ranks and ids would hide NaN. Tasks wait for the arrays anyway.
      if not sound:
        raise finite.NotFinite(
          f"evaluation: the outputs on split {split} are not finite: the model "
          "has diverged; train or prune it anew at a lower learning rate"
        )
      return found

    return predict


def versions() -> dict[str, str]:
  """Versions of what the numbers depend on."""
  names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
  return {
    "comp_jax": importlib.metadata.version("comp_jax"),
    **{name: importlib.metadata.version(name) for name in names},
  }


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as nested plain dicts."""
  return config.to_dict()


def folder(workdir: pathlib.Path, name: str) -> pathlib.Path:
  """A subfolder of the workdir, made when missing."""
  path = workdir / name
  path.mkdir(parents=True, exist_ok=True)
  return path

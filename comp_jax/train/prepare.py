"""Everything a pruning run needs, checked before anything is written."""

import dataclasses
from collections.abc import Mapping

import jax
import ml_collections
import numpy as np
import optax

from comp_jax import errors
from comp_jax.data import tokenizers
from comp_jax.interop import store
from comp_jax.models import families, specs
from comp_jax.recipes import library
from comp_jax.recipes import recipe as recipe_lib
from comp_jax.tasks import task as task_lib
from comp_jax.train import (
  costs,
  fit,
  inputs,
  ranges,
  search,
  setup,
  sharding,
)
from comp_jax.train import settings as settings_lib
from comp_jax.train import stage as stage_lib
from comp_jax.train import state as state_lib
from comp_jax.train import step as step_lib

# Rows of the main table, in the order of a run.
ROWS = (
  "dense",
  "masked",
  "compacted",
  "finetuned",
  "finetuned_threshold",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What a pruning run works with.

  Attributes:
    config: the experiment.
    dense: the dense model.
    task: what it does.
    data: training and evaluation data.
    select: validation examples [chunks, c, ...].
    stage: the functions of the search.
    plan: its lengths.
    warnings: what the config asks for and does not get, sentences.
    mesh: devices.
    rules: where the state lives.
  """

  config: ml_collections.ConfigDict
  dense: store.Loaded
  task: task_lib.Task
  data: inputs.Data
  select: Mapping[str, np.ndarray]
  stage: stage_lib.Stage
  plan: search.Plan
  warnings: list[str]
  mesh: jax.sharding.Mesh
  rules: sharding.Rules

  @property
  def spec(self) -> specs.ModelSpec:
    return self.dense.spec

  def initial(self, params: Mapping, select: Mapping) -> state_lib.SearchState:
    """The state of the dense model with these weights; traceable."""
    return self.stage.initial(params, select, self.config.seed)


def prepare(config: ml_collections.ConfigDict) -> Job:
  """Everything a run needs, checked before anything is written.

  Raises:
    UserError: a mistake in the config, the checkpoint or the data.
  """
  ranges.check(config)
  recipe = recipe_of(config)
  chunk, whose = min(
    (config.prune.validation_chunk, "prune.validation_chunk"),
    (config.prune.validation, "prune.validation"),
    key=lambda named: named[0],
  )
  mesh, rules = setup.mesh_and_rules(
    config,
    {
      "prune.batch_size": (config.prune.batch_size, config.prune.microbatches),
      "finetune.batch_size": (
        config.finetune.batch_size,
        config.finetune.microbatches,
      ),
      whose: (chunk, 1),
      "evaluate.batch_size": (config.evaluate.batch_size, 1),
    },
  )
  unknown = [row for row in config.evaluate.rows if row not in ROWS]
  if unknown or "dense" not in config.evaluate.rows:
    raise errors.UserError(
      f"config.evaluate.rows must hold dense, and others of {', '.join(ROWS)},"
      f" not {tuple(config.evaluate.rows)}"
    )
  dense = setup.load_dense(config, config.checkpoint)
  task = setup.task_of(
    config,
    dense.spec,
    {
      "prune.batch_size": config.prune.batch_size,
      "finetune.batch_size": config.finetune.batch_size,
    },
  )
  if config.prune.metric not in task.metrics:
    raise errors.UserError(
      f"config.prune.metric must be one of {', '.join(task.metrics)}, not "
      f"{config.prune.metric!r}"
    )
  data = inputs.open_data(config, tokenizers.load(dense.tokenizer_json))
  data = inputs.read_by(data, task, config.data.name)
  sections = ("prune", "finetune")
  inputs.check_batches(
    data, {f"{name}.batch_size": config[name].batch_size for name in sections}
  )
  available = len(data.splits["select"]) // chunk * chunk
  if not available:
    raise errors.UserError(
      f"config.{whose} is {chunk}, select has only "
      f"{len(data.splits['select'])} examples"
    )
  used = min(config.prune.validation // chunk * chunk, available)
  warnings = []
  if used < config.prune.validation:
    warnings.append(
      f"config.prune.validation asks for {config.prune.validation} examples: "
      f"modes are chosen on {used}, whole chunks of {chunk} (config.prune."
      f"validation_chunk) of the {len(data.splits['select'])} in select"
    )
  examples = data.examples("select", used)
  select = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), examples)
  prunable = families.prunable(
    dense.spec,
    min_heads=config.model.min_heads,
    min_neurons=config.model.min_neurons,
  )
  allowed = tuple(config.prune.modes) or prunable.modes
  unknown = [mode for mode in allowed if mode not in prunable.modes]
  if unknown:
    raise errors.UserError(
      f"config.prune.modes: the model has no mode "
      f"{', '.join(map(str, unknown))}; it has "
      f"{', '.join(prunable.modes)}"
    )
  valid = costs.valid_tokens(dense.spec, select)
  target = 1.0 - config.ratio
  stage = stage_lib.Stage(
    objective=step_lib.Objective(
      prunable=prunable,
      loss=task.loss,
      policy=recipe.policy,
      microbatches=config.prune.microbatches,
      memory=task.memory(dense.spec),
    ),
    metric=task.metrics[config.prune.metric],
    recipe=recipe,
    optimizer=optimizer(config, config.prune.learning_rate),
    settings=settings_lib.Settings(
      dense_macs=costs.static_macs(dense.spec, valid, None),
      target=target,
      stage_macs=config.ratio / config.prune.num_stages,
      calibration=min(config.prune.calibration, used),
      least_step=config.prune.least_step,
      max_stages=config.prune.max_stages if config.prune.keep_pace else None,
      cost=config.prune.cost,
    ),
    allowed=allowed,
    side_by_side=mesh.devices.flat[0].platform != "cpu",
  )
  job = Job(
    config=config,
    dense=dense,
    task=task,
    data=data,
    select=select,
    stage=stage,
    plan=search.Plan(
      warmup_stages=config.prune.warmup_stages,
      max_stages=config.prune.max_stages,
      save_every=config.prune.save_every,
      parts=_parts(config, stage),
    ),
    warnings=warnings,
    mesh=mesh,
    rules=rules,
  )
  units = set(stage.modes) & set(prunable.param_modes)
  scored = recipe.estimator.kind != "none"
  if units and scored and not config.prune.warmup_stages:
    raise errors.UserError(
      "config.prune.warmup_stages must be 1 or more, not 0: the first stage "
      f"selects units by {recipe.score} scores, which the warm-up gathers"
    )
  floor = costs.floor(job.stage, valid)
  if floor > target:
    raise errors.UserError(
      f"config.ratio={config.ratio} is beyond what {recipe.name} can remove: "
      f"with {', '.join(job.stage.modes) or 'no mode'} at the floors (config."
      f"model.min_heads, min_neurons) {floor:.1%} of the dense MACs are left; "
      f"the ratio can be at most {costs.most(floor):.3f}"
    )
  if told := hurried(stage, valid, config.prune.max_stages):
    warnings.append(told)
  return job


def hurried(
  stage: stage_lib.Stage, valid: Mapping[str, np.ndarray], stages: int
) -> str:
  """What to tell of a search that has few stages for its ratio; or nothing."""
  # Nobody looks farther than twice as many: the target may be at a floor.
  needed = costs.fewest_stages(stage, valid, 2 * stages)
  if needed <= stages:
    return ""
  ratio = 1.0 - float(stage.settings.target)
  what = "what is left in the end goes at once, untrained"
  grow = stage.settings.max_stages is not None
  # Where `stage_macs` is the limit no share of a mode makes a step larger.
  if grow and costs.fewest_stages(stage, valid, 2 * stages, 1.0) <= stages:
    what = "they take a larger part than that"
  return (
    f"config.prune.max_stages is {stages}: a search for a ratio of {ratio:.3g} "
    f"needs about {needed} stages, more where it tries small modes, if each "
    f"takes at most {settings_lib.STAGE_SHARE:.0%} of what its mode has left; "
    f"{what}"
  )


def optimizer(
  config: ml_collections.ConfigDict, learning_rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
  """The search's optimiser, at this rate once it is warm.

  Adam's first steps have the same size in every weight, whatever the gradient:
  the rate rises while nothing is pruned yet.
  """
  steps = config.prune.warmup_stages * config.prune.stage_steps
  rising = optax.linear_schedule(
    0.0 if steps else learning_rate, learning_rate, steps
  )
  prune = config.prune
  return fit.adamw(rising, prune.weight_decay, prune.clip, prune.decay)


def part_steps(config: ml_collections.ConfigDict) -> int:
  """Steps whose batches go to the devices at once."""
  steps = config.prune.stage_steps
  return min(config.prune.chunk or steps, steps)


def _parts(config, stage: stage_lib.Stage) -> int:
  """In how many parts the batches of a stage come."""
  steps, chunk = config.prune.stage_steps, part_steps(config)
  if steps % chunk:
    raise errors.UserError(
      f"config.prune.chunk is {chunk}, which does not divide "
      f"config.prune.stage_steps, {steps}; 0 takes a stage's batches at once"
    )
  if chunk < steps and stage.paired:
    raise errors.UserError(
      "config.prune.cost=paired trains twice on the batches of a stage: they "
      "must be there at once (config.prune.chunk=0), or choose another cost"
    )
  return steps // chunk


def recipe_of(config: ml_collections.ConfigDict) -> recipe_lib.Recipe:
  """The recipe of a config.

  Raises:
    UserError: no such recipe, or fields that do not go together.
  """
  fields = config.recipe.to_dict()
  try:
    recipe = library.build(
      fields.pop("name"), estimator=fields.pop("estimator"), overrides=fields
    )
  except ValueError as error:
    raise errors.UserError(f"config.recipe: {error}") from error
  if config.model.granularity == "channel" and recipe.cit:
    raise errors.UserError(
      "config.recipe.cit gates heads, and with "
      "config.model.granularity=channel the gates of a layer are all equal: "
      "set config.recipe.cit=False or granularity=head"
    )
  return recipe

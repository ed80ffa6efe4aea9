"""What a pruning run would do: costs, floors and memory, without a step."""

import jax
import ml_collections
import rich.console
import rich.table

from comp_jax.models import families
from comp_jax.train import costs, prepare, stepper


def show(config: ml_collections.ConfigDict) -> None:
  """Prints what each mode can remove, the floors, steps and memory."""
  job = prepare.prepare(config)
  console = rich.console.Console()
  dense = job.stage.settings.dense_macs
  valid = costs.valid_tokens(job.spec, job.select)
  state = jax.eval_shape(job.initial, job.dense.params, job.select)
  policy = job.stage.objective.policy
  removable = costs.removable(job.stage, valid)
  table = rich.table.Table(title=f"{config.name}: what each mode can remove")
  table.add_column("mode")
  table.add_column("alone, of dense MACs", justify="right")
  for mode, fraction in zip(job.stage.prunable.modes, removable, strict=True):
    off = mode not in job.stage.modes
    table.add_row(mode, "off" if off else f"{float(fraction):.1%}")
  console.print(table)
  floor = costs.floor(job.stage, valid)
  batches = _batches(job)
  # Of the programs that run then.
  run = stepper.Stepper(
    job.stage, job.plan.parts, job.mesh, job.rules, state, job.select
  )
  needed = run.memory_bytes(state, batches, job.select)
  lines = {
    "dense MACs per example": f"{dense / 1e6:.1f} M",
    "dense parameters": f"{families.params_count(job.spec):,}",
    "target": f"{job.stage.settings.target:.1%} of dense",
    "floor of all modes together": f"{floor:.1%} of dense",
    "floors per layer": (
      f"{config.model.min_heads} heads, {config.model.min_neurons} neurons, "
      + (
        "half of the tokens that enter"
        if policy.halves
        else f"{policy.least} token{'s' * (policy.least > 1)}"
      )
      + " beside the protected ones"
    ),
    "stages": (
      f"{config.prune.warmup_stages} to warm up, about "
      f"{config.prune.num_stages}, at most {config.prune.max_stages}"
    ),
    "steps per stage": str(config.prune.stage_steps),
    "fine-tuning steps": (
      f"{config.finetune.steps}, and those of unused stages"
    ),
    "search state": f"{_bytes(state) / 2**20:.0f} MiB",
    "batches on the devices": (
      f"{_bytes(batches) / 2**20:.0f} MiB"
      # One part trains, another one is copied meanwhile.
      + " twice" * (job.plan.parts > 1)
    ),
    "temporaries of a stage, on each device": f"{needed / 2**20:.0f} MiB",
  }
  for warning in job.warnings:
    console.print(warning, highlight=False)
  for name, value in lines.items():
    console.print(f"{name}: {value}", highlight=False)


def _bytes(tree) -> int:
  return sum(
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
  )


def _batches(job: prepare.Job) -> dict[str, jax.ShapeDtypeStruct]:
  """The batches that go to the devices at once."""
  shape = prepare.part_steps(job.config), job.config.prune.batch_size
  return {
    key: jax.ShapeDtypeStruct((*shape, *value.shape[1:]), value.dtype)
    for key, value in job.data.examples("select", 1).items()
  }

"""A two-tower model and data small enough to search in seconds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from comp_jax.models import families, specs
from comp_jax.recipes import library
from comp_jax.tasks import retrieval
from comp_jax.train import costs, fit, state, step
from comp_jax.train import settings as settings_lib
from comp_jax.train import stage as stage_lib

STEPS, BATCH, VALIDATION = 2, 8, 16


def spec(**options) -> specs.TwoTowerSpec:
  options = {"width": 16, "depth": 2, "heads": 4, "mlp": 48, **options}
  return specs.TwoTowerSpec(
    vision=specs.VitSpec(
      image_size=16,
      patch_size=4,
      encoder=specs.encoder(norm_first=True, norm_eps=1e-6, **options),
    ),
    text=specs.BertSpec(
      vocab_size=40,
      max_length=10,
      sep_id=3,
      encoder=specs.encoder(norm_first=False, norm_eps=1e-12, **options),
    ),
    joint_width=8,
  )


def pairs(count: int, seed: int) -> dict[str, np.ndarray]:
  """Pictures whose colour their text names."""
  rng = np.random.default_rng(seed)
  concept = rng.integers(0, 30, count).astype(np.int32)
  colour = np.stack([concept * 8, 255 - concept * 8, concept * 3], axis=-1)
  noise = rng.integers(-20, 20, (count, 16, 16, 3))
  image = np.clip(colour[:, None, None] + noise, 0, 255).astype(np.uint8)
  ids = np.zeros((count, 10), np.int32)
  lengths = rng.integers(4, 10, count)
  for row, length in enumerate(lengths):
    ids[row, :length] = concept[row] + 5
    ids[row, 0], ids[row, length - 1] = 2, 3
  mask = np.arange(10)[None] < lengths[:, None]
  return {
    "image": image,
    "text_ids": ids,
    "text_mask": mask,
    "concept": concept,
  }


def select() -> dict[str, jax.Array]:
  shape = (2, VALIDATION // 2)
  return {
    k: jnp.asarray(v.reshape(*shape, *v.shape[1:]))
    for k, v in pairs(VALIDATION, 1).items()
  }


def batches(start: int):
  """Stacked training batches from a stage on, endless."""
  index = start
  while True:
    batch = pairs(STEPS * BATCH, 100 + index)
    yield {
      k: jnp.asarray(v.reshape(STEPS, BATCH, *v.shape[1:]))
      for k, v in batch.items()
    }
    index += 1


@functools.cache
def make_stage(
  recipe: str = "comp",
  ratio: float = 0.5,
  stages: int = 4,
  model: specs.TwoTowerSpec | None = None,
  allowed: tuple[str, ...] | None = None,
  cost: str = "eq8",
  **overrides,
) -> stage_lib.Stage:
  """A stage, the same one for the same arguments: JAX traces it once."""
  model = spec() if model is None else model
  built = library.build(recipe, overrides)
  return stage_lib.Stage(
    objective=step.Objective(
      prunable=families.prunable(model, min_neurons=4),
      loss=retrieval.loss,
      policy=built.policy,
    ),
    metric=lambda output, batch: -retrieval.loss(output, batch),
    recipe=built,
    optimizer=fit.adamw(1e-3, 0.05, 1.0),
    settings=settings_lib.Settings(
      dense_macs=costs.static_macs(
        model, costs.valid_tokens(model, select()), None
      ),
      target=1.0 - ratio,
      stage_macs=ratio / stages,
      calibration=VALIDATION,
      bisections=10,
      cost=cost,
    ),
    allowed=allowed,
  )


def initial(
  stage: stage_lib.Stage, model: specs.TwoTowerSpec | None = None, seed: int = 0
) -> state.SearchState:
  model = spec() if model is None else model
  params = families.initial_params(model, 0)
  return jax.jit(stage.initial, static_argnums=2)(params, select(), seed)


def weightless(stage: stage_lib.Stage, lengths: dict) -> state.SearchState:
  """The state of a dense model that shows its token counts, no weights.

  Args:
    stage: of the search.
    lengths: tokens of each example at the input of each tower.
  """
  prunable = stage.prunable
  layers = {g.name.split("/")[0]: g.layers for g in prunable.groups}
  counts = {
    tower: jnp.asarray(
      np.repeat(np.array(n)[:, None], layers[tower] + 1, axis=1), jnp.int32
    )
    for tower, n in lengths.items()
  }
  return state.initial(
    prunable,
    {},
    stage.optimizer,
    {},
    stage.recipe.estimator,
    counts,
    jnp.zeros(()),
    seed=0,
  )


def same_bits(a, b) -> None:
  """Asserts that two states are equal, bit for bit."""

  def data(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)

  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(data(x), data(y)), a, b
  )

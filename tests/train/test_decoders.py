"""A model whose last tower is a decoder, searched stage by stage."""

import jax
import jax.numpy as jnp
import numpy as np

from comp_jax.core import compact
from comp_jax.core.tokens import TokenPolicy
from comp_jax.models import families, towers
from comp_jax.recipes import library
from comp_jax.tasks import vqa
from comp_jax.train import costs, fit, step
from comp_jax.train import settings as settings_lib
from comp_jax.train import stage as stage_lib
from tests.models import model_kit

MODEL = model_kit.spec(readout="vqa")
COUNT = 8


def _examples(*lead):
  rows = int(np.prod(lead))
  batch = {**model_kit.batch(rows), **model_kit.answers(rows)}
  batch["answer_weight"] = np.tile(np.float32([0.7, 0.3]), (rows, 1))
  batch["answer_weight"][-1, -1] = 0.0
  return {
    key: jnp.asarray(value.reshape(*lead, *value.shape[1:]))
    for key, value in batch.items()
  }


def test_question_answering_is_pruned_to_its_target_in_every_mode():
  select, batches = _examples(2, COUNT // 2), _examples(1, 4)
  recipe = library.build("uniform")
  valid = costs.valid_tokens(MODEL, select)
  dense = costs.static_macs(MODEL, valid, None)
  stage = stage_lib.Stage(
    objective=step.Objective(
      prunable=families.prunable(MODEL, min_neurons=4), loss=vqa.loss
    ),
    metric=lambda output, batch: -vqa.loss(output, batch),
    recipe=recipe,
    optimizer=fit.adamw(1e-3, 0.0, 1.0),
    settings=settings_lib.Settings(
      dense_macs=dense,
      target=0.7,
      stage_macs=0.1,
      calibration=COUNT,
      bisections=8,
    ),
  )
  params = jax.tree.map(jnp.asarray, model_kit.params(MODEL))
  first = jax.jit(stage.initial, static_argnums=2)(params, select, 0)
  # The same cost by masks and counts as by widths and lengths.
  np.testing.assert_allclose(first.macs, 1.0, rtol=1e-5)
  run, state = jax.jit(stage), first
  state, _ = run(state, batches, select, jnp.asarray(False))
  for _ in range(5):
    state, _ = run(state, batches, select, jnp.asarray(True))
  assert float(state.macs) < 0.75
  assert set(state.thetas) == {"vision", "text"}
  assert all(float(theta) > 0 for theta in state.thetas.values())
  # The decoder lost units and no token.
  np.testing.assert_array_equal(state.counts["answer"], first.counts["answer"])
  assert np.any(np.asarray(state.counts["text"]) < first.counts["text"])
  left = compact.units_left(stage.prunable.groups, state.masks)
  groups = {group.name: group for group in stage.prunable.groups}
  assert {"answer/attn", "answer/mlp", "answer/cross"} < set(groups)
  assert sum(left["answer/mlp"]) < groups["answer/mlp"].units * 2

  # Compact, it computes what the masked model does.
  small = towers.compacted(MODEL, left)
  sliced = compact.slice_params(
    jax.device_get(state.params),
    stage.prunable.groups,
    jax.device_get(state.masks),
  )
  policies = {t: TokenPolicy(theta=x) for t, x in state.thetas.items()}
  one = jax.tree.map(lambda x: x[0], select)
  masked, _ = model_kit.apply(
    MODEL, state.params, one, state.masks, policies=policies
  )
  same, _ = model_kit.apply(small, sliced, one, policies=policies)
  np.testing.assert_allclose(
    same["logits"], masked["logits"], rtol=0, atol=1e-4
  )

"""Diagnostics measure the model that the loops prune."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import importance
from comp_jax.models import families
from comp_jax.train import diagnose
from tests.core import reference
from tests.models import model_kit
from tests.train import kit


@pytest.mark.parametrize("readout", ["mean", "cross", "end"])
def test_hidden_units_are_what_eq_3_sums(readout):
  """Their moments are those that the forward pass gathers."""
  spec = model_kit.spec(readout=readout)
  params, batch = model_kit.params(spec), model_kit.batch()
  prunable = families.prunable(spec, min_neurons=4)
  plain = importance.Estimator(kind="wanda", cip=False)
  _, expected = jax.jit(prunable.forward, static_argnums=5)(
    params, batch, None, None, None, plain
  )
  aux, hidden = jax.jit(families.hidden_units, static_argnums=0)(
    spec, params, batch
  )
  for group in prunable.groups:
    tower, name = group.name.split("/")
    block = group.output_slot.path.split("/")[0]
    valid = jnp.asarray(aux[tower]["valid"][0], jnp.float32)
    for layer in range(group.layers):
      np.testing.assert_allclose(
        importance.weighted_moment(hidden[tower][layer][block], valid),
        expected[tower]["moments"][name][layer],
        rtol=1e-4,
        atol=1e-6,
        err_msg=group.name,
      )


@pytest.fixture(scope="module")
def model():
  """Spec, the stage of a search, weights and a batch."""
  stage = kit.make_stage("comp_wanda")
  batch = {k: jnp.asarray(v) for k, v in kit.pairs(6, 3).items()}
  return kit.spec(), stage, families.initial_params(kit.spec(), 0), batch


def test_overlap_compares_each_block_with_the_scores_that_weigh_it(model):
  spec, stage, params, batch = model
  found = diagnose.overlap(spec, stage.prunable, params, batch, 0.3)
  assert list(found) == ["vision/attn", "vision/mlp", "text/attn", "text/mlp"]
  aux, hidden = jax.jit(families.hidden_units, static_argnums=0)(
    spec, params, batch
  )
  for group in stage.prunable.groups:
    tower, name = group.name.split("/")
    magnitude = np.asarray(importance.weight_magnitude(params, group))
    for layer in range(group.layers):
      # Eq. 4: attention is weighed by its own layer's scores, an MLP by the
      # next layer's.
      scored = layer if name == "attn" else min(layer + 1, group.layers - 1)
      block = {"attn": "attention", "mlp": "mlp"}[name]
      x = np.asarray(hidden[tower][layer][block], float)
      shares = reference.dominance(
        x.reshape(*x.shape[:2], -1),
        magnitude[layer].reshape(-1),
        np.asarray(aux[tower]["valid"][0]),
      )
      scores = np.asarray(aux[tower]["scores"][scored])
      each = [
        reference.overlap(shares[b], scores[b], scores[b] > 0, 0.3)
        for b in range(len(scores))
      ]
      overlap, chance = np.mean(each, axis=0)
      assert found[group.name]["overlap"][layer] == pytest.approx(overlap)
      assert found[group.name]["chance"] == pytest.approx(chance)

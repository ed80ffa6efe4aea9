"""Diagnostics measure the model that the loops prune."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import importance, tokens
from comp_jax.core.execution import Execution
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
  _, expected = jax.jit(prunable.forward)(
    params, batch, Execution(estimator=plain)
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


def _token_scores(stage, params, batch, masks, gate):
  policies = {
    tower: tokens.TokenPolicy(gate=gate) for tower in stage.prunable.towers
  }
  forward = jax.jit(stage.prunable.forward)
  _, aux = forward(params, batch, Execution(masks=masks, policies=policies))
  return {tower: np.asarray(aux[tower]["scores"]) for tower in aux}


def _moved(before, after, layer):
  """The mean distortion of the token orders of one layer."""
  pools = before[0] > 0
  return np.mean(
    [
      reference.rank_distortion(before[layer, b][pool], after[layer, b][pool])
      for b, pool in enumerate(pools)
    ]
  )


def test_ranks_move_by_what_the_masked_forward_shows(model):
  _, stage, params, batch = model
  found = diagnose.ranks(stage, params, batch, (0.0, 0.5))
  assert list(found) == ["vision", "text"]
  moment = importance.Estimator(kind="wanda", cip=True)
  forward = jax.jit(stage.prunable.forward)
  policies = {tower: tokens.TokenPolicy() for tower in found}
  _, aux = forward(
    params,
    batch,
    Execution(masks=stage.ones, policies=policies, estimator=moment),
  )
  masks = {}
  for group in stage.prunable.groups:
    tower, name = group.name.split("/")
    mask = np.ones((group.layers, group.units), np.float32)
    if name == "attn":
      # Two of four heads go in every layer.
      score = importance.wanda_score(
        params, group, aux[tower]["moments"]["attn"]
      )
      for layer in range(group.layers):
        mask[layer, np.argsort(score[layer])[:2]] = 0
    masks.setdefault(tower, {})[name] = jnp.asarray(mask)
  dense = _token_scores(stage, params, batch, stage.ones, True)
  gated = _token_scores(stage, params, batch, masks, True)
  # Without CIT heads vote until they are gone.
  going = jax.tree.map(lambda m: jnp.maximum(m, 1e-6), masks)
  plain = _token_scores(stage, params, batch, going, False)
  pairs = {"cit": (dense, gated), "no_cit": (dense, plain)}
  pairs["apart"] = (gated, plain)
  for tower, each in found.items():
    for name, (before, after) in pairs.items():
      np.testing.assert_allclose(each["tokens"][name][0], 0, atol=1e-6)
      expected = [_moved(before[tower], after[tower], i) for i in range(2)]
      np.testing.assert_allclose(
        each["tokens"][name][1], expected, atol=1e-4, err_msg=tower
      )
      assert np.shape(each["neurons"][name]) == (2, 2)
  assert max(found["vision"]["tokens"]["apart"][1]) > 0.01
  assert max(found["vision"]["neurons"]["cit"][1]) > 0.01


def test_influence_is_what_removing_one_unit_moves(model):
  _, stage, params, batch = model
  found = diagnose.influence(stage, params, batch, 0.3, 3)
  shapes = {name: np.shape(each["influence"]) for name, each in found.items()}
  # No layer scores after the last MLP.
  assert shapes == {
    "vision/attn": (2, 3),
    "vision/mlp": (1, 3),
    "text/attn": (2, 3),
    "text/mlp": (1, 3),
  }
  moment = importance.Estimator(kind="wanda", cip=True)
  policies = {tower: tokens.TokenPolicy() for tower in ("vision", "text")}
  forward = jax.jit(stage.prunable.forward)
  _, aux = forward(
    params,
    batch,
    Execution(masks=stage.ones, policies=policies, estimator=moment),
  )
  dense = _token_scores(stage, params, batch, stage.ones, True)["vision"]
  for index, first in ((0, 0), (1, 1)):
    group = stage.prunable.groups[index]
    name = group.name.split("/")[1]
    score = importance.wanda_score(
      params, group, aux["vision"]["moments"][name]
    )
    least = int(np.argmin(score[0]))
    masks = {tower: dict(each) for tower, each in stage.ones.items()}
    masks["vision"][name] = masks["vision"][name].at[0, least].set(0)
    after = _token_scores(stage, params, batch, masks, True)["vision"]
    expected = np.mean([_moved(dense, after, i) for i in range(first, 2)])
    ours = found[group.name]["influence"][0][0]
    assert ours == pytest.approx(expected, abs=1e-4)
    assert ours > 0

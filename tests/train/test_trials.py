"""Trials see what a search would mark, validate and choose."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from comp_jax import errors
from comp_jax.core import importance
from comp_jax.core import masks as masks_lib
from comp_jax.models import families
from comp_jax.train import trials
from tests.train import kit

VALIDATED = kit.VALIDATION // 4  # Examples of a chunk.


@pytest.fixture(scope="module")
def model():
  """The stage of a search, and weights."""
  params = families.initial_params(kit.spec(), 0)
  return kit.make_stage("comp_wanda"), params


def test_damage_is_what_the_search_would_mark_and_validate(model, monkeypatch):
  stage, params = model
  # Each score costs a compilation, each way another.
  names = ("Wanda, CIP", "Wanda", "magnitude")
  scores = {name: trials.SCORES[name] for name in names}
  monkeypatch.setattr(trials, "SCORES", scores)
  monkeypatch.setattr(trials, "STANDARDISATIONS", ("z_layer", "layer_mean"))
  batches, select = next(kit.batches(0)), kit.select()
  shares = (0.0, 0.1)
  found = trials.damage(stage, params, batches, select, "vision_params", shares)
  dense = jax.jit(stage.initial, static_argnums=2)(params, select, 0)
  assert found["dense"] == pytest.approx(float(dense.metric), rel=1e-5)
  assert list(found["metric"]) == list(trials.SCORES)
  for ways in found["metric"].values():
    assert tuple(ways) == trials.STANDARDISATIONS
    for metrics in ways.values():
      assert metrics[0] == pytest.approx(found["dense"], rel=1e-5)
  # Wanda with CIP, as the search gathers it, and without.
  for name, cip in (("Wanda, CIP", True), ("Wanda", False)):
    estimator = importance.Estimator(kind="wanda", cip=cip)
    moments = [
      jax.jit(stage.objective.gradients)(
        params,
        None,
        jax.tree.map(lambda x, i=i: x[i], batches),
        stage.objective.execution(stage.ones, stage.off, estimator),
      )[3]
      for i in range(kit.STEPS)
    ]
    total = importance.empty(stage.prunable.groups, estimator)
    for each in moments:
      total = total.add(each)
    selected = jnp.array([m == "vision_params" for m in stage.prunable.modes])
    marked = stage.mark(
      dataclasses.replace(dense, statistics=total),
      selected,
      jnp.asarray(0.1),
      jax.random.key(0),
    )
    masks = masks_lib.soft(stage.ones, marked, 1.0)
    assert float(stage.macs(masks, dense.counts)) < 0.95
    metric, _ = jax.jit(stage.validate)(params, masks, stage.off, select)
    ways = found["metric"][name]
    assert ways["layer_mean"][1] == pytest.approx(float(metric), rel=1e-4)
    # Another way of comparing layers marks other units.
    assert ways["z_layer"][1] != ways["layer_mean"][1]


def test_a_choice_among_no_modes_is_refused(model):
  stage, params = model
  stage = dataclasses.replace(stage, allowed=())
  select = jax.tree.map(
    lambda x: x.reshape(4, VALIDATED, *x.shape[2:]), kit.select()
  )
  with pytest.raises(errors.UserError, match="no mode can remove"):
    trials.choices(stage, params, next(kit.batches(0)), select, (1, 2))


def test_choices_are_the_trials_of_a_lookahead_on_each_subset(model):
  stage, params = model
  modes = [m for m in stage.prunable.modes if m != "vision_params"]
  stage = dataclasses.replace(stage, allowed=tuple(modes))
  batches = next(kit.batches(0))
  select = jax.tree.map(
    lambda x: x.reshape(4, VALIDATED, *x.shape[2:]), kit.select()
  )
  found = trials.choices(stage, params, batches, select, (1, 2))
  assert found["modes"] == modes
  assert [len(each) for each in found["subsets"].values()] == [4, 2]
  # The second half, as the loop itself has it after a stage without pruning
  # that leaves the weights where they were.
  half = jax.tree.map(lambda x: x[2:], select)
  still = dataclasses.replace(stage, optimizer=optax.set_to_zero())
  warm, _ = jax.jit(still)(
    jax.jit(still.initial, static_argnums=2)(params, half, 0),
    batches,
    half,
    jnp.asarray(False),
  )
  costs = jax.jit(still.probe)(warm, batches, half).strategy.cost
  expected = [costs[stage.prunable.modes.index(mode)] for mode in modes]
  np.testing.assert_allclose(found["subsets"][2][1], expected, rtol=1e-4)
  assert found["subsets"][2][0] != found["subsets"][2][1]

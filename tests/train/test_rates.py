"""Rates by path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax import errors
from comp_jax.core.execution import DENSE
from comp_jax.models import families
from comp_jax.tasks import retrieval
from comp_jax.train import fit, rates, step
from tests.train import kit

RULES = (("vision/.*", 0.0), (".*/mlp/.*", 0.5))


@pytest.fixture(scope="module")
def params():
  return jax.device_get(families.initial_params(kit.spec(), 0))


def _change(params, rules):
  """How far one step moves each array, by path."""
  prunable = rates.freezing(families.prunable(kit.spec()), rules)
  objective = step.Objective(prunable=prunable, loss=retrieval.loss)
  schedule = fit.Schedule(
    steps=4, chunk=1, learning_rate=1e-2, weight_decay=0.0, rates=rules
  )
  optimizer = schedule.optimizer()
  state = (params, optimizer.init(params), {})
  batch = jax.tree.map(lambda x: x[0], next(kit.batches(0)))
  (after, _, _), _ = jax.jit(
    lambda state, batch: objective.advance(optimizer, state, batch, DENSE)
  )(state, batch)
  return {
    jax.tree_util.keystr(keys, simple=True, separator="/"): np.asarray(moved)
    for keys, moved in jax.tree.leaves_with_path(
      jax.tree.map(lambda new, old: new - old, after, params)
    )
  }


def test_a_factor_scales_the_step_and_zero_stops_it(params):
  whole, ruled = _change(params, ()), _change(params, RULES)
  for path, moved in ruled.items():
    if path.startswith("vision/"):
      assert not moved.any(), path
    elif "/mlp/" in path:
      # Adam's first step has one size: half of it, up to weights that the
      # smaller gradient norm (no vision) clips differently.
      np.testing.assert_allclose(
        np.abs(moved).max(), np.abs(whole[path]).max() / 2, rtol=1e-3
      )
    else:
      assert moved.any(), path


def test_a_frozen_tower_has_no_backward_pass(params):
  batch = jax.tree.map(lambda x: x[0], next(kit.batches(0)))

  def flops(rules):
    prunable = rates.freezing(families.prunable(kit.spec()), rules)
    objective = step.Objective(prunable=prunable, loss=retrieval.loss)

    def gradients(trained, batch):
      return jax.grad(
        lambda p: objective.loss(prunable.forward(p, batch, DENSE)[0], batch)
      )(trained)

    compiled = jax.jit(gradients).lower(params, batch).compile()
    return compiled.cost_analysis()["flops"]

  assert flops(RULES) < 0.8 * flops(())


def test_the_first_rule_that_matches_wins(params):
  rules = ((".*/mlp/.*", 1.0), ("vision/.*", 0.0))
  updates = jax.tree.map(jnp.ones_like, params)
  scaled, _ = rates.scaled(rules).update(updates, rates.scaled(rules).init({}))
  layers = scaled["vision"]["encoder"]["layers"]
  assert (layers["mlp"]["up"]["kernel"] == 1).all()
  assert (layers["attention"]["out"]["kernel"] == 0).all()
  assert (scaled["text"]["word_embedding"] == 1).all()


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ((("visoin/.*", 0.0),), "'visoin/.\\*' matches no array.*vision/"),
    ((("vision/(", 0.0),), "no regular expression"),
    ((("vision/.*", -1.0),), "at least 0, not"),
    ((("vision/.*",),), "pairs"),
    (("vision/.*",), "pairs"),
  ],
)
def test_rules_that_do_nothing_are_refused(params, rules, message):
  with pytest.raises(errors.UserError, match=message):
    rates.check(rules, params)

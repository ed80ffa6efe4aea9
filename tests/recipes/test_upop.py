"""UPop with `unit_cost=macs` against a NumPy reading of its pseudo code.

A unit counts its MACs where the authors' code counts 36 and 1 (spec `upop.md`
1.4), so that p is found for the MACs that a stage aims at.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from comp_jax.core import groups as groups_lib
from comp_jax.models import families, presets
from comp_jax.recipes import library
from comp_jax.tasks import retrieval
from comp_jax.train import compiled, step
from comp_jax.train import settings as settings_lib
from comp_jax.train import stage as stage_lib
from tests.train import kit

STAGES = 3


def marked(gradients, heads, macs, need):
  """1 for the units that the pseudo code marks, and whether a head was last.

  Args:
    gradients: accumulated gradient of each mask, name -> [layers, units].
    heads: names of the attention masks.
    macs: of each unit, like `gradients`.
    need: MACs that the marked units must save.
  """
  z = {}
  for names in (heads, gradients.keys() - heads):
    pooled = np.concatenate([gradients[name].ravel() for name in sorted(names)])
    for name in names:
      z[name] = (gradients[name] - pooled.mean()) / pooled.std(ddof=1)
  names = sorted(z)
  flat = np.concatenate([z[name].ravel() for name in names])
  weight = np.concatenate([macs[name].ravel() for name in names])
  is_head = np.concatenate([np.full(z[n].size, n in heads) for n in names])
  order = np.argsort(-flat, kind="stable")
  total = np.cumsum(weight[order])

  def at(p):
    last = np.argmin(np.abs(total - p * total[-1]))
    tau = flat[order][last]
    gone = {
      name: ~((v <= tau) | (v <= v.min(axis=-1, keepdims=True)))
      for name, v in z.items()
    }
    return gone, is_head[order[last - 1]]

  low, high = 0.0, 1.0
  for _ in range(60):
    p = (low + high) / 2
    saved = sum((macs[name] * gone).sum() for name, gone in at(p)[0].items())
    low, high = (low, p) if saved >= need else (p, high)
  return at(high)


def _named(groups, tree):
  return {
    g.name: np.asarray(groups_lib.leaf(tree, g.name), np.float64)
    for g in groups
  }


@pytest.mark.parametrize(
  "make",
  [kit.spec, lambda: presets.spec("tiny_nlvr", vocab_size=40)],
  ids=["two_tower", "nlvr"],
)
@pytest.mark.parametrize("need", [0.1, 0.3])
def test_marked_units_are_those_of_the_pseudo_code(make, need):
  model, recipe = make(), library.build("upop", {"unit_cost": "macs"})
  prunable = families.prunable(model, min_neurons=1)
  stage = stage_lib.Stage(
    objective=step.Objective(prunable=prunable, loss=retrieval.loss),
    metric=retrieval.loss,
    recipe=recipe,
    optimizer=optax.set_to_zero(),
    settings=settings_lib.Settings(
      dense_macs=1.0, target=0.5, stage_macs=0.1, calibration=4
    ),
  )
  images = [model.vision.tokens] * (4 * model.images)
  start = kit.weightless(stage, {"vision": images, "text": [5, 7, 9, 10]})
  dense = float(jax.jit(prunable.macs)(start.masks, start.counts))
  settings = dataclasses.replace(stage.settings, dense_macs=dense)
  stage = dataclasses.replace(stage, settings=settings)
  rng = np.random.default_rng(5)
  scores = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32),
    start.statistics.total,
  )
  start = dataclasses.replace(
    start, statistics=dataclasses.replace(start.statistics, total=scores)
  )
  selected = jnp.asarray([m in stage.modes for m in prunable.modes])
  assert {m for m, on in zip(prunable.modes, selected, strict=True) if on} == (
    set(prunable.param_modes)
  )
  got = jax.jit(stage.mark)(start, selected, jnp.float32(need), start.key)
  expected, head_last = marked(
    {name: -score for name, score in _named(prunable.groups, scores).items()},
    {g.name for g in prunable.groups if g.indivisible},
    _named(
      prunable.groups, jax.jit(prunable.unit_macs)(start.masks, start.counts)
    ),
    need * dense,
  )
  # A head that overshoots is passed over: ours alone ends on a neuron.
  assert not head_last
  for name, gone in expected.items():
    np.testing.assert_array_equal(
      groups_lib.leaf(got, name) > 0, gone, err_msg=name
    )


def test_a_search_is_the_pseudo_code_stage_by_stage():
  """With frozen weights: gradients pile up, units come back, MACs arrive."""
  stage = dataclasses.replace(
    kit.make_stage("upop", ratio=0.3, stages=STAGES, unit_cost="macs"),
    optimizer=optax.set_to_zero(),
  )
  groups, select = stage.prunable.groups, kit.select()
  now = kit.initial(stage)
  dense = stage.settings.dense_macs
  macs = _named(groups, stage.prunable.unit_macs(now.masks, now.counts))
  heads = {g.name for g in groups if g.indivisible}

  @jax.jit
  def gradient(masks, batch):
    def loss(masks):
      output, _ = stage.prunable.forward(
        now.params, batch, stage.objective.execution(masks, now.thetas)
      )
      return retrieval.loss(output, batch)

    return jax.grad(loss)(masks)

  run, source = compiled.Compiled(stage), kit.batches(0)
  params, total, gone = now.params, {}, []
  for index in range(STAGES + 1):
    batches = next(source)
    now, _ = run(now, batches, select, jnp.asarray(index > 0))
    if index:
      share = np.sin(np.pi / 2 * index / STAGES)
      expected, head_last = marked(total, heads, macs, 0.3 * share * dense)
      assert not head_last
      for name, mask in _named(groups, now.masks).items():
        np.testing.assert_allclose(
          mask, np.where(expected[name], 1 - share, 1.0), atol=1e-6
        )
      gone.append(np.concatenate([m.ravel() for m in expected.values()]))
    for i in range(kit.STEPS):
      batch = jax.tree.map(lambda x, i=i: x[i], batches)
      for name, g in _named(groups, gradient(now.masks, batch)).items():
        total[name] = total.get(name, 0.0) + g
  assert run.compilations == 1
  kit.same_bits(now.params, params)
  assert any((a & ~b).any() for a, b in zip(gone[:-1], gone[1:], strict=True))
  assert 0.7 - 2e-3 < float(now.macs) <= 0.7
  settled = jax.jit(stage.settle)(now, select)
  assert set(np.unique(settled.masks["vision"]["mlp"])) == {0.0, 1.0}
  kit.same_bits(settled.masks, now.masks)

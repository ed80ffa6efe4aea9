"""UPop's own update against a NumPy reading of its pseudo code, mask by mask.

Spec `upop.md` 1.3 and 1.4: head channels that all heads share, weights 36 and
1, gradients of real batches, weights that train meanwhile.
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
from comp_jax.tasks import nlvr
from comp_jax.train import compiled, costs, step
from comp_jax.train import settings as settings_lib
from comp_jax.train import stage as stage_lib
from tests.train import kit

STEPS, BATCH, STAGES, RATIO = 2, 4, 4, 0.4
MODEL = presets.spec("tiny_nlvr", vocab_size=40, granularity="channel")


def standardised(gradients, weights):
  """Attention apart from MLPs, over all layers and towers; std is unbiased."""
  z = {}
  for attention in (True, False):
    names = [name for name in gradients if (weights[name] > 1) == attention]
    pooled = np.concatenate([gradients[name].ravel() for name in names])
    for name in names:
      z[name] = (gradients[name] - pooled.mean()) / pooled.std(ddof=1)
  return z


def ranked(z, weights):
  """All units in descending order, and the cumulative sum of their weights."""
  flat = np.concatenate([z[name].ravel() for name in z])
  c = np.concatenate([np.full(z[name].size, weights[name]) for name in z])
  o = np.argsort(-flat, kind="stable")
  return flat[o], np.cumsum(c[o])


def update(z, weights, p, s):
  """The masks after one update: the last two lines of the pseudo code.

  Args:
    z: standardised gradients, name -> [layers, units].
    weights: what a unit of each group counts.
    p: fraction of the weighted units that goes in the end.
    s: how much of it goes now.
  """
  values, total = ranked(z, weights)
  tau = values[np.argmin(np.abs(total - total[-1] * p * s))]
  return {
    name: np.where((v <= tau) | (v <= v.min(axis=-1, keepdims=True)), 1, 1 - s)
    for name, v in z.items()
  }


def saved(masks, macs):
  return sum((macs[name] * (1 - mask)).sum() for name, mask in masks.items())


def largest(z, weights, macs, need):
  """The largest p that saves no more than `need`, by bisection."""
  total = ranked(z, weights)[1]
  low, high = 0, len(total)
  while high - low > 1:
    middle = (low + high) // 2
    masks = update(z, weights, total[middle] / total[-1], 1.0)
    over = saved(masks, macs) > need
    low, high = (low, middle) if over else (middle, high)
  return total[low] / total[-1]


def filled(masks, z, weights, macs, need):
  """The masks without the lowest neurons, one by one, until `need` is saved."""
  masks = {name: mask.copy() for name, mask in masks.items()}
  neurons = sorted(
    (-z[name][i, j], name, i, j)
    for name in z
    if weights[name] == 1
    for i, j in np.argwhere(masks[name] == 1)
    if z[name][i, j] > z[name][i].min()
  )
  for _, name, i, j in neurons:
    if saved(masks, macs) >= need:
      return masks
    masks[name][i, j] = 0
  raise AssertionError("no neuron is left")


def examples(count, seed):
  rng = np.random.default_rng(seed)
  size, length = MODEL.vision.image_size, 10
  mask = np.arange(length)[None] < rng.integers(4, length + 1, count)[:, None]
  arrays = {
    "image": rng.integers(0, 256, (count, 2, size, size, 3)).astype(np.uint8),
    "text_ids": rng.integers(4, 40, (count, length)).astype(np.int32) * mask,
    "text_mask": mask,
    "label": rng.integers(0, 2, count).astype(np.int32),
  }
  return jax.tree.map(jnp.asarray, arrays)


def stacked(rows, count, seed):
  return jax.tree.map(
    lambda x: x.reshape(rows, count, *x.shape[1:]),
    examples(rows * count, seed),
  )


def make_stage(model=MODEL, lengths=(7, 8, 9, 10)):
  recipe = library.build("upop")
  # UPop's floor: a unit of every layer; of no head, 1 channel is left.
  floor = int(model.vision.encoder.granularity == "head")
  valid = {
    "vision": np.full(2 * len(lengths), model.vision.tokens),
    "text": np.array(lengths),
  }
  return stage_lib.Stage(
    objective=step.Objective(
      prunable=families.prunable(model, min_heads=floor, min_neurons=1),
      loss=nlvr.TASK.loss,
      policy=recipe.policy,
    ),
    metric=nlvr.TASK.metrics["loss"],
    recipe=recipe,
    optimizer=optax.adamw(1e-3),
    settings=settings_lib.Settings(
      dense_macs=costs.static_macs(model, valid, None),
      target=1.0 - RATIO,
      stage_macs=RATIO / STAGES,
      calibration=BATCH,
    ),
  )


def _named(groups, tree):
  return {
    g.name: np.asarray(groups_lib.leaf(tree, g.name), np.float64)
    for g in groups
  }


@pytest.mark.parametrize(
  ("granularity", "weight"), [("channel", 36), ("head", 96)]
)
def test_units_are_counted_up_to_a_share_and_layers_keep_their_best(
  granularity, weight
):
  """6 heads of 16 channels count as much as 16 channels of 6 heads."""
  model = presets.spec("tiny_nlvr", vocab_size=40, granularity=granularity)
  stage = make_stage(model)
  groups, dense = stage.prunable.groups, stage.settings.dense_macs
  weights = {g.name: weight if g.indivisible else 1 for g in groups}
  start = kit.weightless(
    stage, {"vision": [model.vision.tokens] * 8, "text": [7, 8, 9, 10]}
  )
  rng = np.random.default_rng(5)
  scores = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32),
    start.statistics.total,
  )
  # Whole layers of low scores.
  scores["vision"]["attn"][2] -= 9
  scores["text"]["mlp"][1] -= 9
  statistics = dataclasses.replace(
    start.statistics, total=jax.tree.map(jnp.asarray, scores)
  )
  start = dataclasses.replace(start, statistics=statistics)
  macs = _named(groups, stage.prunable.unit_macs(start.masks, start.counts))
  z = standardised(
    {name: -score for name, score in _named(groups, scores).items()}, weights
  )
  modes = stage.prunable.modes
  selected = jnp.asarray([mode in stage.modes for mode in modes])
  need = 0.5
  mark = jax.jit(
    lambda share: stage.mark(
      start, selected, jnp.float32(need), start.key, share=share
    )
  )
  p = largest(z, weights, macs, need * dense)
  for share in (0.2, 0.6, 0.97, 1.0):
    expected = update(z, weights, p, share)
    if share == 1.0:
      assert saved(expected, macs) < need * dense
      expected = filled(expected, z, weights, macs, need * dense)
    gone = _named(groups, mark(share))
    for name, mask in expected.items():
      np.testing.assert_array_equal(gone[name] > 0, mask < 1, err_msg=name)
  assert (gone["vision/attn"][2] == 0).sum() == 1
  assert (gone["text/mlp"][1] == 0).sum() == 1
  neuron = max(macs["vision/mlp"].max(), macs["text/mlp"].max())
  assert (
    0 <= sum((macs[n] * gone[n]).sum() for n in gone) - need * dense < (neuron)
  )


def test_a_search_is_the_pseudo_code_mask_by_mask():
  select = stacked(2, BATCH // 2, 1)
  stage = make_stage(
    lengths=np.asarray(select["text_mask"]).sum(axis=-1).ravel()
  )
  groups, dense = stage.prunable.groups, stage.settings.dense_macs
  weights = {g.name: 36 if g.indivisible else 1 for g in groups}
  assert {name for name in weights if weights[name] > 1} == {
    *("vision/attn", "text/attn", "text/cross0", "text/cross1")
  }
  # A channel is one index of all heads.
  assert all(g.units == g.rows[1] for g in groups if g.indivisible)
  now = jax.jit(stage.initial, static_argnums=2)(
    families.initial_params(MODEL, 0), select, 0
  )
  macs = _named(groups, stage.prunable.unit_macs(now.masks, now.counts))
  thetas = now.thetas

  @jax.jit
  def advance(params, optimizer, masks, batch):
    def loss(params, masks):
      output, _ = stage.prunable.forward(
        params, batch, stage.objective.execution(masks, thetas)
      )
      return nlvr.TASK.loss(output, batch)

    slopes, signal = jax.grad(loss, argnums=(0, 1))(params, masks)
    updates, optimizer = stage.optimizer.update(slopes, optimizer, params)
    return optax.apply_updates(params, updates), optimizer, signal

  run, need = compiled.Compiled(stage), RATIO * dense
  total, gone = {}, []
  for index in range(STAGES + 1):
    batches = stacked(STEPS, BATCH, 100 + index)
    # Both begin each stage from the same numbers: Adam's first steps turn the
    # rounding of a small gradient into a whole step, and units whose scores
    # differ by rounding alone rank either way.
    params, optimizer = jax.tree.map(jnp.copy, (now.params, now.optimizer))
    gathered = _named(groups, now.statistics.total)
    now, record = run(now, batches, select, jnp.asarray(index > 0))
    if index:
      for name, score in gathered.items():
        spread = total[name].std()
        np.testing.assert_allclose(
          -score, total[name], rtol=0, atol=1e-4 * spread, err_msg=name
        )
        total[name] = -score
      # However little a mode could remove.
      assert np.flatnonzero(record.selected).tolist() == [0, 1, 2]
      s = np.sin(np.pi / 2 * index / STAGES)
      z = standardised({n: -score for n, score in gathered.items()}, weights)
      expected = update(z, weights, largest(z, weights, macs, need), s)
      if index == STAGES:
        expected = filled(expected, z, weights, macs, need)
      for name, mask in _named(groups, now.masks).items():
        np.testing.assert_allclose(
          mask, expected[name], rtol=0, atol=1e-6, err_msg=name
        )
        assert (mask < 1).any()
      gone.append(np.concatenate([m.ravel() < 1 for m in expected.values()]))
    for i in range(STEPS):
      batch = jax.tree.map(lambda x, i=i: x[i], batches)
      params, optimizer, signal = advance(params, optimizer, now.masks, batch)
      for name, g in _named(groups, signal).items():
        total[name] = total.get(name, 0.0) + g
  assert run.compilations == 1
  # Units come back, and other recipes' target is met.
  assert any((a & ~b).any() for a, b in zip(gone[:-1], gone[1:], strict=True))
  target = stage.settings.target
  assert target * (1 - 5e-3) < float(now.macs) <= target

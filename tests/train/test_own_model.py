"""Pruning a small Flax model of one's own: what docs/own_model.md promises."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import compact, groups, importance
from comp_jax.core import prunable as prunable_lib
from comp_jax.core.execution import Execution
from comp_jax.recipes import library
from comp_jax.train import fit, stage, step
from comp_jax.train import settings as settings_lib

LAYERS, WIDTH, NEURONS = 3, 8, 24


class ResidualMlps(nn.Module):
  """Stacked residual MLPs: nothing of it is a transformer."""

  @nn.compact
  def __call__(self, x, masks=None, probes=None, reduce="signed"):
    shape = (LAYERS, WIDTH, NEURONS)
    draw = nn.initializers.normal(0.5)
    up = self.param("up", draw, shape)
    down = self.param("down", draw, (LAYERS, NEURONS, WIDTH))
    ones = jnp.ones((x.shape[0], 1))
    for layer in range(up.shape[0]):
      z = (x @ up[layer])[:, None]
      if probes is not None:
        z = importance.tap(reduce, z, masks[layer], probes[layer], ones)
      elif masks is not None:
        z = z * masks[layer][None, None]
      x = x + jax.nn.gelu(z[:, 0]) @ down[layer]
    return x


def make_prunable():
  down = groups.Slot(path="down", axis=0)
  group = groups.Group(
    name="net/mlp",
    mode="units",
    scope="layers",
    layers=LAYERS,
    units=NEURONS,
    floor=2,
    rows=(NEURONS,),
    slots=(groups.Slot(path="up", axis=1), down),
    output_slot=down,
  )
  model = ResidualMlps()

  def forward(params, batch, execution):
    net, estimator = execution.of("net"), execution.estimator
    pick = lambda tree: None if tree is None else tree["mlp"]  # noqa: E731
    reduce = "signed" if estimator is None else estimator.reduce
    output = model.apply(
      {"params": params["layers"]},
      batch["x"],
      pick(net.masks),
      pick(net.probes),
      reduce,
    )
    return output, {}

  return prunable_lib.Prunable(
    groups=(group,),
    token_modes={},
    protected={},
    forward=forward,
    tower_counts={},
    macs=lambda masks, counts: 2.0 * WIDTH * jnp.sum(masks["net"]["mlp"]),
  )


def test_a_model_of_ones_own_is_pruned_and_compacted():
  prunable = make_prunable()
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 4, 16, WIDTH)), jnp.float32)
  data = {"x": x, "y": jnp.tanh(x)}
  loss = lambda output, batch: jnp.mean(jnp.square(output - batch["y"]))  # noqa: E731
  search = stage.Stage(
    objective=step.Objective(prunable=prunable, loss=loss),
    metric=lambda output, batch: -loss(output, batch),
    recipe=library.build("comp"),
    optimizer=fit.adamw(1e-2, 0.0, 1.0),
    settings=settings_lib.Settings(
      dense_macs=2.0 * WIDTH * NEURONS * LAYERS,
      target=0.5,
      stage_macs=0.15,
      calibration=4,
    ),
  )
  params = {"layers": ResidualMlps().init(jax.random.key(0), x[0, 0])["params"]}
  select = jax.tree.map(lambda v: v[0], data)
  state = search.initial(params, select, 0)
  run = jax.jit(search)
  state, _ = run(state, data_of(data), select, jnp.asarray(False))
  for _ in range(8):
    state, record = run(state, data_of(data), select, jnp.asarray(True))
  neuron = 1 / (NEURONS * LAYERS)
  assert 0.5 - neuron <= float(state.macs) <= 0.5 + 1e-6

  # Zero mask equals sliced out, with the same group table.
  left = compact.units_left(prunable.groups, state.masks)["net/mlp"]
  assert sum(left) == NEURONS * LAYERS // 2 and min(left) >= 2
  small = compact.slice_params(state.params, prunable.groups, state.masks)
  x = x[0, 0]
  masked, _ = prunable.forward(
    state.params, {"x": x}, Execution(masks=state.masks)
  )
  for layer in range(LAYERS):
    weights = small[f"layers_{layer}"]
    assert weights["up"].shape == (WIDTH, left[layer])
    x = x + jax.nn.gelu(x @ weights["up"]) @ weights["down"]
  assert np.asarray(x) == pytest.approx(np.asarray(masked), abs=1e-5)


def data_of(data):
  return jax.tree.map(lambda v: v[1], data)

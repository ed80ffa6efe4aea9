"""Soft masks, floors and the choice of the lowest units."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from comp_jax.core import groups as groups_lib
from comp_jax.core import masks
from tests.core import reference

FEW = hypothesis.settings(max_examples=60)
UNITS = 32

_mark = jax.jit(masks.mark_lowest)
_removable = jax.jit(masks.removable, static_argnums=2)


def _groups():
  options = dict(layers=3, heads=4, head_width=2, neurons=5, min_neurons=2)
  return (
    *groups_lib.encoder_groups(tower="vision", mode="vision_params", **options),
    *groups_lib.encoder_groups(
      tower="text",
      mode="language_params",
      granularity="channel",
      **{**options, "layers": 2},
    ),
  )


def _units(seed, costly_heads=True):
  """Integers throughout: float32 sums of them are exact."""
  rng = np.random.default_rng(seed)
  indivisible = rng.random(UNITS) < 0.3
  head = int(rng.integers(5, 40)) if costly_heads else 1
  return {
    "score": rng.integers(-6, 7, UNITS).astype(np.float32),
    "eligible": rng.random(UNITS) < 0.8,
    "macs": np.where(indivisible, head, rng.integers(1, 4)).astype(np.float32),
    "indivisible": indivisible,
  }


def _taken(units, need):
  arrays = {k: jnp.asarray(v) for k, v in units.items()}
  return np.asarray(_mark(**arrays, need=jnp.float32(need)))


@FEW
@hypothesis.given(seed=st.integers(0, 10**6), share=st.floats(0.0, 1.1))
def test_marking_is_a_sequential_greedy(seed, share):
  units = _units(seed)
  need = round(share * float(units["macs"][units["eligible"]].sum()))
  expected = reference.greedy_lowest(**units, need=need)
  np.testing.assert_array_equal(_taken(units, need), expected)


@FEW
@hypothesis.given(seed=st.integers(0, 10**6), share=st.floats(0.01, 1.0))
def test_budget_is_met_by_less_than_one_neuron(seed, share):
  units = _units(seed)
  eligible, macs = units["eligible"], units["macs"]
  neurons = eligible & ~units["indivisible"]
  need = round(share * float(macs[eligible].sum()))
  take = _taken(units, need)
  saved = macs[take].sum()
  assert not (take & ~eligible).any()
  assert macs[take & units["indivisible"]].sum() <= need
  # Neurons are all of one size here.
  size = macs[~units["indivisible"]][0]
  assert saved < need + size
  assert saved >= need or (take[neurons]).all()


@pytest.mark.parametrize("need", [0.0, -3.0])
def test_no_need_takes_nothing(need):
  units = _units(1)
  units["macs"][:] = 1e-3
  assert not _taken(units, need).any()


def test_an_overshooting_head_ends_the_heads():
  units = {
    "score": np.arange(6, dtype=np.float32),
    "eligible": np.ones(6, bool),
    "macs": np.array([1, 10, 1, 2, 1, 1], np.float32),
    "indivisible": np.array([False, True, False, True, False, False]),
  }
  # Unit 1 would overshoot; unit 3 would not, and is left out all the same.
  assert np.flatnonzero(_taken(units, 4.0)).tolist() == [0, 2, 4, 5]
  # Exactly enough is no overshoot.
  assert np.flatnonzero(_taken(units, 11.0)).tolist() == [0, 1]


def test_ties_go_to_the_lower_index():
  units = {
    "score": np.zeros(8, np.float32),
    "eligible": np.array([False] + [True] * 7),
    "macs": np.ones(8, np.float32),
    "indivisible": np.zeros(8, bool),
  }
  assert np.flatnonzero(_taken(units, 3.0)).tolist() == [1, 2, 3]


def test_rounding_of_sums_adds_no_unit():
  # 2.3 is no binary fraction: in float32, ten of them sum to less than 23.
  units = {
    "score": np.arange(40, dtype=np.float32),
    "eligible": np.ones(40, bool),
    "macs": np.full(40, 2.3, np.float32),
    "indivisible": np.zeros(40, bool),
  }
  for count in range(1, 40):
    assert _taken(units, 2.3 * count).sum() == count


@FEW
@hypothesis.given(seed=st.integers(0, 10**6), floor=st.integers(0, 7))
def test_floor_protects_the_best_live_units_of_each_layer(seed, floor):
  rng = np.random.default_rng(seed)
  score = rng.integers(-4, 5, (3, 6)).astype(np.float32)
  live = (rng.random((3, 6)) < 0.7).astype(np.float32)
  free = np.asarray(_removable(jnp.asarray(score), jnp.asarray(live), floor))
  for layer in range(3):
    alive = [i for i in range(6) if live[layer, i]]
    best = sorted(alive, key=lambda i: (-score[layer, i], i))
    assert np.flatnonzero(free[layer]).tolist() == sorted(best[floor:])


@pytest.mark.parametrize(
  ("need", "most", "neurons", "taken"),
  [
    # A fifth of what three heads save is less than one: the lowest goes,
    (3.0, 15.0, False, [1]),
    # unless it saves more than there is to save,
    (3.0, 4.0, False, []),
    # or there are neurons that can make up the need.
    (3.0, 15.0, True, [3]),
    (11.0, 15.0, False, [1, 2]),
    (0.0, 15.0, False, []),
  ],
)
def test_few_heads_are_not_stuck(need, most, neurons, taken):
  found = _mark(
    jnp.array([3.0, 1.0, 2.0, 4.0]),
    jnp.array([True, True, True, neurons]),
    jnp.array([5.0, 5.0, 5.0, 4.0]),
    jnp.array([True, True, True, False]),
    jnp.float32(need),
    jnp.float32(most),
  )
  assert np.flatnonzero(found).tolist() == taken


def test_floors_hold_through_selection():
  rng = np.random.default_rng(0)
  score = jnp.asarray(rng.normal(size=(4, 8)), jnp.float32)
  live = jnp.ones((4, 8)).at[2, 3:].set(0.0)
  free = masks.removable(score, live, 2)
  take = masks.mark_lowest(
    score.reshape(-1),
    free.reshape(-1),
    jnp.ones(32),
    jnp.zeros(32, bool),
    jnp.float32(1e9),
  ).reshape(4, 8)
  left = np.asarray(live) * ~np.asarray(take)
  assert left.sum(-1).tolist() == [2, 2, 2, 2]
  for layer in (0, 1, 3):
    best = np.argsort(np.asarray(score[layer]))[-2:]
    assert left[layer][best].all()


def test_soft_masks_are_exact_at_both_ends():
  live = {"vision": {"mlp": jnp.array([[1.0, 1.0, 0.0, 0.7]])}}
  marked = {"vision": {"mlp": jnp.array([[1.0, 0.0, 0.0, 0.0]])}}
  soft = jax.jit(masks.soft)

  def at(progress):
    faded = soft(live, marked, jnp.float32(progress))
    return np.asarray(faded["vision"]["mlp"])

  np.testing.assert_array_equal(at(0), live["vision"]["mlp"])
  for end in (1, 1.5):
    np.testing.assert_array_equal(at(end), np.float32([[0, 1, 0, 0.7]]))
  steps = np.linspace(0, 1, 9)
  faded = np.array([at(p)[0, 0] for p in steps])
  np.testing.assert_allclose(faded, 1 - np.sin(np.pi / 2 * steps), atol=1e-6)
  assert (np.diff(faded) < 0).all()
  # Only the marked unit moves.
  np.testing.assert_array_equal(at(0.5)[0, 1:], np.float32([1, 0, 0.7]))


def test_vectors_round_trip():
  table = _groups()
  rng = np.random.default_rng(1)
  tree = masks.build(
    table, lambda g: jnp.asarray(rng.random((g.layers, g.units)), jnp.float32)
  )
  vector = masks.flatten(table, tree)
  assert vector.shape == (3 * 4 + 3 * 5 + 2 * 2 + 2 * 5,)
  back = masks.unflatten(table, vector)
  jax.tree.map(np.testing.assert_array_equal, back, tree)
  # Group order, then layers, then units.
  np.testing.assert_array_equal(vector[:12], tree["vision"]["attn"].reshape(-1))
  np.testing.assert_array_equal(vector[-10:], tree["text"]["mlp"].reshape(-1))


def test_dense_masks_are_ones_in_the_groups_shapes():
  dense = masks.ones(_groups())
  shapes = jax.tree.map(lambda x: x.shape, dense)
  assert shapes == {
    "vision": {"attn": (3, 4), "mlp": (3, 5)},
    "text": {"attn": (2, 2), "mlp": (2, 5)},
  }
  assert all(
    leaf.dtype == jnp.float32 and (leaf == 1).all()
    for leaf in jax.tree.leaves(dense)
  )


def test_group_floors_and_granularity():
  heads, neurons, channels, _ = _groups()
  assert (heads.floor, neurons.floor, channels.floor) == (1, 2, 1)
  assert heads.indivisible and not neurons.indivisible
  with pytest.raises(ValueError, match="granularity"):
    groups_lib.encoder_groups(
      tower="vision",
      mode="m",
      layers=1,
      heads=1,
      head_width=1,
      neurons=1,
      granularity="row",
    )

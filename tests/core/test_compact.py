"""Physical removal and static token counts."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from comp_jax.core import compact, cost
from comp_jax.core import groups as groups_lib

FEW = hypothesis.settings(max_examples=40)
LAYERS, WIDTH, HEADS, HEAD_WIDTH, NEURONS = 12, 3, 4, 2, 6


@FEW
@hypothesis.given(
  seed=st.integers(0, 10**6),
  scale=st.floats(0.0, 4.0),
  lowest=st.integers(1, 5),
)
def test_caps_fall_stay_in_bounds_and_reach_the_mean(seed, scale, lowest):
  rng = np.random.default_rng(seed)
  valid = rng.integers(3, 40, 12)
  means = np.sort(rng.uniform(1, 40, 6))[::-1].copy()
  caps = compact.token_caps(valid, means, scale, lowest=lowest)
  highest = valid.max()
  assert len(caps) == 6 and all(isinstance(k, int) for k in caps)
  assert all(min(lowest, highest) <= k <= highest for k in caps)
  assert all(a >= b for a, b in zip(caps, caps[1:], strict=False))
  for k, mean in zip(caps, means, strict=True):
    # The smallest cap that keeps enough: one less would not.
    assert k == highest or np.minimum(valid, k).mean() >= mean * scale - 1e-5
    assert k <= lowest or np.minimum(valid, k - 1).mean() < mean * scale


def test_caps_of_equal_samples_are_the_means():
  valid = np.full(4, 65)
  means = np.array([40.0, 30.5, 30.5, 9.0])
  caps = compact.token_caps(valid, means, 1.0, lowest=2)
  assert caps == (40, 31, 31, 9)
  # Means that rise by noise never make the caps rise.
  means = np.array([20.0, 22.0, 9.0])
  assert compact.token_caps(valid, means, 1.0, lowest=2) == (20, 20, 9)
  before = (0,) * 3
  for scale in np.linspace(0, 3, 40):
    caps = compact.token_caps(valid, means, float(scale), lowest=2)
    assert all(a <= b for a, b in zip(before, caps, strict=True))
    before = caps
  assert before == (60, 60, 27)


VALID = {"vision": np.full(5, 65), "text": np.array([20, 5, 9, 14, 3])}
LOWEST = {"vision": 2, "text": 3}
DEPTH = {"vision": 4, "text": 3}


def _macs(caps):
  """Mean MACs of two small towers with these caps."""
  total = 0.0
  for tower, width in (("vision", 8), ("text", 4)):
    depth = DEPTH[tower]
    macs = cost.encoder_macs(
      width=width,
      attention_widths=[width] * depth,
      mlp_widths=[4 * width] * depth,
      counts=cost.static_counts(VALID[tower], caps[tower], depth),
    )
    total += float(np.mean(macs))
  return total


def _means(seed):
  rng = np.random.default_rng(seed)
  return {
    "vision": np.sort(rng.uniform(4, 65, 4))[::-1].copy(),
    "text": np.sort(rng.uniform(3, 10, 3))[::-1].copy(),
  }


@hypothesis.settings(max_examples=8)
@hypothesis.given(seed=st.integers(0, 10**6), share=st.floats(0.0, 1.0))
def test_counts_land_at_or_just_above_the_target(seed, share):
  means = _means(seed)
  ends = [
    _macs({t: (end,) * DEPTH[t] for t, end in zip(DEPTH, pair, strict=True)})
    for pair in ((2, 3), (65, 20))
  ]
  target = ends[0] + share * (ends[1] - ends[0])
  caps = compact.fit_caps(VALID, means, LOWEST, _macs, target)
  landed = _macs(caps)
  assert landed >= target
  # Just above: every smaller factor that changes anything lands below.
  for scale in np.linspace(0, 8, 120):
    candidate = {
      t: compact.token_caps(VALID[t], m, float(scale), lowest=LOWEST[t])
      for t, m in means.items()
    }
    assert not target <= _macs(candidate) < landed


def test_unreachable_targets_give_the_ends():
  caps = compact.fit_caps(VALID, _means(0), LOWEST, _macs, 1e12)
  assert caps == {"vision": (65,) * 4, "text": (20,) * 3}
  caps = compact.fit_caps(VALID, _means(0), LOWEST, _macs, 0.0)
  assert caps == {"vision": (2,) * 4, "text": (3,) * 3}


def _table(granularity, tower="vision", layers=LAYERS):
  return groups_lib.encoder_groups(
    tower=tower,
    mode="m",
    layers=layers,
    heads=HEADS,
    head_width=HEAD_WIDTH,
    neurons=NEURONS,
    granularity=granularity,
    layer_scale=True,
  )


def _params(rng, layers):
  def normal(*shape):
    return rng.normal(size=(layers, *shape)).astype(np.float32)

  attention = {
    name: {
      "kernel": normal(WIDTH, HEADS, HEAD_WIDTH),
      "bias": normal(HEADS, HEAD_WIDTH),
    }
    for name in ("query", "key", "value")
  }
  out = {"kernel": normal(HEADS, HEAD_WIDTH, WIDTH), "bias": normal(WIDTH)}
  return {
    "norm1": {"scale": normal(WIDTH), "bias": normal(WIDTH)},
    "attention": {**attention, "out": out},
    "layer_scale1": normal(WIDTH),
    "mlp": {
      "up": {"kernel": normal(WIDTH, NEURONS), "bias": normal(NEURONS)},
      "down": {"kernel": normal(NEURONS, WIDTH), "bias": normal(WIDTH)},
    },
  }


@pytest.mark.parametrize("granularity", ["head", "channel"])
def test_twelve_layers_keep_their_order_and_lose_their_units(granularity):
  rng = np.random.default_rng(0)
  layers = _params(rng, LAYERS)
  other = _params(rng, 2)
  params = {
    "vision": {
      "encoder": {"layers": layers},
      "cls_token": rng.normal(size=WIDTH),
    },
    "text": {"encoder": {"layers": other}},
    "logit_scale": np.float32(2.0),
  }
  table = _table(granularity) + _table("head", "text", 2)
  units = HEADS if granularity == "head" else HEAD_WIDTH
  attn = (rng.random((LAYERS, units)) < 0.6).astype(np.float32)
  attn[:, 0] = 1
  # A unit that still fades is live.
  attn[attn > 0] = rng.uniform(0.1, 1, int(attn.sum()))
  mlp = (rng.random((LAYERS, NEURONS)) < 0.5).astype(np.float32)
  mlp[3] = 1
  full = {"attn": np.ones((2, HEADS)), "mlp": np.ones((2, NEURONS))}
  masks = {"vision": {"attn": attn, "mlp": mlp}, "text": full}
  small = compact.slice_params(params, table, masks)

  encoder = small["vision"]["encoder"]
  assert set(encoder) == {f"layers_{i}" for i in range(LAYERS)}
  for i in range(LAYERS):
    got, head, neuron = encoder[f"layers_{i}"], attn[i] > 0, mlp[i] > 0
    rows = (head,) if granularity == "head" else (slice(None), head)
    attention = layers["attention"]
    for name in ("query", "key", "value"):
      np.testing.assert_array_equal(
        got["attention"][name]["kernel"],
        attention[name]["kernel"][i][(slice(None), *rows)],
      )
      np.testing.assert_array_equal(
        got["attention"][name]["bias"], attention[name]["bias"][i][rows]
      )
    out = attention["out"]
    np.testing.assert_array_equal(
      got["attention"]["out"]["kernel"], out["kernel"][i][rows]
    )
    np.testing.assert_array_equal(
      got["attention"]["out"]["bias"], out["bias"][i]
    )
    up, down = layers["mlp"]["up"], layers["mlp"]["down"]
    np.testing.assert_array_equal(
      got["mlp"]["up"]["kernel"], up["kernel"][i][:, neuron]
    )
    np.testing.assert_array_equal(
      got["mlp"]["up"]["bias"], up["bias"][i][neuron]
    )
    np.testing.assert_array_equal(
      got["mlp"]["down"]["kernel"], down["kernel"][i][neuron]
    )
    for name in ("scale", "bias"):
      np.testing.assert_array_equal(
        got["norm1"][name], layers["norm1"][name][i]
      )
    np.testing.assert_array_equal(
      got["layer_scale1"], layers["layer_scale1"][i]
    )
  np.testing.assert_array_equal(
    small["vision"]["cls_token"], params["vision"]["cls_token"]
  )
  assert small["logit_scale"] == 2.0
  np.testing.assert_array_equal(
    small["text"]["encoder"]["layers_1"]["mlp"]["up"]["kernel"],
    other["mlp"]["up"]["kernel"][1],
  )
  left = compact.units_left(table, masks)
  assert left["vision/attn"] == (attn > 0).sum(1).tolist()
  assert left["vision/mlp"] == mlp.sum(1).astype(int).tolist()
  assert left["text/attn"] == [HEADS] * 2

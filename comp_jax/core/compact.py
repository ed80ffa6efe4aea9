"""Physical removal: slices, per-layer token counts, exact budgets.

All functions run once, on the host, on NumPy arrays.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from comp_jax.core import groups as groups_lib


def slice_params(
  params: Mapping,
  groups: Sequence[groups_lib.Group],
  masks: Mapping,
) -> dict:
  """The parameters of the compact model: unrolled layers, units sliced out.

  `scope` [L, ...] becomes `scope_0`, `scope_1`, ... without the layer axis,
  each with the units whose mask is above 0. Everything else is copied.

  Args:
    params: nested dict with stacked layers.
    groups: the model's group table.
    masks: hard masks (0 or 1).
  """
  scopes = sorted({group.scope for group in groups})
  flat = _flatten(params)
  layers = {group.scope: group.layers for group in groups}
  kept = {}
  for path, value in flat.items():
    scope = next((s for s in scopes if path.startswith(s + "/")), None)
    if scope is None:
      kept[path] = np.asarray(value)
      continue
    inner = path[len(scope) + 1 :]
    for layer in range(layers[scope]):
      array = np.asarray(value)[layer]
      for group in groups:
        if group.scope != scope:
          continue
        live = np.asarray(groups_lib.leaf(masks, group.name))[layer] > 0
        for slot in group.slots:
          if slot.path == inner:
            array = np.compress(live, array, axis=slot.axis)
      kept[f"{scope}_{layer}/{inner}"] = array
  return _nest(kept)


def units_left(
  groups: Sequence[groups_lib.Group], masks: Mapping
) -> dict[str, list[int]]:
  """Live units per layer of every group, by the group's name."""
  return {
    group.name: [
      int(n)
      for n in np.sum(
        np.asarray(groups_lib.leaf(masks, group.name)) > 0, axis=1
      )
    ]
    for group in groups
  }


def token_caps(
  valid: Int[np.ndarray, " b"],
  mean_counts: Float[np.ndarray, " l"],
  scale: float,
  *,
  lowest: int,
) -> tuple[int, ...]:
  """K_l, the static counts after each layer, never rising.

  K_l is the smallest cap under which the samples keep, on average, `scale`
  times as many tokens as under the thresholds: texts shorter than the cap
  leave room for the longer ones.

  Args:
    valid: tokens of each sample at the input.
    mean_counts: mean tokens left after each layer under the thresholds.
    scale: common factor.
    lowest: protected tokens and one more.
  """
  highest = int(valid.max())
  lowest = min(lowest, highest)
  choices = np.arange(lowest, highest + 1)
  kept = np.minimum(valid[:, None], choices[None]).mean(axis=0)
  # 1e-6: means of counts that are equal in theory.
  enough = np.searchsorted(kept, np.asarray(mean_counts) * scale - 1e-6)
  caps = choices[np.minimum(enough, len(choices) - 1)]
  return tuple(int(k) for k in np.minimum.accumulate(caps))


def fit_caps(
  valid: Mapping[str, Int[np.ndarray, " b"]],
  mean_counts: Mapping[str, Float[np.ndarray, " l"]],
  lowest: Mapping[str, int],
  macs: Callable[[Mapping[str, tuple[int, ...]]], float],
  target: float,
) -> dict[str, tuple[int, ...]]:
  """Static counts whose MACs lie at or just above the target.

  One factor scales the mean counts of all towers; it is bisected. What is
  left above the target is for single neurons to make up. Where no caps at all
  stay below the target, the widest are returned.

  Args:
    valid: per tower, tokens of each sample at the input.
    mean_counts: per tower that drops tokens, mean tokens after each layer.
    lowest: per tower, the lowest count.
    macs: exact MACs of the compact model at given caps.
    target: MACs to land just above.
  """

  def caps(scale):
    return {
      tower: token_caps(valid[tower], counts, scale, lowest=lowest[tower])
      for tower, counts in mean_counts.items()
    }

  low, high = 0.0, 1.0
  while macs(caps(high)) < target and high < 64:
    high *= 2
  for _ in range(40):
    middle = (low + high) / 2
    if macs(caps(middle)) >= target:
      high = middle
    else:
      low = middle
  return caps(high)


def _flatten(tree: Mapping, prefix: str = "") -> dict:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat.update(_flatten(value, f"{prefix}{key}/"))
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def _nest(flat: Mapping) -> dict:
  tree = {}
  for path, value in flat.items():
    *parents, name = path.split("/")
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[name] = value
  return tree

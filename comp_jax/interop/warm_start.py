"""New models whose towers begin as those of another one.

As BLIP's own do: its models for NLVR2 and for questions begin as the one that
was trained to match single images and texts.
"""

import re
from collections.abc import Mapping

import jax
import numpy as np

from comp_jax import errors
from comp_jax.interop import store
from comp_jax.interop import tensors as tensors_lib
from comp_jax.models import families, specs, towers

# What a tower has only where it looks at another one, or writes words.
_NEW = re.compile(r"cross|merge|/transform|/output_bias")
# The maps of a cross-attention; several images have several.
_CROSS = re.compile(r"/cross\d*/(query|key|out)/kernel$")
_SEVERAL = re.compile(r"/cross\d/")
_PROJECTIONS = ("vision_projection", "text_projection")


def begun_with(spec: specs.ModelSpec, source: store.Loaded, seed: int) -> dict:
  """The parameters of a model whose towers begin as those of another one.

  What the source lacks (heads, positions of longer texts) is random. The
  projections to a joint space of the same width come along. Of one
  cross-attention come several (`_doubled`); where the source has none, the new
  one adds nothing yet (`silent`) and, if there is a joint space of its size,
  looks at images as that space compares (`_comparing`).

  Args:
    spec: the dense model.
    source: a model with the same towers.
    seed: seed of what is random.

  Raises:
    UserError: names each array of a tower that does not fit.
  """
  if not towers.is_dense(source.spec):
    raise errors.UserError(
      "config.train.towers: a compact model, whose layers have widths of their "
      "own; name the dense one"
    )
  params = tensors_lib.flatten(
    jax.tree.map(np.asarray, families.initial_params(spec, seed))
  )
  given = tensors_lib.flatten(source.params)
  given |= _doubled(params, given)
  known = {
    key: array
    for key, array in given.items()
    if key in params and _stays(key, array, params[key], spec)
  }
  wanted = {
    key: array
    for key, array in params.items()
    if key in known
    or (key.split("/")[0] in source.spec.towers and not _NEW.search(key))
  }
  positions = "text/position_embedding"
  if positions in known:
    # Longer texts have positions that are new, shorter ones need fewer.
    rows, fresh = known[positions], params[positions]
    if rows.shape[1:] == fresh.shape[1:]:
      rows = np.concatenate([rows[: len(fresh)], fresh[len(rows) :]])
    known[positions] = rows
  tensors_lib.check_tree(known, wanted, "config.train.towers")
  new = {key: array for key, array in params.items() if key not in known}
  new |= silent(new) | _comparing(new, source)
  return tensors_lib.unflatten(new | jax.tree.map(np.asarray, known))


def silent(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Output kernels of new cross-attention: zeros.

  A random one writes vectors longer than the text states that it adds them to,
  and little of the text is left for training to begin with.

  Args:
    params: flat; the kernels of other blocks are left out of the result.
  """
  return {
    key: np.zeros_like(array)
    for key, array in params.items()
    if (found := _CROSS.search(key)) and found[1] == "out"
  }


def _stays(key, array, own, spec) -> bool:
  """Whether an array of the source is one of the new model's."""
  name = key.split("/")[0]
  if name in _PROJECTIONS:
    # A joint space of another width is learnt anew. One of the same is a start
    # even where the new text is read out differently ([CLS] for the mean).
    return array.shape == own.shape
  return name in spec.towers


def _doubled(
  params: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """One trained cross-attention as each of several, whose mean is taken.

  The doubling is that of BLIP's authors for NLVR2 (spec `upop.md` 3.4), whose
  merging maps are random; the mean is ours.
  """
  begun = {
    key: given[single]
    for key in params
    if key not in given and (single := _SEVERAL.sub("/cross/", key)) in given
  }
  if not begun:
    return {}
  for key, array in params.items():
    if key.endswith("/merge_kernel"):
      half = 0.5 * np.eye(array.shape[-1], dtype=array.dtype)
      begun[key] = np.broadcast_to(np.concatenate([half, half]), array.shape)
    elif key.endswith("/merge_bias"):
      begun[key] = np.zeros_like(array)
  return begun


def _comparing(
  params: Mapping[str, np.ndarray], source: store.Loaded
) -> dict[str, np.ndarray]:
  """Queries and keys of the last layer's cross-attention: the projections.

  The states of the last layer are the ones that the joint space of the source
  was trained on: how far a text looks at an image's [CLS] beside its patches
  then says how well they match, before any training.
  """
  tower = {"query": "text_projection", "key": "vision_projection"}
  begun = {}
  for key, array in params.items():
    found = _CROSS.search(key)
    projection = source.params.get(tower.get(found[1], "")) if found else None
    if projection is None or projection["kernel"].size != array[-1].size:
      continue
    kernel = np.reshape(projection["kernel"], array.shape[1:])
    begun[key] = np.concatenate([array[:-1], kernel[None]])
  return begun

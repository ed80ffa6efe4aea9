"""Analytic MACs, traced for a search and as exact integers for a model.

1 MAC is what the papers call 1 FLOP. A LayerNorm costs 5 per element;
softmax, activations, additions and embedding look-ups are not counted
(spec `upop.md` part 4). MACs are affine in the masks at fixed counts, so the
gradient with respect to a mask is exactly what the unit saves.
"""

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from comp_jax.core import groups as groups_lib

# Elements of a LayerNorm are counted five times, as fvcore does.
NORM = 5
# Entries of the momentum queues that the published costs of retrieval include.
QUEUE = 57600


def encoder_macs(
  *,
  width: int,
  attention_widths: Num[Array | np.ndarray, " l"] | Sequence[int],
  mlp_widths: Num[Array | np.ndarray, " l"] | Sequence[int],
  counts: Num[Array | np.ndarray, "b l1"],
) -> Num[Array | np.ndarray, " b"]:
  """MACs of each sample in a stack of self-attention layers.

  Attention runs on the tokens that enter a layer, the MLP on those that its
  token rule keeps (spec `madtp.md` 1.1); each has one LayerNorm.

  Args:
    width: residual width d.
    attention_widths: kept channels over all heads, per layer.
    mlp_widths: kept neurons per layer.
    counts: tokens entering layer 0, and left after each layer.

  Returns:
    Integers for NumPy integers in, float32 for traced arrays.
  """
  xp = np if isinstance(counts, np.ndarray) else jnp
  entering, leaving = counts[:, :-1], counts[:, 1:]
  attention = xp.asarray(attention_widths)[None]
  mlp = xp.asarray(mlp_widths)[None]
  if xp is jnp:
    entering, leaving = (x.astype(jnp.float32) for x in (entering, leaving))
  per_layer = (
    4 * width * attention * entering
    + 2 * attention * entering**2
    + 2 * width * mlp * leaving
    + NORM * width * (entering + leaving)
  )
  return xp.sum(per_layer, axis=-1)


def cross_macs(
  *,
  width: int,
  source_width: int,
  attention_widths: Num[Array | np.ndarray, " l"] | Sequence[int],
  queries: Num[Array | np.ndarray, "b l"],
  keys: Num[Array | np.ndarray, " b"],
) -> Num[Array | np.ndarray, " b"]:
  """MACs of each sample in one cross-attention block of every layer.

  Args:
    width: residual width of the queries.
    source_width: width of what keys and values read.
    attention_widths: kept channels over all heads, per layer.
    queries: tokens of each layer that ask.
    keys: tokens that are looked at, the same for all layers.

  Returns:
    Integers for NumPy integers in, float32 for traced arrays.
  """
  xp = np if isinstance(queries, np.ndarray) else jnp
  attention = xp.asarray(attention_widths)[None]
  if xp is jnp:
    queries, keys = (x.astype(jnp.float32) for x in (queries, keys))
  keys = keys[:, None]
  per_layer = (
    2 * width * attention * queries
    + 2 * source_width * attention * keys
    + 2 * attention * queries * keys
  )
  return xp.sum(per_layer, axis=-1)


def patch_macs(*, patches: int, patch_size: int, width: int) -> int:
  """MACs of the patch embedding of one image."""
  return patches * 3 * patch_size**2 * width


def norm_macs(*, width: int, tokens):
  """MACs of one LayerNorm over `tokens` tokens."""
  return NORM * width * tokens


def vit_macs(
  *,
  patches: int,
  patch_size: int,
  width: int,
  layers: int,
  mlp: int,
  joint_width: int = 0,
  norm_before: bool = False,
  norm_after_cls_only: bool = False,
) -> int:
  """MACs of a dense ViT on one image, by its published shape.

  Args:
    patches: number of image patches; CLS comes on top.
    patch_size: side of a patch in pixels.
    width: residual width.
    layers: depth.
    mlp: hidden width.
    joint_width: width of the output projection of CLS; 0 has none.
    norm_before: CLIP's LayerNorm in front of the encoder.
    norm_after_cls_only: CLIP's last LayerNorm sees CLS alone.
  """
  tokens = patches + 1
  total = patch_macs(patches=patches, patch_size=patch_size, width=width)
  total += int(
    encoder_macs(
      width=width,
      attention_widths=[width] * layers,
      mlp_widths=[mlp] * layers,
      counts=np.full((1, layers + 1), tokens, np.int64),
    )[0]
  )
  if norm_before:
    total += norm_macs(width=width, tokens=tokens)
  total += norm_macs(width=width, tokens=1 if norm_after_cls_only else tokens)
  return total + width * joint_width


def text_macs(
  *, tokens: int, width: int, layers: int, mlp: int, joint_width: int = 0
) -> int:
  """MACs of a dense text encoder with one extra LayerNorm."""
  total = int(
    encoder_macs(
      width=width,
      attention_widths=[width] * layers,
      mlp_widths=[mlp] * layers,
      counts=np.full((1, layers + 1), tokens, np.int64),
    )[0]
  )
  return total + norm_macs(width=width, tokens=tokens) + width * joint_width


def clip_macs(
  *,
  patches: int,
  patch_size: int,
  vision_width: int,
  vision_layers: int,
  text_width: int,
  text_layers: int,
  joint_width: int,
  text_tokens: int = 77,
  convention: str = "inference",
  queue: int = QUEUE,
) -> int:
  """MACs of a dense CLIP.

  `inference` is one image and one text; `legacy` is the published papers'
  training graph: both towers twice (momentum twins) and four similarity
  products with the queue (spec `upop.md` part 4).
  """
  vision = vit_macs(
    patches=patches,
    patch_size=patch_size,
    width=vision_width,
    layers=vision_layers,
    mlp=4 * vision_width,
    joint_width=joint_width,
    norm_before=True,
    norm_after_cls_only=True,
  )
  text = text_macs(
    tokens=text_tokens,
    width=text_width,
    layers=text_layers,
    mlp=4 * text_width,
    joint_width=joint_width,
  )
  if convention == "inference":
    return vision + text
  if convention == "legacy":
    return 2 * (vision + text) + 4 * joint_width * (queue + 1)
  raise ValueError(f"convention must be inference or legacy: {convention!r}")


def static_counts(
  valid: Int[np.ndarray, " b"], keep: Sequence[int] | None, layers: int
) -> Int[np.ndarray, "b l1"]:
  """Valid tokens per layer under static caps: min(n_valid, K_l).

  Args:
    valid: valid tokens of each sample at the input.
    keep: K_l, the cap after each layer; None caps nothing.
    layers: number of layers.
  """
  caps = np.full(layers, np.iinfo(np.int64).max) if keep is None else keep
  caps = np.minimum.accumulate(np.asarray(caps, np.int64))
  valid = np.asarray(valid, np.int64)
  after = np.minimum(valid[:, None], caps[None])
  return np.concatenate([valid[:, None], after], axis=1)


def live_params(
  size: int,
  shapes: Mapping,
  groups: Sequence[groups_lib.Group],
  masks: Mapping,
) -> Float[Array, ""]:
  """Parameters that are left once the units with a mask of 0 are removed.

  Traceable: units of a group hold equally many. Rounded to 24 bits; a compact
  model is counted exactly from its spec.

  Args:
    size: parameters of the dense model.
    shapes: its tree, stacked arrays or what stands for them.
    groups: the group table.
    masks: hard masks.
  """
  gone = jnp.zeros((), jnp.float32)
  for group in groups:
    held = sum(
      math.prod(groups_lib.leaf(shapes, f"{group.scope}/{slot.path}").shape)
      for slot in group.slots
    )
    dead = jnp.sum(groups_lib.leaf(masks, group.name) <= 0)
    gone += held // (group.layers * group.units) * dead.astype(jnp.float32)
  return size - gone

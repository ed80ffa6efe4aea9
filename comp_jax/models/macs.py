"""MACs of towers at masks or widths, and at token counts.

Counts are valid tokens [b, l+1]: at the input and after each layer. With
NumPy counts and no masks everything is exact integers; otherwise it is traced.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from comp_jax.core import cost
from comp_jax.models import specs

Counts = Num[Array | np.ndarray, "b l1"]
PerSample = Num[Array | np.ndarray, " b"]


def layers(
  encoder: specs.EncoderSpec, masks: Mapping | None, counts: Counts
) -> PerSample:
  """Self-attention and MLPs of an encoder.

  Args:
    encoder: the layers.
    masks: {"attn": [l, u], "mlp": [l, m]}, or None for the spec's own widths.
    counts: tokens.
  """
  if masks is None:
    attention = [x.heads * x.head_width for x in encoder.layers]
    mlp = [x.mlp for x in encoder.layers]
  else:
    attention = _attention_widths(encoder, encoder.uniform, masks["attn"])
    mlp = jnp.sum(masks["mlp"], axis=-1)
  return cost.encoder_macs(
    width=encoder.width,
    attention_widths=attention,
    mlp_widths=mlp,
    counts=counts,
  )


def cross(
  encoder: specs.EncoderSpec,
  masks: Mapping | None,
  queries: Counts,
  keys: Sequence[PerSample],
) -> PerSample:
  """Cross-attention of an encoder; it runs after the layer's token rule.

  Args:
    encoder: the layers.
    masks: [l, u] by the layer's `cross_names`, or None for the spec's own
      widths.
    queries: tokens of this encoder.
    keys: tokens of each source.
  """
  asking, total = queries[:, 1:], 0
  for index, seen in enumerate(keys):
    if masks is None:
      blocks = [layer.cross[index] for layer in encoder.layers]
      widths = [x.heads * x.head_width for x in blocks]
    else:
      block = encoder.uniform.cross[index]
      name = encoder.uniform.cross_names[index]
      widths = _attention_widths(encoder, block, masks[name])
    total = total + cost.cross_macs(
      width=encoder.width,
      source_width=encoder.source_width,
      attention_widths=widths,
      queries=asking,
      keys=seen,
    )
  # One norm per layer, however many blocks; and the maps that join two.
  xp = np if isinstance(queries, np.ndarray) else jnp
  d = encoder.width
  total = total + cost.norm_macs(width=d, tokens=xp.sum(asking, axis=-1))
  if encoder.merge_from is not None:
    joined = xp.sum(asking[:, encoder.merge_from :], axis=-1)
    if xp is jnp:
      joined = joined.astype(jnp.float32)  # The products need 32 bits and more.
    total = total + 2 * d**2 * joined
  return total


def vision(
  spec: specs.VitSpec, masks: Mapping | None, counts: Counts
) -> PerSample:
  """A vision tower: patches, norms, layers."""
  d = spec.encoder.width
  patches = cost.patch_macs(
    patches=spec.tokens - 1, patch_size=spec.patch_size, width=d
  )
  # The last norm sees what is read out, the one before the layers every token.
  normed = 1 if spec.readout == "cls" else counts[:, -1]
  before = cost.norm_macs(width=d, tokens=spec.tokens) if spec.pre_norm else 0
  after = cost.norm_macs(width=d, tokens=normed)
  return layers(spec.encoder, masks, counts) + patches + before + after


def text(
  spec: specs.BertSpec | specs.ClipTextSpec | specs.DecoderSpec,
  masks: Mapping | None,
  counts: Counts,
) -> PerSample:
  """A text tower without cross-attention: one norm, layers."""
  # BERT normalises its embeddings, CLIP what leaves the last layer.
  normed = counts[:, -1] if spec.kind == "clip" else counts[:, 0]
  norm = cost.norm_macs(width=spec.encoder.width, tokens=normed)
  return layers(spec.encoder, masks, counts) + norm


def decoder(
  spec: specs.DecoderSpec,
  masks: Mapping | None,
  counts: Counts,
  keys: PerSample,
) -> PerSample:
  """A decoder with its cross-attention; every token is given to the head."""
  if not isinstance(counts, np.ndarray):
    counts = counts.astype(jnp.float32)  # The head's products need 33 bits.
  d = spec.encoder.width
  head = d**2 + d * spec.vocab_size + cost.norm_macs(width=d, tokens=1)
  return (
    text(spec, masks, counts)
    + cross(spec.encoder, masks, counts, (keys,))
    + head * counts[:, 0]
  )


def mean(per_sample: PerSample):
  """The mean over samples of the cost (never the cost of the mean)."""
  xp = np if isinstance(per_sample, np.ndarray) else jnp
  return xp.mean(per_sample)


def _attention_widths(encoder, layer, mask):
  by_head = encoder.granularity == "head"
  per_unit = layer.head_width if by_head else layer.heads
  return per_unit * jnp.sum(mask, axis=-1)

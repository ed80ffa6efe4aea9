"""BLIP: a text encoder that looks at an image through cross-attention."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from comp_jax.core import execution as execution_lib
from comp_jax.core import tokens as tokens_lib
from comp_jax.models import bert, blocks, specs, towers, vit
from comp_jax.models import macs as macs_lib


class Looking(nn.Module):
  """A model whose text looks at the tokens of one image."""

  spec: specs.ModelSpec

  def look(
    self,
    image: Num[Array, "b s s 3"],
    execution: execution_lib.TowerExecution = execution_lib.DENSE_TOWER,
  ) -> tuple[blocks.Source, dict]:
    """The image tokens that the text reads, and the vision tower's aux."""
    state, aux = self.vision(image, execution)
    return source_of(state, aux, execution), aux


class Matching(Looking):
  """Whether a text belongs to an image: BLIP's ITM (spec `upop.md` 3.7)."""

  def setup(self):
    self.vision = vit.Vit(self.spec.vision)
    self.text = bert.Bert(self.spec.text)
    self.head = nn.Dense(2)

  def read(
    self,
    source: blocks.Source,
    text_ids,
    text_mask,
    execution: execution_lib.TowerExecution = execution_lib.DENSE_TOWER,
  ) -> tuple[Float[Array, "b 2"], dict]:
    """The logits (no match, match), and the text tower's aux."""
    pooled, aux = self.text(text_ids, text_mask, execution, (source,))
    return self.head(pooled), aux

  def __call__(
    self,
    batch: Mapping,
    execution: execution_lib.Execution = execution_lib.DENSE,
  ) -> tuple[dict[str, Array], dict[str, dict]]:
    """Logits of the pairs of a batch.

    Args:
      batch: `image` [b, s, s, 3], `text_ids` and `text_mask` [b, n].
      execution: units, tokens and what is gathered of the towers `vision` and
        `text`.

    Returns:
      `logits` [b, 2] of no match and match, and
      {"vision": aux, "text": aux}.
    """
    source, vision_aux = self.look(batch["image"], execution.of("vision"))
    logits, text_aux = self.read(
      source, batch["text_ids"], batch["text_mask"], execution.of("text")
    )
    output = {"logits": logits.astype(jnp.float32)}
    return output, {"vision": vision_aux, "text": text_aux}


def source_of(
  state: tokens_lib.TokenState,
  aux: Mapping,
  execution: execution_lib.TowerExecution,
) -> blocks.Source:
  """What cross-attention reads of another tower's tokens.

  Args:
    state: the tokens after the last layer.
    aux: of the other tower.
    execution: of the other tower; without probes nobody asks for the weights.
  """
  if execution.probes is None:
    weights = jnp.zeros(state.valid.shape, jnp.float32)
  else:
    # Keys and values are weighed by the scores of that tower's last layer.
    weights = blocks.cip_weights(aux["scores"][-1], state, execution.estimator)
  return blocks.Source(x=state.x, valid=state.valid, weights=weights)


def macs(
  spec: specs.MatchingSpec,
  masks: Mapping | None,
  counts: Mapping[str, Num[Array | np.ndarray, "b _"]],
) -> Float[Array, ""] | float:
  """Mean MACs of one image and one text, `inference` convention.

  Args:
    spec: the model; a compact one with `masks=None`.
    masks: hard or soft masks, or None to cost the spec's own widths.
    counts: valid tokens of each tower: at the input and after each layer.

  Returns:
    A traced scalar, or a float for NumPy counts without masks.
  """
  seen, read = (execution_lib.part(masks, tower) for tower in spec.towers)
  vision = macs_lib.vision(spec.vision, seen, counts["vision"])
  text = macs_lib.text(spec.text, read, counts["text"])
  cross = macs_lib.cross(
    spec.text.encoder, read, counts["text"], (counts["vision"][:, -1],)
  )
  head = 2 * spec.text.encoder.width
  return macs_lib.mean(vision + text + cross) + head


FAMILY = towers.Family(
  model=Matching,
  macs=macs,
  alone={"vision": ("look", ("image",))},
)

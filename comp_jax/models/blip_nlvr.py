"""BLIP for NLVR2: is a sentence true of a pair of images?

Every layer of the text tower looks at each image with a cross-attention of
its own; the lower layers take the mean of the two, the upper ones join them
by a linear map (spec `upop.md` 3.4).
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from comp_jax.core import execution as execution_lib
from comp_jax.models import bert, blip, specs, towers, vit
from comp_jax.models import macs as macs_lib

IMAGES = specs.NlvrSpec.images


class Nlvr(nn.Module):
  """Two images and a sentence to the logits of false and true."""

  spec: specs.NlvrSpec

  def setup(self):
    self.vision = vit.Vit(self.spec.vision)
    self.text = bert.Bert(self.spec.text)
    self.head_hidden = nn.Dense(self.spec.text.encoder.width)
    self.head = nn.Dense(2)

  def look(
    self,
    image: Num[Array, "b 2 s s 3"],
    execution: execution_lib.TowerExecution = execution_lib.DENSE_TOWER,
  ) -> tuple[tuple, dict]:
    """The tokens of the first and the second images, and the tower's aux.

    The aux has one row per image: those of a pair follow each other.
    """
    rows = image.reshape(-1, *image.shape[2:])
    state, aux = self.vision(rows, execution)
    source = blip.source_of(state, aux, execution)
    pick = lambda i: jax.tree.map(lambda x: x[i::IMAGES], source)  # noqa: E731
    return tuple(pick(index) for index in range(IMAGES)), aux

  def __call__(
    self,
    batch: Mapping,
    execution: execution_lib.Execution = execution_lib.DENSE,
  ) -> tuple[dict[str, Array], dict[str, dict]]:
    """Logits of the statements of a batch.

    Args:
      batch: `image` [b, 2, s, s, 3], `text_ids` and `text_mask` [b, n].
      execution: units, tokens and what is gathered of the towers `vision` and
        `text`.

    Returns:
      `logits` [b, 2] of false and true, and {"vision": aux, "text": aux}.
    """
    sources, vision_aux = self.look(batch["image"], execution.of("vision"))
    pooled, text_aux = self.text(
      batch["text_ids"],
      batch["text_mask"],
      execution.of("text"),
      sources,
    )
    logits = self.head(nn.relu(self.head_hidden(pooled)))
    output = {"logits": logits.astype(jnp.float32)}
    return output, {"vision": vision_aux, "text": text_aux}


def macs(
  spec: specs.NlvrSpec,
  masks: Mapping | None,
  counts: Mapping[str, Num[Array | np.ndarray, "r _"]],
) -> Float[Array, ""] | float:
  """Mean MACs of two images and one text, `inference` convention.

  Args:
    spec: the model; a compact one with `masks=None`.
    masks: hard or soft masks, or None to cost the spec's own widths.
    counts: valid tokens: of the vision tower one row per image.

  Returns:
    A traced scalar, or a float for NumPy counts without masks.
  """
  seen, read = (execution_lib.part(masks, tower) for tower in spec.towers)
  images = counts["vision"]
  vision = macs_lib.vision(spec.vision, seen, images)
  text = macs_lib.text(spec.text, read, counts["text"])
  cross = macs_lib.cross(
    spec.text.encoder,
    read,
    counts["text"],
    tuple(images[index::IMAGES, -1] for index in range(IMAGES)),
  )
  d = spec.text.encoder.width
  # The mean over images, of which an example has two.
  return (
    IMAGES * macs_lib.mean(vision) + macs_lib.mean(text + cross) + d * d + 2 * d
  )


FAMILY = towers.Family(
  model=Nlvr,
  macs=macs,
  alone={"vision": ("look", ("image",))},
  # The published papers count one forward pass on one example, too.
  legacy=lambda spec, counts: macs(spec, None, counts),
)

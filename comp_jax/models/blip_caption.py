"""BLIP's captioning: a decoder looks at an image (spec `upop.md` 3.5)."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from comp_jax.core import execution as execution_lib
from comp_jax.models import bert, blip, blocks, specs, towers, vit
from comp_jax.models import macs as macs_lib


class Caption(blip.Looking):
  """An image and the beginning of a text to the logits of what follows."""

  def setup(self):
    self.vision = vit.Vit(self.spec.vision)
    self.text = bert.Decoder(self.spec.text)

  def __call__(
    self,
    batch: Mapping,
    execution: execution_lib.Execution = execution_lib.DENSE,
  ) -> tuple[dict[str, Array], dict[str, dict]]:
    """Logits of the captions of a batch.

    Args:
      batch: `image` [b, s, s, 3], `text_ids` and `text_mask` [b, n].
      execution: units and what is gathered of the towers `vision` and `text`,
        tokens of the first.

    Returns:
      `logits` [b, n, v] of the token after each one, and
      {"vision": aux, "text": aux}.
    """
    source, vision_aux = self.look(batch["image"], execution.of("vision"))
    logits, text_aux = self.text(
      batch["text_ids"], batch["text_mask"], source, execution.of("text")
    )
    return {"logits": logits}, {"vision": vision_aux, "text": text_aux}

  def read(
    self,
    batch: Mapping,
    execution: execution_lib.Execution = execution_lib.DENSE,
  ) -> blocks.Source:
    """What the decoder looks at while it writes."""
    return self.look(batch["image"], execution.of("vision"))[0]

  def write(
    self,
    source: blocks.Source,
    text_ids: Int[Array, "b n"],
    text_mask: Bool[Array, "b n"],
    execution: execution_lib.Execution = execution_lib.DENSE,
    first: int | Int[Array, ""] = 0,
  ) -> Float[Array, "b n v"]:
    """The logits of the decoder alone, see `bert.Decoder`."""
    own = execution.of("text")
    return self.text(text_ids, text_mask, source, own, first)[0]


def macs(
  spec: specs.CaptionSpec,
  masks: Mapping | None,
  counts: Mapping[str, Num[Array | np.ndarray, "b _"]],
) -> Float[Array, ""] | float:
  """Mean MACs of one image and one text, `inference` convention.

  All tokens of the text run at once and all are given to the head, as in the
  published papers; writing with a beam costs more.

  Args:
    spec: the model; a compact one with `masks=None`.
    masks: hard or soft masks, or None to cost the spec's own widths.
    counts: valid tokens of each tower: at the input and after each layer.

  Returns:
    A traced scalar, or a float for NumPy counts without masks.
  """
  seen, written = (execution_lib.part(masks, tower) for tower in spec.towers)
  images = counts["vision"]
  vision = macs_lib.vision(spec.vision, seen, images)
  text = macs_lib.decoder(spec.text, written, counts["text"], images[:, -1])
  return macs_lib.mean(vision) + macs_lib.mean(text)


FAMILY = towers.Family(
  model=Caption,
  macs=macs,
  alone={"vision": ("look", ("image",))},
  # The published papers count one forward pass on one example, too.
  legacy=lambda spec, counts: macs(spec, None, counts),
)

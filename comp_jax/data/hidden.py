"""Examples of which a part cannot be seen: what does the rest tell?"""

from collections.abc import Collection

from PIL import Image

from comp_jax import errors
from comp_jax.data import sources

# What can be hidden.
PARTS = ("image", "image2", "text")


class Hidden:
  """A source whose pictures are grey, or whose texts are empty.

  Args:
    source: with examples.
    parts: some of `PARTS`.

  Attributes:
    answers: the source's; see `sources.PreparedSource`.

  Raises:
    UserError: a part that the examples do not have.
  """

  def __init__(
    self, source: sources.RandomAccessSource, parts: Collection[str]
  ):
    self._source = source
    self.answers = getattr(source, "answers", ())
    self._pictures = set(parts) - {"text"}
    self._text = "text" in parts
    for part in sorted(self._pictures - source[0].keys()):
      raise errors.UserError(f"the examples have no {part} to hide")

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> sources.Example:
    example = self._source[index]
    grey = Image.new("RGB", (8, 8), (128, 128, 128))
    seen = {**example, **dict.fromkeys(self._pictures, grey)}
    if self._text:
      seen["captions"] = [""] * len(example["captions"])
    return seen

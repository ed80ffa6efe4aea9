"""What a model sees where a part is hidden."""

import numpy as np
import pytest
from PIL import Image

from comp_jax import errors
from comp_jax.data import hidden, images, sources

EXAMPLES = [
  {
    "image": Image.new("RGB", (20, 10), color),
    "image2": Image.new("RGB", (10, 20), "white"),
    "captions": ["one", "two"],
    "concept": 1,
    "label": 1,
  }
  for color in ("red", "blue")
]


@pytest.mark.parametrize("parts", [{p} for p in hidden.PARTS] + [{"text"}])
def test_a_hidden_part_is_alike_in_all_examples_and_the_rest_stays(parts):
  source = hidden.Hidden(EXAMPLES, parts)
  assert len(source) == 2
  for index, example in enumerate(EXAMPLES):
    seen = source[index]
    assert seen.keys() == example.keys()
    for name, value in example.items():
      part = "text" if name == "captions" else name
      assert (seen[name] == value) == (part not in parts), name
    for name in parts - {"text"}:
      np.testing.assert_array_equal(images.resize(seen[name], 4), 128)
    if "text" in parts:
      assert seen["captions"] == ["", ""]


def test_what_is_ranked_stays():
  source = sources.PreparedSource(EXAMPLES, ["yes", "no"])
  assert hidden.Hidden(EXAMPLES, {"text"}).answers == ()
  joined = sources.Joined([source, EXAMPLES])
  assert joined.answers == source.answers == ("yes", "no")
  pair = [{**EXAMPLES[0]}]
  named = type("Source", (list,), {"answers": ("yes",)})(pair)
  assert hidden.Hidden(named, {"text"}).answers == ("yes",)


def test_a_part_that_is_not_there_is_named():
  single = [{"image": EXAMPLES[0]["image"], "captions": ["one"]}]
  with pytest.raises(errors.UserError, match="no image2 to hide"):
    hidden.Hidden(single, {"image2"})

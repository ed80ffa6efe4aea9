"""The paper's own numbers, for the column beside ours.

BLIP on NLVR2, accuracy on the test split; known to us through notes on the
paper. Other data, other models and other ratios have none.
"""

# (accuracy, G MACs) by recipe and ratio.
_NLVR2 = {
  ("upop", 0.7): (0.6876, 39.93),
  ("madtp", 0.7): (0.8078, 39.63),
  ("comp", 0.7): (0.8137, 39.72),
  ("madtp", 0.8): (0.7761, 26.46),
  ("sjp_tokens_first", 0.8): (0.7744, 26.61),
  ("comp", 0.8): (0.7962, 25.97),
  ("upop", 0.85): (0.6210, None),
  ("sjp_tokens_first", 0.85): (0.6309, None),
  ("madtp", 0.85): (0.7257, 20.57),
  ("comp", 0.85): (0.7608, 20.26),
}
# The paper's CoMP scores units by Wanda; ours by default does not.
_SAME = {"comp_wanda": "comp"}


def published(
  data: str, split: str, metric: str, method: str, ratio: float
) -> float | None:
  """The paper's number for this cell, in our units; None where it has none."""
  if data != "nlvr2" or metric != "accuracy" or not split.startswith("test"):
    return None
  found = _NLVR2.get((_SAME.get(method, method), round(ratio, 6)))
  return None if found is None else found[0]

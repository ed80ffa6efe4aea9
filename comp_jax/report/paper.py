"""The paper's own numbers, for the column beside ours.

Known to us through notes on the paper, which disagree on the CLIP row and on
single gains of the ablation; of one split, `test`. Other experiments, methods
and ratios have none. Its numbers for question answering are of test-dev, whose
answers nobody has; those of simple joint pruning (MADTP, then UPop) are of no
recipe here: ours have one score and one threshold rule throughout.
"""

from collections.abc import Mapping

# The metric, and its value by recipe and ratio, of each config by its name.
_TEST: Mapping[str, tuple[str, Mapping[tuple[str, float], float]]] = {
  "nlvr2_blip": (
    "accuracy",
    {
      ("upop", 0.7): 0.6876,
      ("madtp", 0.7): 0.8078,
      ("comp", 0.7): 0.8137,
      ("madtp", 0.8): 0.7761,
      # The ablation of MPS: greedy, "+ exploration", then history.
      ("comp_greedy", 0.8): 0.7824,
      ("comp_no_history", 0.8): 0.7902,
      ("comp", 0.8): 0.7962,
      ("upop", 0.85): 0.6210,
      ("madtp", 0.85): 0.7257,
      ("comp", 0.85): 0.7608,
    },
  ),
  "flickr30k_blip_retrieval": (
    "i2t_r1",
    {("madtp", 0.7): 0.926, ("comp", 0.7): 0.944},
  ),
  "coco_blip_retrieval": (
    "i2t_r1",
    {("madtp", 0.7): 0.739, ("comp", 0.7): 0.762},
  ),
  "coco_clip_retrieval": (
    "i2t_r1",
    {("madtp", 0.75): 0.662, ("comp", 0.75): 0.687},
  ),
  "coco_blip_caption": (
    "cider",
    {("madtp", 0.7): 1.201, ("comp", 0.7): 1.268},
  ),
}
# The dense models that the paper prunes, in the metrics above.
_DENSE: Mapping[str, float] = {"nlvr2_blip": 0.8308}
# The paper's CoMP scores units by Wanda; ours by default does not.
_SAME = {"comp_wanda": "comp"}


def published(
  name: str, split: str, metric: str, method: str, ratio: float
) -> float | None:
  """The paper's number for this cell, in our units; None where it has none.

  Args:
    name: of the experiment, as its config has it.
    split: of the data.
    metric: its name.
    method: the recipe, with changes to it.
    ratio: fraction of the MACs removed.
  """
  known, values = _TEST.get(name, (None, {}))
  if split != "test" or metric != known:
    return None
  return values.get((_SAME.get(method, method), round(ratio, 6)))


def published_dense(name: str, split: str, metric: str) -> float | None:
  """The paper's number for the dense model; None where it has none.

  Args:
    name: of the experiment, as its config has it.
    split: of the data.
    metric: its name.
  """
  known, _ = _TEST.get(name, (None, {}))
  if split != "test" or metric != known:
    return None
  return _DENSE.get(name)

"""The numbers of a search."""

import dataclasses

from jaxtyping import Array, Float

from comp_jax.core import pace as pace_lib

# A mode that can remove less than this fraction of dense is exhausted.
EXHAUSTED = 1e-3
# A stage takes at most this share of what its mode can still remove.
STAGE_SHARE = 0.2
# See `Settings.cost`.
COSTS = ("eq8", "immediate", "paired")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Numbers of a search; in a sweep some of them are traced.

  Attributes:
    dense_macs: MACs of the dense model on the validation examples.
    target: MACs to reach, as a fraction of dense.
    stage_macs: MACs a stage removes, as a fraction of dense.
    calibration: validation examples on which theta is bisected.
    least_step: share of a stage's MACs. A smaller step drowns in the drift of
      the token counts and in what training gains meanwhile, so its cost says
      little and a stage of it alone is wasted: where one mode is raised per
      stage, it rests while others can do more.
    max_stages: stages in which a search must arrive: modes whose step would
      leave the later ones too much rest (`pace.late`), and steps grow where
      the largest are not enough (`pace.hurried`). None keeps no pace.
    bisections: halvings of theta's range.
    cost: what MPS learns: `eq8` (what a stage and its training cost),
      `immediate` (before its training) or `paired` (after it, against the
      same steps without the cut).
  """

  dense_macs: float
  target: float | Float[Array, ""]
  stage_macs: float | Float[Array, ""]
  calibration: int
  least_step: float | Float[Array, ""] = 0.1
  max_stages: int | None = None
  bisections: int = 12
  cost: str = "eq8"

  @property
  def pace(self) -> pace_lib.Pace:
    """What a stage may remove where nothing hurries it."""
    return pace_lib.Pace(
      target=self.target, stage_macs=self.stage_macs, share=STAGE_SHARE
    )

  def __post_init__(self):
    if self.cost not in COSTS:
      raise ValueError(f"cost must be one of {COSTS}, not {self.cost!r}")

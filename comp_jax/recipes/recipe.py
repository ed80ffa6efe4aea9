"""A recipe: what to prune, when, and by which score. The loop stays."""

import dataclasses

from comp_jax.core import importance, mps, tokens

SCHEDULES = (
  "mps",
  "lookahead",
  "round_robin",
  "together",
  "params_first",
  "tokens_first",
)
# Those that choose a mode by what it costs.
WEIGHING = ("mps", "lookahead")
# Those that raise one mode per stage: in them a mode whose step is too small to
# be worth a stage rests (`prune.least_step`).
SINGLE = (*WEIGHING, "round_robin")
SPANS = ("stage", "search")
UNIT_COSTS = ("macs", "upop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """What distinguishes one pruning method from another.

  Attributes:
    name: as reports show it.
    score: how units are scored, a key of `importance.SCORES`. None for a
      method that names none of its own: `library.build` fills in the estimator
      that serves the whole comparison.
    cip: weigh tokens by importance in the parameter score (Eq. 4).
    cit: gate the token score by the head masks (Eq. 7), so that fading heads
      lose their votes; without it they keep them until they are gone.
    reduce: taylor: `signed` or `abs`.
    standardise: how scores of different layers are compared.
    rule: how tokens are scored and which stay (`tokens.TokenPolicy`).
    combine: what becomes of dropped tokens: `drop`, `merge` or `match`.
    schedule: `mps` chooses one mode per stage by remembered costs;
      `lookahead` by the costs of a trial step of every live mode, taken anew
      in each stage; `round_robin` takes the live modes in turn; `together`
      raises every mode in every stage, the MACs split evenly between
      parameters and tokens, one theta for all towers; `params_first` and
      `tokens_first` raise all modes of one kind until half of what has to go
      is gone, then those of the other. Units of modes that are raised at once
      are ranked in one list.
    prunes: the modes that it knows: `params`, `tokens`, `all`, or
      `vision_tokens` alone.
    accumulate: over what the scores of units are gathered: a `stage`, or the
      whole `search`.
    fade: over what marked units fade to 0. `stage`: they are gone after it.
      `search` (UPop): every stage marks anew among all units, so that units
      come back; all marked ones are worth the same, 0 at the end, and their
      MACs rise along a sine.
    unit_cost: what the sine counts: the `macs` of the marked units, or `upop`'s
      weights (36 a head channel, 1 a neuron), up to the fraction of all units
      that meets the target.
    strategy: constants of MPS.
  """

  name: str
  score: str | None = None
  cip: bool = True
  cit: bool = True
  reduce: str = "signed"
  standardise: str = "layer_mean"
  rule: str = "mean"
  combine: str = "drop"
  schedule: str = "mps"
  prunes: str = "all"
  accumulate: str = "stage"
  fade: str = "stage"
  unit_cost: str = "macs"
  strategy: mps.Options = mps.Options()

  def __post_init__(self):
    if self.score is not None and self.score not in importance.SCORES:
      raise ValueError(
        f"score must be one of {tuple(importance.SCORES)}, not {self.score!r}"
      )
    if self.standardise not in importance.STANDARDISATIONS:
      raise ValueError(
        f"standardise must be one of {importance.STANDARDISATIONS}, "
        f"not {self.standardise!r}"
      )
    for field, known in (
      ("reduce", importance.REDUCTIONS),
      ("rule", tokens.RULES),
      ("combine", tokens.COMBINE),
      ("schedule", SCHEDULES),
      ("prunes", ("params", "tokens", "vision_tokens", "all")),
      ("accumulate", SPANS),
      ("fade", SPANS),
      ("unit_cost", UNIT_COSTS),
    ):
      value = getattr(self, field)
      if value not in known:
        raise ValueError(f"{field} must be one of {known}, not {value!r}")
    if self.fade == "search" and self.schedule != "together":
      raise ValueError(
        "fade=search marks all units in every stage: it needs "
        f"schedule=together, not {self.schedule!r}"
      )
    if self.fade == "search" and self.prunes != "params":
      raise ValueError(
        "fade=search marks units for the whole target, with nothing left to "
        f"tokens: it needs prunes=params, not {self.prunes!r}"
      )
    if self.unit_cost == "upop" and (self.fade, self.prunes) != (
      "search",
      "params",
    ):
      raise ValueError(
        "unit_cost=upop counts the units of a whole search: it needs "
        f"fade=search and prunes=params, not {self.fade!r} and "
        f"{self.prunes!r}; or set unit_cost=macs"
      )

  @property
  def policy(self) -> tokens.TokenPolicy:
    """The token rule, its threshold still 0."""
    return tokens.TokenPolicy(
      rule=self.rule, gate=self.cit, combine=self.combine
    )

  @property
  def estimator(self) -> importance.Estimator:
    """What the passes of a stage gather for this recipe's score."""
    if self.score is None:
      raise ValueError(
        f"{self.name} has no score yet: take the recipe from library.build"
      )
    needs_data = self.score in ("taylor", "wanda")
    return importance.Estimator(
      kind=self.score if needs_data else "none",
      cip=self.cip,
      reduce=self.reduce,
    )

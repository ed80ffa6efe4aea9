"""CoMP and its baselines: each is the same loop with another recipe."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from comp_jax.core import mps
from comp_jax.recipes import recipe as recipe_lib

# What may score the units of a recipe that names no score of its own: CoMP, its
# ablations and controls, simple joint pruning. One serves a whole comparison.
ESTIMATORS = ("taylor", "wanda")

# Baselines know neither CIM nor MPS.
_NO_CIM = {"cip": False, "cit": False}
_PLAIN = {**_NO_CIM, "schedule": "together"}

_RECIPES = (
  recipe_lib.Recipe(name="comp"),
  # The paper's own estimator.
  recipe_lib.Recipe(name="comp_wanda", score="wanda"),
  # The other reading of the paper: no remembered costs.
  recipe_lib.Recipe(name="comp_lookahead", schedule="lookahead"),
  # CoMP with one part switched off.
  recipe_lib.Recipe(name="comp_no_cip", cip=False),
  recipe_lib.Recipe(name="comp_no_cit", cit=False),
  recipe_lib.Recipe(
    name="comp_no_cost", strategy=mps.Options(cost_aware=False)
  ),
  recipe_lib.Recipe(
    name="comp_no_exploration", strategy=mps.Options(explore=0.0)
  ),
  recipe_lib.Recipe(name="comp_no_history", strategy=mps.Options(history=0.0)),
  # Table 5's first row of MPS: the lowest last cost, and nothing else.
  recipe_lib.Recipe(
    name="comp_greedy", strategy=mps.Options(explore=0.0, history=0.0)
  ),
  # CoMP's scores under schedules that weigh nothing.
  recipe_lib.Recipe(name="round_robin", schedule="round_robin"),
  recipe_lib.Recipe(name="all_modes_together", schedule="together"),
  # The same fraction of units in every layer, one theta for all tokens.
  recipe_lib.Recipe(
    name="uniform", score="wanda", standardise="layer_rank", **_PLAIN
  ),
  recipe_lib.Recipe(name="magnitude", score="magnitude", **_PLAIN),
  recipe_lib.Recipe(
    name="random", score="random", standardise="none", **_PLAIN
  ),
  # Simple joint pruning: CoMP without CIM and MPS.
  recipe_lib.Recipe(name="sjp_together", **_PLAIN),
  recipe_lib.Recipe(
    name="sjp_params_first", schedule="params_first", **_NO_CIM
  ),
  recipe_lib.Recipe(
    name="sjp_tokens_first", schedule="tokens_first", **_NO_CIM
  ),
  # Spec `upop.md` part 1: the accumulated gradients of the masks.
  recipe_lib.Recipe(
    name="upop",
    score="taylor",
    standardise="z_model",
    prunes="params",
    accumulate="search",
    fade="search",
    unit_cost="upop",
    **_PLAIN,
  ),
  # Tokens alone; neurons by magnitude only make up the last MACs.
  recipe_lib.Recipe(
    name="madtp",
    score="magnitude",
    rule="madtp",
    combine="merge",
    prunes="tokens",
    **_PLAIN,
  ),
  recipe_lib.Recipe(
    name="evit",
    score="magnitude",
    rule="evit",
    combine="merge",
    prunes="tokens",
    **_PLAIN,
  ),
  # The same number of image tokens in every layer, each into its likeness.
  recipe_lib.Recipe(
    name="tome",
    score="magnitude",
    rule="tome",
    combine="match",
    prunes="vision_tokens",
    **_PLAIN,
  ),
  recipe_lib.Recipe(
    name="crossget",
    score="magnitude",
    rule="crossget",
    combine="match",
    prunes="vision_tokens",
    **_PLAIN,
  ),
)
RECIPES: Mapping[str, recipe_lib.Recipe] = {r.name: r for r in _RECIPES}


def build(
  name: str,
  overrides: Mapping[str, Any] | None = None,
  estimator: str = ESTIMATORS[0],
) -> recipe_lib.Recipe:
  """The named recipe, with single fields replaced.

  Args:
    name: a key of `RECIPES`.
    overrides: fields of `Recipe`, `strategy` as a mapping of fields of
      `mps.Options`; None values keep the recipe's own.
    estimator: the score of a recipe that names none, one of `ESTIMATORS`. An
      override of `score` goes before it.

  Raises:
    ValueError: an unknown recipe, or a value that a field does not take.
  """
  if name not in RECIPES:
    raise ValueError(f"recipe must be one of {tuple(RECIPES)}, not {name!r}")
  if estimator not in ESTIMATORS:
    raise ValueError(
      f"estimator must be one of {ESTIMATORS}, not {estimator!r}"
    )
  recipe = RECIPES[name]
  if recipe.score is None:
    recipe = dataclasses.replace(recipe, score=estimator)
  fields = {k: v for k, v in dict(overrides or {}).items() if v is not None}
  options = fields.pop("strategy", None)
  if options:
    options = {k: v for k, v in dict(options).items() if v is not None}
    fields["strategy"] = mps.Options(
      **{**dataclasses.asdict(recipe.strategy), **options}
    )
  return dataclasses.replace(recipe, **fields)

"""Learning rates by path: parts of a model that train slower, or not at all.

New layers on pretrained towers want a rate at which the towers would forget
what they know.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from comp_jax import errors
from comp_jax.core import prunable as prunable_lib

# Patterns that must match a whole '/'-joined path, and the factor on the
# learning rate there; the first match wins, without one the factor is 1.
Rules = tuple[tuple[str, float], ...]


def check(rules: Sequence, params: Mapping) -> Rules:
  """The rules, each of which matches some array of `params`.

  Raises:
    UserError: not pairs of a pattern and a factor of at least 0, or a pattern
      that no path matches.
  """
  for rule in rules:
    if (
      not isinstance(rule, Sequence)
      or isinstance(rule, str)
      or len(rule) != 2
      or not isinstance(rule[0], str)
      or isinstance(rule[1], bool)
      or not isinstance(rule[1], (int, float))
      or not rule[1] >= 0
    ):
      raise errors.UserError(
        "config.train.rates holds pairs of a pattern and a factor of at least "
        f"0, not {rule!r}"
      )
  paths = [_path(keys) for keys, _ in jax.tree.leaves_with_path(params)]
  for pattern, _ in rules:
    try:
      matched = any(re.fullmatch(pattern, path) for path in paths)
    except re.error as error:
      raise errors.UserError(
        f"config.train.rates: {pattern!r} is no regular expression ({error})"
      ) from error
    if not matched:
      raise errors.UserError(
        f"config.train.rates: {pattern!r} matches no array of the model; paths "
        f"are like {', '.join(paths[:: max(len(paths) // 3, 1)][:3])}"
      )
  return tuple((pattern, float(factor)) for pattern, factor in rules)


def scaled(rules: Rules) -> optax.GradientTransformation:
  """Updates times the factors of their paths."""

  def update(updates, params=None):
    del params
    return jax.tree_util.tree_map_with_path(
      lambda keys, update: update * _factor(rules, keys), updates
    )

  return optax.stateless(update)


def freezing(
  prunable: prunable_lib.Prunable, rules: Rules
) -> prunable_lib.Prunable:
  """The model without gradients where the factor is 0: they are not computed.

  A frozen tower then costs a forward pass alone.
  """

  def forward(params: Mapping, *arguments: Any) -> Any:
    params = jax.tree_util.tree_map_with_path(
      lambda keys, leaf: (
        leaf if _factor(rules, keys) else jax.lax.stop_gradient(leaf)
      ),
      params,
    )
    return prunable.forward(params, *arguments)

  return dataclasses.replace(prunable, forward=forward)


def _factor(rules: Rules, keys: tuple) -> float:
  path = _path(keys)
  matches = (f for pattern, f in rules if re.fullmatch(pattern, path))
  return next(matches, 1.0)


def _path(keys: tuple) -> str:
  return jax.tree_util.keystr(keys, simple=True, separator="/")

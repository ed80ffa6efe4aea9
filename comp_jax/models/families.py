"""From a spec to the module that builds it: what loops and stores call.

A family is a module with `prunable`, `macs`, `param_shapes` and
`initial_params`, each of which takes the family's spec.
"""

import types

from comp_jax.models import blip, specs, towers, two_tower

_MODULES = {specs.TwoTowerSpec: two_tower, specs.MatchingSpec: blip}


def of(spec: specs.ModelSpec) -> types.ModuleType:
  """The module of a spec's family."""
  return _MODULES[type(spec)]


def params_count(spec: specs.ModelSpec) -> int:
  """The number of parameters of a dense or compact model, from its spec."""
  return towers.params_count(of(spec).param_shapes(spec))

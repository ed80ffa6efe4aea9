"""From a spec to the module that builds it: what loops and stores call.

A family is a module with `prunable`, `macs`, `param_shapes` and
`initial_params`, each of which takes the family's spec.
"""

import types
from collections.abc import Mapping

from jaxtyping import Array

from comp_jax.core import cost
from comp_jax.models import (
  blip,
  blip_nlvr,
  encoder,
  specs,
  towers,
  two_tower,
)

_MODULES = {
  specs.TwoTowerSpec: two_tower,
  specs.MatchingSpec: blip,
  specs.NlvrSpec: blip_nlvr,
}
_MODELS = {
  specs.TwoTowerSpec: two_tower.TwoTower,
  specs.MatchingSpec: blip.Matching,
  specs.NlvrSpec: blip_nlvr.Nlvr,
}


def of(spec: specs.ModelSpec) -> types.ModuleType:
  """The module of a spec's family."""
  return _MODULES[type(spec)]


def traced(
  spec: specs.ModelSpec,
  params: Mapping,
  batch: Mapping,
  policies: Mapping | None,
) -> tuple[dict, dict, dict[str, list[Array]]]:
  """The outputs, each tower's aux, and its hidden state after every layer.

  Args:
    spec: a dense or compact model.
    params: its weights.
    batch: inputs of the family.
    policies: token policy of each tower, or None.
  """
  spec, params = towers.unrolled(spec, params)
  (output, aux), state = _MODELS[type(spec)](spec).apply(
    {"params": params},
    batch,
    policies=policies,
    mutable=["intermediates"],
    capture_intermediates=lambda module, _: isinstance(
      module, encoder.EncoderLayer
    ),
  )
  captured = state["intermediates"]
  hidden = {
    tower: [
      captured[tower]["encoder"][f"layers_{i}"]["__call__"][0][0][0].x
      for i in range(getattr(spec, tower).encoder.depth)
    ]
    for tower in towers.NAMES
  }
  return output, aux, hidden


def legacy_macs(spec: specs.ModelSpec, inference: float) -> float | None:
  """The published papers' convention, or None where there is none.

  CLIP is costed with its momentum twins and the similarities to the queues
  (spec `upop.md` part 4).
  """
  if isinstance(spec, specs.TwoTowerSpec) and spec.text.kind == "clip":
    return 2 * inference + 4 * spec.joint_width * (cost.CLIP_QUEUE + 1)
  return None


def params_count(spec: specs.ModelSpec) -> int:
  """The number of parameters of a dense or compact model, from its spec."""
  return towers.params_count(of(spec).param_shapes(spec))

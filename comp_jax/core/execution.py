"""How a model is run: which units, which tokens, what is gathered."""

import dataclasses
import functools
import typing
from collections.abc import Mapping

import jax

from comp_jax.core import importance
from comp_jax.core import tokens as tokens_lib


@typing.no_type_check  # Leaves are shapes, shardings or tracers at times.
@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["masks", "probes", "policy"],
  meta_fields=["estimator"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerExecution:
  """How one tower is run; as it stands, dense and gathering nothing.

  Attributes:
    masks: soft or hard masks: {"attn": [l, u], "mlp": [l, m]}, and one for
      each cross-attention; None keeps all units.
    probes: zeros like the masks, whose cotangents become scores (taylor); None
      taps nothing.
    policy: the token policy; None drops nothing.
    estimator: what to gather for the parameter scores.
  """

  masks: Mapping | None = None
  probes: Mapping | None = None
  policy: tokens_lib.TokenPolicy | None = None
  estimator: importance.Estimator | None = None


@typing.no_type_check  # Leaves are shapes, shardings or tracers at times.
@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["masks", "probes", "policies"],
  meta_fields=["estimator"],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
  """How a model is run; as it stands, dense and gathering nothing.

  Attributes:
    masks: those of every tower, by its name, or None.
    probes: the same of its probes.
    policies: token policy by tower; one that is not named drops nothing.
    estimator: what to gather for the parameter scores.
  """

  masks: Mapping | None = None
  probes: Mapping | None = None
  policies: Mapping | None = None
  estimator: importance.Estimator | None = None

  def of(self, tower: str) -> TowerExecution:
    """How a tower of the model is run."""
    return TowerExecution(
      masks=part(self.masks, tower),
      probes=part(self.probes, tower),
      policy=(self.policies or {}).get(tower),
      estimator=self.estimator,
    )


def part(tree: Mapping | None, tower: str) -> Mapping | None:
  """A tower's part of masks or probes, if there are any."""
  return None if tree is None else tree[tower]


DENSE, DENSE_TOWER = Execution(), TowerExecution()

"""Specs as plain JSON types, and back."""

import dataclasses
from collections.abc import Mapping

from comp_jax.models import specs

_FAMILIES = {
  kind.family: kind
  for kind in (
    specs.TwoTowerSpec,
    specs.MatchingSpec,
    specs.NlvrSpec,
    specs.RetrievalSpec,
    specs.CaptionSpec,
    specs.VqaSpec,
  )
}
_TEXTS = {
  kind.kind: kind
  for kind in (specs.BertSpec, specs.ClipTextSpec, specs.DecoderSpec)
}


def to_dict(spec: specs.ModelSpec) -> dict:
  """The spec as plain JSON types."""
  return dataclasses.asdict(spec)


def from_dict(values: Mapping) -> specs.ModelSpec:
  """The spec that `to_dict` wrote.

  Raises:
    KeyError, TypeError: a field is missing or unknown.
  """

  def layer(fields):
    fields = dict(fields)
    cross = tuple(specs.AttentionSpec(**x) for x in fields.pop("cross", ()))
    return specs.LayerSpec(cross=cross, **fields)

  def tower(cls, fields):
    fields = dict(fields)
    inner = dict(fields.pop("encoder"))
    layers = tuple(layer(x) for x in inner.pop("layers"))
    fields = {
      k: tuple(v) if isinstance(v, list | tuple) else v
      for k, v in fields.items()
    }
    return cls(encoder=specs.EncoderSpec(layers=layers, **inner), **fields)

  values = dict(values)
  # Folders that were written before there were several name no kind.
  family = _FAMILIES[values.get("family", "two_tower")]
  sides = {name: values.pop(name) for name in family.towers}
  kinds = {
    name: _TEXTS[fields.get("kind", "bert")] for name, fields in sides.items()
  }
  kinds["vision"] = specs.VitSpec
  sides = {name: tower(kinds[name], sides[name]) for name in sides}
  return family(**sides, **values)

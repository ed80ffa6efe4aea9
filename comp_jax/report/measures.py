"""Tables and figures of what `train.diagnose` measures."""

from collections.abc import Mapping
from typing import Any

from comp_jax.report import panels, section, tables, text

_BLOCKS = {
  "attn": "attention",
  "mlp": "MLP",
  "cross": "cross-attention",
  "cross0": "cross-attention, first image",
  "cross1": "cross-attention, second image",
}


def overlap(found: Mapping[str, Mapping[str, Any]]) -> section.Section:
  """What `diagnose.overlap` measured (Figure 2a)."""
  values = {name: each["overlap"] for name, each in found.items()}
  chance = {name: each["chance"] for name, each in found.items()}
  return section.Section(
    title="Overlap of tokens",
    figures=(
      section.Figure(
        name="overlap",
        caption="Tokens that dominate parameter importance and are among the "
        "most important ones too, layer by layer; dashed: by chance.",
        alt="Overlap of tokens over layers",
        draw=lambda dark: panels.draw(
          _over_layers(values, chance),
          x_label="Layer",
          y_label="Overlap",
          level_label="by chance",
          dark=dark,
        ),
      ),
    ),
    grids=(_by_layer("Overlap, in per cent", values, {"by chance": chance}),),
    notes=(
      "Of the tokens that account for most of the layer's parameter importance "
      "(Eq. 3), those that are also among the most important by attention "
      "(Eq. 6); an MLP is held against the next layer's scores.",
    ),
  )


def _towers(names) -> dict[str, list[str]]:
  """Tower -> its groups."""
  towers = {}
  for name in names:
    towers.setdefault(name.split("/")[0], []).append(name)
  return towers


def _block(name: str) -> str:
  block = name.split("/")[1]
  return _BLOCKS.get(block, block)


def _over_layers(values, levels):
  """A panel per tower, a line per block."""
  return [
    panels.Panel(
      title=tower.capitalize(),
      lines=tuple(
        panels.Line(
          label=_block(name), x=range(len(values[name])), y=values[name]
        )
        for name in names
      ),
      level=levels[names[0]],
    )
    for tower, names in _towers(values).items()
  ]


def _by_layer(title, values, more) -> tables.Grid:
  """Layers by groups, in per cent, and further rows."""
  show = lambda x: text.number(100 * x, 1)  # noqa: E731
  depth = max(len(layers) for layers in values.values())
  rows = [
    (
      str(layer),
      *(show(v[layer]) if layer < len(v) else "" for v in values.values()),
    )
    for layer in range(depth)
  ]
  means = (show(sum(v) / len(v)) for v in values.values())
  rows.append(("mean", *means))
  for name, each in more.items():
    rows.append((name, *(show(each[group]) for group in values)))
  names = (f"{n.split('/')[0]} {_block(n)}" for n in values)
  return tables.Grid(title=title, columns=("Layer", *names), rows=tuple(rows))

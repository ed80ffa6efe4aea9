"""Tables and figures of what `train.diagnose` and `train.trials` measure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from comp_jax.report import panels, section, tables, text

_BLOCKS = {
  "attn": "attention",
  "mlp": "MLP",
  "cross": "cross-attention",
  "cross0": "cross-attention, first image",
  "cross1": "cross-attention, second image",
}


# (what, how) of `diagnose.ranks` -> its name.
_ORDERS = {
  ("tokens", "cit"): "tokens, with CIT",
  ("tokens", "no_cit"): "tokens, without",
  ("tokens", "apart"): "tokens, between the two",
  ("neurons", "cit"): "neurons, with CIT",
  ("neurons", "no_cit"): "neurons, without",
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


def ranks(
  found: Mapping[str, Mapping[str, Any]], shares: Sequence[float]
) -> section.Section:
  """What `diagnose.ranks` measured (Figure 5); means over layers."""
  means = {
    tower: {
      label: [sum(layers) / len(layers) for layers in each[what][how]]
      for (what, how), label in _ORDERS.items()
    }
    for tower, each in found.items()
  }
  grids = tuple(
    tables.Grid(
      title=f"{tower.capitalize()}: distortion, mean over layers",
      columns=("Heads removed", *each),
      rows=tuple(
        (
          f"{text.number(100 * share, 0)} %",
          *(text.number(values[i]) for values in each.values()),
        )
        for i, share in enumerate(shares)
      ),
    )
    for tower, each in means.items()
  )
  return section.Section(
    title="Distortion of ranks",
    figures=(
      section.Figure(
        name="ranks",
        caption="How far the orders of tokens and of neurons move from the "
        "dense model's when heads are removed: 0 not at all, 1 to an unrelated "
        "order.",
        alt="Rank distortion over the share of heads removed",
        draw=lambda dark: panels.draw(
          [
            panels.Panel(
              title=tower.capitalize(),
              lines=tuple(
                panels.Line(label=label, x=shares, y=values)
                for label, values in each.items()
              ),
            )
            for tower, each in means.items()
          ],
          x_label="Share of each layer's heads removed",
          y_label="1 − rank correlation",
          dark=dark,
        ),
      ),
    ),
    grids=grids,
    notes=(
      "1 - Spearman's correlation with the order of the dense model, within "
      "each image or text (tokens) or layer (neurons). Each layer loses its "
      "least important heads; weights stay, and no token falls. Between the "
      "two: the order with CIT, which is that of the model without the heads, "
      "against the order without.",
    ),
  )


def influence(
  found: Mapping[str, Mapping[str, Any]], share: float
) -> section.Section:
  """What `diagnose.influence` measured (Figure 2b)."""
  least = f"{text.number(100 * share, 0)} %"
  values = {name: each["influential"] for name, each in found.items()}
  level, curves = {}, {}
  for name, each in found.items():
    columns = list(zip(*each["influence"], strict=True))
    level[name] = (len(columns) // 2) / len(columns)
    curves[name] = [sum(column) / len(column) for column in columns]
  return section.Section(
    title="Influence on the order of tokens",
    figures=(
      section.Figure(
        name="influence",
        caption="How far removing one unit moves the order of its tower's "
        "tokens, from the least important units to the most important ones; "
        "mean over layers.",
        alt="Influence on token ranks over unit importance",
        draw=lambda dark: panels.draw(
          [
            panels.Panel(
              title=tower.capitalize(),
              lines=tuple(
                panels.Line(
                  label=_block(name),
                  x=_spread(len(curves[name])),
                  y=curves[name],
                )
                for name in names
              ),
            )
            for tower, names in _towers(found).items()
          ],
          x_label="Importance, from the least to the most",
          y_label="1 − rank correlation",
          dark=dark,
        ),
      ),
    ),
    grids=(
      _by_layer(
        f"Influential ones among the least important {least}, in per cent",
        values,
        {"unrelated": level},
      ),
    ),
    notes=(
      "A unit is influential when removing it alone moves the order of the "
      "tokens more than removing the layer's median unit does: 0 where what "
      "matters little moves little; “unrelated”: if importance said nothing.",
    ),
  )


def damage(
  found: Mapping[str, Any], shares: Sequence[float], mode: str
) -> section.Section:
  """What `trials.damage` measured."""
  metric = found["metric"]
  ways = list(next(iter(metric.values())))
  percent = [f"{text.number(100 * share, 1)} %" for share in shares]
  grids = tuple(
    tables.Grid(
      title=f"Metric with {gone} of the MACs gone ({mode}), dense "
      f"{text.number(found['dense'])}",
      columns=("Score", *ways),
      rows=tuple(
        (name, *(text.number(each[how][i]) for how in ways))
        for name, each in metric.items()
      ),
    )
    for i, gone in enumerate(percent)
  )
  return section.Section(
    title="Damage before training",
    figures=(
      section.Figure(
        name="damage",
        caption="Validation metric when the lowest units have gone, by score "
        "and by how the scores of different layers are compared; higher is "
        "better.",
        alt="Validation metric over the share of MACs removed",
        draw=lambda dark: panels.draw(
          [
            panels.Panel(
              title=how,
              lines=tuple(
                panels.Line(label=name, x=shares, y=each[how])
                for name, each in metric.items()
              ),
              level=found["dense"],
            )
            for how in ways
          ],
          x_label="MACs removed",
          y_label="Metric",
          level_label="dense",
          dark=dark,
        ),
      ),
    ),
    grids=grids,
    notes=(
      "Nothing is trained after units go: a score that looks best here need "
      "not be the one from which training recovers best.",
    ),
  )


def choices(found: Mapping[str, Any], chunk: int) -> section.Section:
  """What `trials.choices` measured, on chunks of so many examples."""
  modes, whole = found["modes"], np.array(found["whole"])
  best = whole.argmin()
  subsets = {
    chunk * int(size): np.array(costs)
    for size, costs in found["subsets"].items()
  }
  rows = []
  for size, costs in subsets.items():
    chosen = costs.argmin(axis=1)
    # Of the subsets that might have been drawn; a single one tells none.
    spreads = costs.std(axis=0, ddof=min(1, len(costs) - 1))
    rows.append(
      (
        str(size),
        str(len(costs)),
        f"{text.number(100 * np.mean(chosen == best), 0)} %",
        text.number(whole[chosen].mean()),
        *(
          f"{text.number(mean)} ± {text.number(spread)}"
          for mean, spread in zip(costs.mean(axis=0), spreads, strict=True)
        ),
      )
    )
  rows.append(
    ("all", "1", "", text.number(whole[best]), *map(text.number, whole))
  )
  sizes = list(subsets)
  return section.Section(
    title="Choice on fewer examples",
    figures=(
      section.Figure(
        name="choice",
        caption="Cost of each mode's first stage by the number of validation "
        "examples it is measured on: the mean, the lowest and the highest "
        "over disjoint subsets.",
        alt="Cost of each mode over validation examples",
        draw=lambda dark: panels.draw(
          [
            panels.Panel(
              title=mode,
              lines=tuple(
                panels.Line(
                  label=label,
                  x=sizes,
                  y=[float(of(costs[:, m])) for costs in subsets.values()],
                )
                for label, of in (
                  ("highest", np.max),
                  ("mean", np.mean),
                  ("lowest", np.min),
                )
              ),
              level=float(whole[m]),
            )
            for m, mode in enumerate(modes)
          ],
          x_label="Validation examples",
          y_label="Cost (Eq. 8)",
          level_label="all",
          dark=dark,
        ),
      ),
    ),
    grids=(
      tables.Grid(
        title=f"All examples choose {modes[best]}",
        columns=("Examples", "Subsets", "Same choice", "Its cost", *modes),
        rows=tuple(rows),
      ),
    ),
    notes=(
      "“Its cost”: of what the subsets choose, measured on all examples; the "
      "last columns: mean ± standard deviation over the subsets. Costs are "
      "those of a first stage before any training.",
    ),
  )


def _spread(count: int) -> list[float]:
  return [index / max(count - 1, 1) for index in range(count)]


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

"""The self-contained page of a run: no script, no file but itself."""

import base64
import collections.abc
import html
import json
import string
from typing import Any

from comp_jax.report import (
  compared,
  comparison,
  curves,
  patches,
  plots,
  runs,
  schema,
  section,
  structure,
  style,
  tables,
)
from comp_jax.report import text as words

_PAGE = string.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
$css
</style>
</head>
<body>
<main>
<header>
<h1>$title</h1>
<p class="sub">$subtitle</p>
</header>
$body
<footer>$footer</footer>
</main>
</body>
</html>
""")

_CSS = string.Template("""
:root { color-scheme: light dark; --page: #F4F5F7; --card: $l_surface;
  --ink: $l_ink; --muted: $l_muted; --line: #DDE1E6; --strong: #EEF3F8; }
@media (prefers-color-scheme: dark) { :root { --page: #0F1114;
  --card: $d_surface; --ink: $d_ink; --muted: $d_muted; --line: #2C3138;
  --strong: #20262E; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 44px 0 10px; }
h3 { font-size: .95rem; margin: 18px 0 6px; color: var(--muted);
  font-weight: 600; }
.sub, .notes, footer { color: var(--muted); }
.sub { margin: 6px 0 26px; }
.tiles { display: grid; gap: 12px; margin: 0 0 8px;
  grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); }
.tile, figure, .scroll, details { background: var(--card);
  border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 14px 18px; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: .88rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--muted); font-weight: 600; white-space: normal;
  vertical-align: bottom; }
tr:last-child td { border-bottom: 0; }
.w { text-align: left; }
tr.main td { font-weight: 650; background: var(--strong); }
.stages { font-size: .77rem; }
.stages th, .stages td { padding: 6px 5px; }
.stages th:first-child, .stages td:first-child { padding-left: 14px; }
.stages th:last-child, .stages td:last-child { padding-right: 14px; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 2px;
  margin-right: .5em; }
.notes { font-size: .88rem; padding-left: 1.2em; margin: 12px 0 0; }
figure { margin: 0 0 18px; padding: 16px 18px; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: var(--muted); font-size: .9rem; margin: 0 0 12px; }
details { padding: 10px 16px; margin: 0 0 12px; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font: .8rem/1.5 ui-monospace, SFMono-Regular, Menlo,
  Consolas, monospace; }
footer { margin-top: 40px; font-size: .85rem; }
""")

_FIGURE = string.Template("""<figure>
<figcaption>$caption</figcaption>
<picture>
<source media="(prefers-color-scheme: dark)" srcset="$dark">
<img alt="$alt" src="$light">
</picture>
</figure>
""")

_TILE = string.Template("""<div class="tile"><b>$value</b>
<span>$label</span></div>
""")


def page(
  report: schema.Report,
  samples: collections.abc.Mapping[str, Any] | None = None,
) -> str:
  """The whole page of a checked report.

  Args:
    report: a checked report.
    samples: arrays `image`, `valid` and `text` of some pictures, or None.
  """
  subtitle = (
    f"Recipe {report['recipe']}, ratio {report['ratio']:g}, "
    f"seed {report['seed']}, {report['created']}"
  )
  body = [_tiles(report), "<h2>Results</h2>\n"]
  grids = tables.summary(report)
  for grid in grids:
    if len(grids) > 1 or grid.title:
      body.append(f"<h3>{_escape(grid.title)}</h3>\n")
    body.append(_table(grid))
  body.append(_list(tables.notes(report)))
  body += figures(report, samples)
  if report["stages"]:
    body.append("<h2>Stages</h2>\n")
    body.append(_table(tables.stages(report), "stages"))
  body.append("<h2>Configuration and versions</h2>\n")
  config = json.dumps(report["config"], indent=2, ensure_ascii=False)
  body.append(
    "<details><summary>Configuration</summary>"
    f"<pre>{_escape(config)}</pre></details>\n"
  )
  versions = "\n".join(
    f"{k} {v}" for k, v in sorted(report["versions"].items())
  )
  body.append(
    "<details><summary>Versions</summary>"
    f"<pre>{_escape(versions)}</pre></details>\n"
  )
  return _document(report["name"], subtitle, body, "report.json")


def comparison_page(
  comparisons: collections.abc.Sequence[comparison.Comparison],
  left_out: collections.abc.Sequence[runs.LeftOut],
) -> str:
  """The whole page of a comparison, one section per model."""
  sections = [
    section.Section(
      title=result.title,
      figures=(
        section.Figure(
          name="cost",
          caption="Fine-tuned models: the metric over their MACs, with its "
          "interval where there is one.",
          alt="Metric against MACs, a line per recipe",
          draw=lambda dark, result=result: curves.cost(result, dark=dark),
        ),
      ),
      grids=tuple(compared.grids(result)),
      notes=tuple(compared.notes(result)),
    )
    for result in comparisons
  ]
  if common := compared.across(comparisons):
    sections.append(common)
  if left_out:
    lines = tuple(compared.omissions(left_out))
    sections.append(section.Section(title="Left out", notes=lines))
  subtitle = ", ".join(dict.fromkeys(result.name for result in comparisons))
  return sections_page("Comparison", subtitle, sections, "compare.csv")


def sections_page(
  title: str,
  subtitle: str,
  sections: collections.abc.Sequence[section.Section],
  data: str,
) -> str:
  """The whole page of some sections; `data` is the file beside it."""
  body = []
  for part in sections:
    body.append(f"<h2>{_escape(part.title)}</h2>\n")
    for figure in part.figures:
      body.append(_figure(figure.caption, figure.alt, figure.draw))
    for grid in part.grids:
      body.append(f"<h3>{_escape(grid.title)}</h3>\n{_table(grid)}")
    if part.notes:
      body.append(_list(part.notes))
  return _document(title, subtitle, body, data)


def _document(
  title: str, subtitle: str, body: collections.abc.Sequence[str], data: str
) -> str:
  """The page around its sections; `data` is the file beside it."""
  css = _CSS.substitute(
    {
      f"{letter}_{name}": getattr(theme, name)
      for letter, theme in (("l", style.LIGHT), ("d", style.DARK))
      for name in ("surface", "ink", "muted")
    }
  )
  return _PAGE.substitute(
    title=_escape(title),
    css=css.strip(),
    subtitle=_escape(subtitle),
    body="".join(body),
    footer=f"The same numbers, for programs: {data} beside this page.",
  )


def _list(lines: collections.abc.Sequence[str]) -> str:
  items = "".join(f"<li>{_escape(line)}</li>\n" for line in lines)
  return f'<ul class="notes">\n{items}</ul>\n'


def figures(
  report: schema.Report,
  samples: collections.abc.Mapping[str, Any] | None = None,
) -> list[str]:
  """The page's figures with their captions, those that have data."""
  out = []
  if report["stages"]:
    out.append("<h2>How the model was pruned</h2>\n")
    out.append(
      _figure(
        "MACs and selection metric after each stage; the colour is the mode "
        "that the stage pruned, a star marks an explored one, and the grey "
        "tick is the metric before the stage's training.",
        "MACs and metric over stages",
        lambda dark: plots.stages(report["stages"], report["macs"], dark=dark),
      )
    )
    out.append(
      _figure(
        "Cost R of each mode, which the next choice reads: lower is cheaper; a "
        "filled marker is a stage in which the mode was pruned.",
        "Cost of each mode over stages",
        lambda dark: plots.costs(report["stages"], report["probe"], dark=dark),
      )
    )
  if report["kept"]:
    out.append("<h2>What is left</h2>\n")
    out.append(
      _figure(
        "Heads, neurons and tokens that each layer kept, against the dense "
        "model; a tick is the deployed graph's static count, the most that one "
        "example keeps.",
        "Kept structure per layer",
        lambda dark: structure.kept(report["kept"], dark=dark),
      )
    )
  if samples is not None and len(samples["image"]):
    out.append("<h2>Where the model looks</h2>\n")
    out.append(
      _figure(
        "Patches alive after layers of the pruned model, for sample images, by "
        "the thresholds that its search ended with (fixed token counts may "
        "keep others); greyed patches were dropped, the number counts those "
        "left.",
        "Surviving patches over sample images",
        lambda dark: patches.patches(
          samples["image"], samples["valid"], list(samples["text"]), dark=dark
        ),
      )
    )
  return out


def _tiles(report: schema.Report) -> str:
  macs, params = report["macs"], report["params"]
  tiles = []
  if macs["final"] is not None:
    before = words.quantity(macs["dense"], macs["dense"])
    after = words.quantity(macs["final"], macs["dense"])
    gone = words.removed(macs["final"], macs["dense"])
    tiles.append((gone, f"of the MACs removed: {before} → {after}"))
  if params["final"] is not None:
    before = words.quantity(params["dense"], params["dense"])
    after = words.quantity(params["final"], params["dense"])
    gone = words.removed(params["final"], params["dense"])
    tiles.append((gone, f"of the parameters removed: {before} → {after}"))
  split = tables.main_split(report)
  name = tables.main_metric(report, split)
  dense = report["metrics"]["dense"].get(split, {}).get(name)
  tuned = report["metrics"].get("finetuned", {}).get(split, {}).get(name)
  if dense is not None and tuned is not None:
    tiles.append(
      (
        f"{words.number(dense)} → {words.number(tuned)}",
        f"{words.metric_name(name)} on {split}, dense → fine-tuned",
      )
    )
  if not tiles:
    return ""
  filled = "".join(
    _TILE.substitute(value=_escape(value), label=_escape(label))
    for value, label in tiles
  )
  return f'<div class="tiles">\n{filled}</div>\n'


def _table(grid: tables.Grid, kind: str = "summary") -> str:
  def row(cells: tuple[str, ...], tag: str, mode: str | None = None) -> str:
    out = []
    for i, cell in enumerate(cells):
      side = ' class="w"' if i < grid.left else ""
      dot = ""
      if mode is not None and i == 1:
        dot = f'<i class="dot" style="background:{style.colour(mode)}"></i>'
      out.append(f"<{tag}{side}>{dot}{_escape(cell)}</{tag}>")
    quoted = cells[0] == tables.ROW_NAMES["finetuned"]
    start = '<tr class="main">' if quoted else "<tr>"
    return f"{start}{''.join(out)}</tr>\n"

  modes = grid.modes or (None,) * len(grid.rows)
  lines = "".join(
    row(cells, "td", mode) for cells, mode in zip(grid.rows, modes, strict=True)
  )
  return (
    f'<div class="scroll"><table class="{kind}">\n<thead>\n'
    f"{row(grid.columns, 'th')}</thead>\n<tbody>\n{lines}</tbody>\n"
    "</table></div>\n"
  )


def _figure(
  caption: str, alt: str, draw: collections.abc.Callable[[bool], bytes]
) -> str:
  return _FIGURE.substitute(
    caption=_escape(caption),
    alt=_escape(alt),
    light=_data_uri(draw(False)),
    dark=_data_uri(draw(True)),
  )


def _data_uri(svg: bytes) -> str:
  return "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii")


def _escape(value: str) -> str:
  return html.escape(value, quote=True)

"""`evaluate`: the metrics of a saved model on a split."""

import argparse

import rich.console

from comp_jax.cli import configs, measured
from comp_jax.data import hidden
from comp_jax.interop import load as load_lib
from comp_jax.report import section, tables, text


def add(verbs: argparse._SubParsersAction) -> None:
  """Declares the verb."""
  parser = verbs.add_parser(
    "evaluate", help="measure a model on splits of a config's data"
  )
  configs.add_argument(parser)
  parser.add_argument(
    "--model", required=True, help="folder of a model, or of its run"
  )
  parser.add_argument(
    "--split",
    nargs="+",
    help="of the config's data (those that its reports have)",
  )
  parser.add_argument(
    "--hide",
    nargs="+",
    default=(),
    choices=hidden.PARTS,
    help="what the model does not see (grey pictures, empty texts)",
  )
  measured.add_out(parser)
  parser.set_defaults(run=run, what="evaluate")


def run(arguments: argparse.Namespace) -> None:
  """Reads, measures and shows."""
  from comp_jax.train import evaluation

  config = configs.load(arguments.config, arguments.changes)
  path = measured.model(arguments.model)
  loaded = load_lib.load(path)
  splits = arguments.split or config.data.report_splits
  found = evaluation.evaluate(config, loaded, splits, arguments.hide)
  found = {split: each.metrics for split, each in found.items()}
  names = list(dict.fromkeys(name for each in found.values() for name in each))
  without = f", without {' and '.join(arguments.hide)}" * bool(arguments.hide)
  grid = tables.Grid(
    title=f"{path}{without}",
    columns=("Split", *map(text.metric_name, names)),
    rows=tuple(
      (split, *(text.number(each.get(name), 4) for name in names))
      for split, each in found.items()
    ),
  )
  measured.print_part(
    rich.console.Console(),
    arguments,
    f"model {path}, config {arguments.config}{without}",
    section.Section(title="Metrics", grids=(grid,)),
    {
      "model": str(path),
      "config": arguments.config,
      "hidden": list(arguments.hide),
      "metrics": found,
    },
  )

"""`compare`: finished runs side by side, over seeds and examples."""

import argparse
import pathlib

import rich.console
import rich.text

from comp_jax import errors
from comp_jax.report import (
  comparable,
  compared,
  comparison,
  html,
  runs,
  tables,
  write,
)

_WIDTH = 120  # Characters that the tables need.


def add(verbs: argparse._SubParsersAction) -> None:
  """Declares the verb."""
  parser = verbs.add_parser("compare", help="finished runs side by side")
  parser.add_argument(
    "runs",
    nargs="+",
    metavar="RUNS",
    help="folders of runs, or folders of such folders",
  )
  parser.add_argument(
    "--out", help="folder for compare.md, compare.csv and compare.html"
  )
  parser.add_argument("--split", help="split of the data to compare on")
  parser.add_argument("--metric", help="metric to compare by")
  parser.add_argument(
    "--reference",
    action="append",
    metavar="METHOD",
    help="recipe or method that differences are taken from; given more than "
    "once, the first that ran on a task (comp; without a run of it, the only "
    "other form of CoMP that ran)",
  )
  parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
  """Prints the tables, and writes them where a folder is given."""
  models, left_out = comparable.gather(arguments.runs)
  comparisons = []
  for members in models.values():
    try:
      result, lacking = comparison.compare(
        members,
        split=arguments.split,
        metric=arguments.metric,
        reference=arguments.reference,
      )
    except errors.UserError as error:
      # Runs of another task must not hide what these found.
      reason = str(error)
      left_out += [runs.LeftOut(path=r.path, reason=reason) for r in members]
    else:
      comparisons.append(result)
      left_out += lacking
  if not comparisons:
    raise errors.UserError(
      "no run can be compared: " + "; ".join(compared.omissions(left_out))
    )
  console = rich.console.Console()
  # A name cut short would be no name.
  console.width = max(console.width, _WIDTH)
  for result in comparisons:
    tables.print_part(
      console, result.title, compared.grids(result), compared.notes(result)
    )
  if common := compared.across(comparisons):
    tables.print_part(console, common.title, common.grids, common.notes)
  for line in compared.omissions(left_out):
    console.print(rich.text.Text(f"left out: {line}"), soft_wrap=True)
  if arguments.out:
    files = {
      "compare.html": html.comparison_page(comparisons, left_out),
      "compare.csv": compared.to_csv(comparisons),
      "compare.md": compared.to_markdown(comparisons, left_out),
    }
    folder = pathlib.Path(arguments.out)
    write.write_files(folder, {k: v.encode() for k, v in files.items()})
    console.print(f"written to {folder}", highlight=False)

"""The documented shape of `report.json`, its check and its reader.

The shape is declared once, below, and serves three ends: `check` compares a
report with it, `describe` prints it as documentation, and a reader finds here
what each number means. Format 1 only ever gains optional fields.
"""

import collections.abc
import dataclasses
import difflib
import json
import os
import pathlib
from typing import Any

from comp_jax import errors

FORMAT = 1
FILE_NAME = "report.json"
# Rows of the main table, in the order in which a run produces them.
ROWS = ("dense", "masked", "compacted", "finetuned", "finetuned_threshold")

Report = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaf:
  """A single value."""

  kind: str  # "str", "int", "float", "bool" or "any".
  doc: str = ""
  null: bool = False  # True: null is allowed (not measured, or NaN).


@dataclasses.dataclass(frozen=True, kw_only=True)
class Items:
  """A list whose entries all have one shape."""

  item: "Shape"
  doc: str = ""
  null: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A dictionary with free keys whose values all have one shape."""

  value: "Shape"
  doc: str = ""
  keys: tuple[str, ...] | None = None  # Names allowed; None: any.
  required: tuple[str, ...] = ()
  null: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
  """A dictionary with named fields."""

  fields: dict[str, "Shape"]
  doc: str = ""
  optional: tuple[str, ...] = ()
  extra: bool = False  # True: further fields are welcome.
  null: bool = False


Shape = Leaf | Items | Table | Record


def _text(doc: str) -> Leaf:
  return Leaf(kind="str", doc=doc)


def _whole(doc: str) -> Leaf:
  return Leaf(kind="int", doc=doc)


def _real(doc: str, null: bool = False) -> Leaf:
  return Leaf(kind="float", doc=doc, null=null)


def _measured(doc: str) -> Leaf:
  return _real(doc, null=True)


_STAGE = Record(
  doc="one stage of the outer loop",
  extra=True,
  optional=("metric_uncut", "macs_fraction", "removable"),
  fields={
    "index": _whole("0, 1, 2, ...; the warm-up stages come first"),
    "mode": _text('the mode pruned; "warmup", "all", "none" or "a+b"'),
    "explored": Leaf(kind="bool", doc="sampled (Eq. 9), not the argmin of R"),
    "macs": _real("MACs per example after the stage"),
    "macs_before": _real("MACs per example before the stage"),
    "macs_fraction": _real("MACs after the stage, as a fraction of dense"),
    "metric": _measured("selection metric after the stage's training"),
    "metric_before": _measured("selection metric before the stage"),
    "metric_immediate": _measured(
      "selection metric right after pruning, before the stage's training"
    ),
    "metric_uncut": _measured(
      "selection metric after the same training without the stage's cut; null "
      "where prune.cost is not paired"
    ),
    "cost": _measured(
      "Eq. 8's cost, from metric_uncut where that is known; null when MACs "
      "hardly moved"
    ),
    "immediate_cost": _measured("the same cost before the stage's training"),
    "costs": Table(value=_measured("R"), doc="R of each mode after the update"),
    "thresholds": Table(
      value=_measured("theta"), doc="token threshold of each tower"
    ),
    "exhausted": Table(
      value=Leaf(kind="bool"),
      doc="modes that have nothing left to remove, or rest (prune.least_step, "
      "prune.keep_pace)",
    ),
    "removable": Table(
      value=_real("removable"),
      doc="what each mode could still remove, as a fraction of dense",
    ),
    "loss": _measured("mean training loss over the stage"),
    "seconds": _measured("wall time of the stage"),
  },
)

_TOWER = Record(
  doc="what one tower kept, layer by layer",
  extra=True,
  optional=("cross_heads", "dense_cross_heads"),
  fields={
    "heads": Items(item=Leaf(kind="int"), doc="heads kept in each layer"),
    "dense_heads": _whole("heads per layer of the dense model"),
    "neurons": Items(item=Leaf(kind="int"), doc="MLP neurons kept per layer"),
    "dense_neurons": _whole("MLP neurons per layer of the dense model"),
    "cross_heads": Items(
      item=Leaf(kind="int"), doc="cross-attention heads kept in each layer"
    ),
    "dense_cross_heads": _whole("the same per layer of the dense model"),
    "tokens_mean": Items(
      item=_measured("tokens"),
      doc="mean tokens under the thresholds: at the input, after each layer",
    ),
    "tokens_static": Items(
      item=Leaf(kind="int"),
      doc="static tokens after each layer, the deployed graph",
      null=True,
    ),
    "tokens_dense": _real("mean tokens of the dense model"),
  },
)

SHAPE = Record(
  doc="one pruning run",
  optional=("dense_digest", "devices", "warnings"),
  fields={
    "format": _whole(f"format of this file: {FORMAT}"),
    "name": _text("name of the run"),
    "recipe": _text("pruning recipe, e.g. comp, uniform, magnitude"),
    "ratio": _real("fraction of the dense MACs to remove, in [0, 1)"),
    "seed": _whole("seed of the run"),
    "created": _text("time of writing, ISO 8601"),
    "dense_digest": _text(
      "SHA-256 of the dense model's parameters: runs that share it were pruned "
      "from the same weights"
    ),
    "macs": Record(
      doc="MACs (not G) per example: a mean over examples, not a whole number",
      optional=("padded_final", "finetuned_threshold"),
      fields={
        "dense": _real("the model before pruning"),
        "target": _measured("dense * (1 - ratio)"),
        "masked": _measured("end of pruning, masks and thresholds"),
        "compacted": _measured("the sliced model with static token counts"),
        "final": _measured(
          "the saved model: fine-tuned, with the tokens of "
          "config.finetune.tokens"
        ),
        "convention": _text('what an example is: "inference" or "legacy"'),
        "padded_final": _measured(
          "final, at padded lengths as executed; of static counts alone"
        ),
        "finetuned_threshold": _measured(
          "fine-tuned, thresholds executed: tokens kept on select, by "
          "thresholds moved to the target once the weights were tuned"
        ),
      },
    ),
    "params": Record(
      doc="numbers of parameters",
      fields={
        "dense": _whole("the model before pruning"),
        "final": Leaf(kind="int", doc="the compact model", null=True),
      },
    ),
    "metrics": Table(
      keys=ROWS,
      required=("dense",),
      doc="by row of the main table (those of config.evaluate.rows), then "
      "split, then metric",
      value=Table(value=Table(value=_measured("the metric"))),
    ),
    "stages": Items(item=_STAGE, doc="the pruning phase; may be empty"),
    "probe": Table(value=_measured("R"), doc="cold-start cost of each mode"),
    "warnings": Items(
      item=Leaf(kind="str"),
      doc="what the run told of itself: too few stages for its target, a "
      "warm-up that did harm, fewer examples of select than were asked for",
    ),
    "kept": Table(
      keys=("vision", "text", "answer"),
      value=_TOWER,
      doc="kept structure by tower",
    ),
    "compilations": Record(
      doc="how often each step was traced and compiled, in any one process",
      extra=True,
      optional=("finetune_step",),
      fields={
        "stage_step": _whole("the stage loop's step"),
        "evaluate": _whole("the evaluation"),
        "finetune_step": _whole("the fine-tuning step"),
      },
    ),
    "seconds": Record(
      doc="wall time by phase, over all processes of a resumed run (but for "
      "what a killed one spent on a phase that it did not end)",
      extra=True,
      optional=("evaluate",),
      fields={
        "prune": _measured("pruning"),
        "finetune": _measured("fine-tuning"),
        "evaluate": _measured("evaluations"),
        "total": _measured("the whole job"),
      },
    ),
    "devices": _text("number and kind of the devices that it ran on"),
    "versions": Table(value=Leaf(kind="str"), doc="versions of packages"),
    "config": Table(value=Leaf(kind="any"), doc="the configuration as it ran"),
  },
)


def check(report: Report, where: str = "report") -> None:
  """Nothing; raises UserError naming every missing or odd field."""
  problems = list(_problems(report, SHAPE, ""))
  if not problems and report["format"] != FORMAT:
    problems.append(f"format is {report['format']}, this reads {FORMAT}")
  if problems:
    raise errors.UserError(
      f"{where} is not a valid report: " + "; ".join(problems)
    )


def load(path: str | os.PathLike[str]) -> Report:
  """The checked report in a file, or in the `report.json` of a folder."""
  path = pathlib.Path(path)
  if path.is_dir():
    path = path / FILE_NAME
  try:
    report = json.loads(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise errors.UserError(
      f"cannot read the report {path}: {error.strerror}; "
      "give a finished run's folder or its report.json"
    ) from error
  except ValueError as error:
    raise errors.UserError(f"{path} is not JSON: {error}") from error
  check(report, str(path))
  return report


def describe() -> str:
  """Markdown list of every field with its type and meaning."""
  return "\n".join(_lines(SHAPE, "", 0)) + "\n"


def _problems(
  value: Any, shape: Shape, path: str
) -> collections.abc.Iterator[str]:
  name = path or "the report"
  if value is None:
    if not shape.null:
      yield f"{name} is null"
  elif isinstance(shape, Leaf):
    if not _fits(value, shape.kind):
      yield f"{name} should be {_kind(shape)}, not {_show(value)}"
  elif isinstance(shape, Items):
    if not isinstance(value, list | tuple):
      yield f"{name} should be a list, not {_show(value)}"
      return
    for i, item in enumerate(value):
      yield from _problems(item, shape.item, f"{path}[{i}]")
  elif not isinstance(value, collections.abc.Mapping):
    yield f"{name} should be a dictionary, not {_show(value)}"
  elif isinstance(shape, Table):
    for key in shape.required:
      if key not in value:
        yield f"{_join(path, key)} is missing"
    for key, item in value.items():
      if shape.keys is not None and key not in shape.keys:
        yield f"{_join(path, key)} is unknown{_nearest(key, shape.keys)}"
      else:
        yield from _problems(item, shape.value, _join(path, key))
  else:
    for key, field in shape.fields.items():
      if key in value:
        yield from _problems(value[key], field, _join(path, key))
      elif key not in shape.optional:
        yield f"{_join(path, key)} is missing"
    for key in value:
      if key not in shape.fields and not shape.extra:
        yield f"{_join(path, key)} is unknown{_nearest(key, shape.fields)}"


def _fits(value: Any, kind: str) -> bool:
  # bool is an int in Python, and never meant as a number here.
  if kind == "any":
    return True
  if kind == "bool" or isinstance(value, bool):
    return kind == "bool" and isinstance(value, bool)
  types = {"str": str, "int": int, "float": (int, float)}
  return isinstance(value, types[kind])


def _kind(shape: Shape) -> str:
  if isinstance(shape, Leaf):
    names = {"str": "a string", "int": "a whole number", "float": "a number"}
    text = names.get(shape.kind, "true or false")
  elif isinstance(shape, Items):
    text = "a list"
  else:
    text = "a dictionary"
  return text + (" or null" if shape.null else "")


def _show(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else text[:37] + "..."


def _join(path: str, key: Any) -> str:
  return f"{path}.{key}" if path else str(key)


def _nearest(key: Any, names: collections.abc.Iterable[str]) -> str:
  found = difflib.get_close_matches(str(key), list(names), n=1)
  return f" (did you mean {found[0]}?)" if found else ""


def _lines(
  shape: Shape, name: str, depth: int, optional: bool = False
) -> collections.abc.Iterator[str]:
  if name:
    text = _kind(shape) + (", optional" if optional else "")
    doc = f": {shape.doc}" if shape.doc else ""
    yield f"{'  ' * (depth - 1)}- `{name}` ({text}){doc}"
  if isinstance(shape, Record):
    for key, field in shape.fields.items():
      yield from _lines(field, key, depth + 1, key in shape.optional)
  elif isinstance(shape, Items) and not isinstance(shape.item, Leaf):
    yield from _lines(shape.item, "[i]", depth + 1)
  elif isinstance(shape, Table) and not isinstance(shape.value, Leaf):
    key = " | ".join(shape.keys) if shape.keys else "<name>"
    yield from _lines(shape.value, key, depth + 1)

"""The schema finds what is missing or odd, and lets a good report pass."""

import json
import pathlib

import pytest

from comp_jax import errors
from comp_jax.report import schema

ROOT = pathlib.Path(__file__).parents[2]


def test_a_good_report_passes(report, dense_only):
  schema.check(report)
  schema.check(dense_only)


@pytest.mark.parametrize(
  "name", sorted(set(schema.SHAPE.fields) - set(schema.SHAPE.optional))
)
def test_each_missing_top_level_field_is_named(report, name):
  del report[name]
  with pytest.raises(errors.UserError, match=rf"\b{name} is missing"):
    schema.check(report)


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    (("ratio",), "0.7", "ratio should be a number, not '0.7'"),
    (("seed",), True, "seed should be a whole number, not True"),
    (("seed",), None, "seed is null"),
    (("reciep",), "comp", "reciep is unknown .*recipe"),
    (("format",), 2, "format is 2, this reads 1"),
    (("macs", "dense"), None, r"macs\.dense is null"),
    (("macs", "finale"), 1.0, r"macs\.finale is unknown .*final"),
    (("metrics", "tuned"), {}, r"metrics\.tuned is unknown .*finetuned"),
    (("kept", "vision", "heads"), [1, 2.5], r"vision\.heads\[1\] should be a"),
    (("stages", 3, "explored"), 1, r"stages\[3\]\.explored should be true or"),
    (("stages", 3, "costs"), [], r"stages\[3\]\.costs should be a dict"),
    (("stages",), {}, "stages should be a list"),
    (("metrics", "dense", "test", "loss"), "x", r"dense\.test\.loss should"),
  ],
)
def test_odd_fields_are_named(report, path, value, message):
  place = report
  for key in path[:-1]:
    place = place[key]
  place[path[-1]] = value
  with pytest.raises(errors.UserError, match=message):
    schema.check(report)


def test_all_problems_are_collected(report):
  del report["seed"], report["macs"]["dense"], report["stages"][1]["mode"]
  del report["metrics"]["dense"]
  with pytest.raises(errors.UserError) as caught:
    schema.check(report)
  for name in ("seed", "macs.dense", "stages[1].mode", "metrics.dense"):
    assert f"{name} is missing" in str(caught.value)


def test_load_reads_a_file_and_a_folder(tmp_path, report):
  (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
  assert schema.load(tmp_path) == report
  assert schema.load(str(tmp_path / "report.json")) == report


def test_load_names_the_file_that_is_bad(tmp_path, report):
  with pytest.raises(errors.UserError, match="cannot read .*nothing"):
    schema.load(tmp_path / "nothing")
  path = tmp_path / "report.json"
  path.write_text("{", encoding="utf-8")
  with pytest.raises(errors.UserError, match="report.json is not JSON"):
    schema.load(tmp_path)
  del report["seed"]
  path.write_text(json.dumps(report), encoding="utf-8")
  with pytest.raises(errors.UserError, match="report.json is not a valid"):
    schema.load(tmp_path)


def test_the_documentation_has_the_description():
  text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
  assert schema.describe() in text


def test_the_description_names_every_field():
  text = schema.describe()
  for name in (
    "metric_immediate",
    "tokens_static",
    "padded_final",
    *(schema.SHAPE.fields),
  ):
    assert f"- `{name}` (" in text

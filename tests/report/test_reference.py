"""The method that differences are taken from."""

import pytest

from comp_jax import errors
from comp_jax.cli import verbs
from comp_jax.report import compared
from tests.report import kit


def test_without_comp_differences_are_from_its_only_form(tmp_path, make):
  for recipe, value in (("comp_wanda", 0.4), ("uniform", 0.3)):
    kit.save(tmp_path / recipe, kit.with_recall(make(0, recipe), value))
  cells, result = kit.cells(tmp_path)
  assert result.reference == "comp_wanda"
  assert cells["uniform"].difference == pytest.approx(-0.1)
  said = "No run of comp: differences are from comp_wanda."
  assert said in compared.notes(result)
  # Who asks for comp, or has two forms to choose from, is told so instead.
  assert kit.cells(tmp_path, reference="comp")[0]["uniform"].difference is None
  kit.save(
    tmp_path / "lookahead", kit.with_recall(make(0, "comp_lookahead"), 0.4)
  )
  assert kit.cells(tmp_path)[1].reference == "comp"
  kit.save(tmp_path / "comp", kit.with_recall(make(0), 0.4))
  (tmp_path / "lookahead" / "report.json").unlink()
  assert kit.cells(tmp_path)[1].reference == "comp"


def _scarce(folder, make, recipe, scarcity, value, **config):
  """A run whose config gives every recipe this constant of MPS."""
  report = kit.with_recall(make(0, recipe), value)
  named = {"name": recipe, "strategy": {"scarcity": scarcity}}
  kit.save(folder / f"{recipe}_{scarcity}", report, recipe=named, **config)


def test_a_reference_is_meant_by_its_recipe(tmp_path, make):
  _scarce(tmp_path, make, "comp_wanda", 2.0, 0.4)
  # Of another config, so it takes no part: neither in what all runs share.
  _scarce(tmp_path, make, "comp_wanda", 0.0, 0.2, data={"name": "other"})
  _scarce(tmp_path, make, "uniform", 0.0, 0.3)
  _scarce(tmp_path, make, "random", 2.0, 0.1)
  cells, result = kit.cells(tmp_path)
  # What a mode costs makes no difference to schedules that do not weigh it.
  assert set(cells) == {"comp_wanda", "uniform", "random"}
  assert cells["random"].difference == pytest.approx(-0.3)
  _scarce(tmp_path, make, "comp_wanda", 1.0, 0.35)
  cells, result = kit.cells(tmp_path, reference="comp_wanda (scarcity=1.0)")
  assert cells["uniform"].difference == pytest.approx(-0.05)
  said = "No run of comp: differences are from comp_wanda (scarcity=1.0)."
  assert said in compared.notes(result)
  with pytest.raises(
    errors.UserError, match=r"=1.0\); comp_wanda \(scarcity=2"
  ):
    kit.cells(tmp_path, reference="comp_wanda")
  # Two forms to choose from.
  assert kit.cells(tmp_path)[1].reference == "comp"
  for path in tmp_path.glob("comp_wanda_[01]*/*.json"):
    path.unlink()
  _scarce(tmp_path / "late", make, "uniform", 1.0, 0.3)
  assert (
    kit.cells(tmp_path, reference="comp_wanda")[1].reference == "comp_wanda"
  )


def test_a_reference_that_is_no_recipe_is_named_with_those_there_are(
  tmp_path, make, capsys
):
  for recipe in ("comp", "uniform"):
    report = kit.with_recall(make(0, recipe), 0.3)
    kit.save(tmp_path / recipe, report)
  assert verbs.main(["compare", str(tmp_path), "--reference", "unifrom"]) == 2
  said = capsys.readouterr().err
  # Once, for all of the runs.
  assert said.count("--reference unifrom: no such recipe; there are ") == 1
  assert "comp" in said and "uniform" in said
  several = ["--reference=comp (max_stages=11)", "--reference", "uniform"]
  # Before the runs, of which it takes none.
  assert verbs.main(["compare", *several, str(tmp_path)]) == 0
  assert "differences are paired with uniform" in " ".join(
    capsys.readouterr().out.split()
  )
  # One that nobody ran is no mistake.
  assert verbs.main(["compare", str(tmp_path), "--reference", "madtp"]) == 0


def test_a_form_of_comp_goes_before_what_a_config_changed_of_it(tmp_path, make):
  for name, changed in (("whole", {}), ("part", {"cip": False})):
    report = kit.with_recall(make(0, "comp_wanda"), 0.3)
    named = {"name": "comp_wanda", **changed}
    kit.save(tmp_path / name, report, recipe=named)
  cells, result = kit.cells(tmp_path)
  assert set(cells) == {"comp_wanda", "comp_wanda (cip=False)"}
  assert result.reference == "comp_wanda"

"""Config files, and single values of them beside a verb."""

import sys

import pytest

from comp_jax import errors
from comp_jax.cli import configs, verbs

EMOJI = "configs/emoji_tiny.py"


def test_a_config_imports_its_neighbours_from_any_folder(tmp_path, monkeypatch):
  (tmp_path / "studies").mkdir()
  (tmp_path / "studies" / "base.py").write_text(
    "import ml_collections\n\n"
    "get_config = lambda: ml_collections.ConfigDict({'ratio': 0.7})\n"
  )
  (tmp_path / "studies" / "mine.py").write_text(
    "from studies import base\n\nget_config = base.get_config\n"
  )
  monkeypatch.setattr(sys, "path", list(sys.path))
  config = configs.load(str(tmp_path / "studies" / "mine.py"))
  assert config.ratio == 0.7


def test_single_values_are_changed():
  changes = (
    "--config.ratio=0.25",
    "--config.recipe.cip=false",
    "--noconfig.model.remat",
    "--config.data.report_splits=('test',)",
  )
  config, plain = configs.load(EMOJI, changes), configs.load(EMOJI)
  assert config.ratio == 0.25 and config.recipe.cip is False
  assert plain.model.remat and not config.model.remat
  assert config.data.report_splits == ("test",)
  # Nothing stays behind for the next one.
  again = configs.load(EMOJI, ("--config.seed=3",))
  assert again.seed == 3 and again.ratio == plain.ratio


@pytest.mark.parametrize(
  ("change", "said"),
  [
    ("--config.rato=0.5", "did you mean --config.ratio?"),
    ("--config.seed=1.5", "'1.5' is not of type int, such as 0"),
    ("--config.data.report_splits=(1,)", "1 is not of type str"),
    ("--config.recipe=x", "is a section"),
  ],
)
def test_mistakes_are_named(change, said):
  with pytest.raises(errors.UserError) as found:
    configs.load(EMOJI, (change,))
  assert said in str(found.value)


def test_verbs_take_single_values(monkeypatch, tmp_path, capsys):
  command = ["evaluate", f"--config={EMOJI}", "--model", str(tmp_path)]
  seen = []

  def load(file, changes):
    seen.append((file, list(changes)))
    raise errors.UserError("seen")

  monkeypatch.setattr(configs, "load", load)
  for changes in (
    [],
    ["--config.task.rank=0", "--noconfig.model.remat"],
    ["--config.data.dir=a folder", "--config.data.report_splits=('a', 'b')"],
  ):
    assert verbs.main([*command, "--split", "test", *changes]) == 2
    assert seen.pop() == (EMOJI, changes)
  with pytest.raises(SystemExit):
    verbs.main([*command, "--config.seed", "3"])
  said = "write --config.seed=3, with an equals sign"
  assert said in capsys.readouterr().err
  with pytest.raises(SystemExit):
    verbs.main([*command, "--cofnig.task.rank=0"])
  with pytest.raises(SystemExit):
    # A verb without a config.
    verbs.main(["inspect", "cost", "--model", "clip_b16", "--config.seed=1"])
  assert "unrecognized arguments: --config.seed=1" in capsys.readouterr().err


def test_a_sweep_has_a_way_of_its_own(tmp_path, capsys):
  workdir = tmp_path / "sweep"
  command = ["sweep", "--config", EMOJI, "--sweep", "ratios=0.3,0.4"]
  command += ["--workdir", str(workdir), "--config.seed=1"]
  assert verbs.main(command) == 2
  assert "by --sweep seed=VALUE" in capsys.readouterr().err
  assert not workdir.exists()

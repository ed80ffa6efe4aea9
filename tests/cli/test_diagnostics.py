"""`python -m comp_jax inspect` on the model and the data of `assets/`."""

import json

import pytest

from comp_jax.cli import verbs

_MODEL = ["--model", "assets/emoji_tiny", "--config", "configs/emoji_tiny.py"]


def test_overlap_prints_and_writes(tmp_path, capsys):
  out = tmp_path / "out"
  command = ["inspect", "overlap", *_MODEL, "--examples", "8"]
  assert verbs.main([*command, "--out", str(out)]) == 0
  assert "by chance" in capsys.readouterr().out
  names = {"overlap.html", "overlap.json", "overlap.svg"}
  assert {path.name for path in out.iterdir()} == names
  written = json.loads((out / "overlap.json").read_text())
  assert (written["examples"], written["share"]) == (8, 0.25)
  assert len(written["groups"]["vision/mlp"]["overlap"]) == 6
  assert "Overlap of tokens" in (out / "overlap.html").read_text()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (["--share", "1"], "--share must be between 0 and 1, not 1"),
    (["--examples", "0"], "--examples must be 1 or more"),
    (["--model", "nowhere"], "nowhere"),
    (["--config", "configs/nothing.py"], "no config file"),
  ],
)
def test_wrong_options_are_one_line_and_code_2(
  tmp_path, capsys, change, message
):
  out = tmp_path / "out"
  command = ["inspect", "overlap", *_MODEL, *change, "--out", str(out)]
  assert verbs.main(command) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not out.exists()

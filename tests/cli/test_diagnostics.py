"""`python -m comp_jax inspect` on the model and the data of `assets/`."""

import json

import pytest

from comp_jax.cli import verbs

_FOUND = {
  "damage": {"dense", "metric"},
  "choice": {"modes", "whole", "subsets"},
}
_MODEL = ["--model", "assets/emoji_tiny", "--config", "configs/emoji_tiny.py"]


@pytest.mark.parametrize(
  ("verb", "options", "said", "shown"),
  [
    pytest.param(
      "overlap",
      [],
      "by chance",
      "Overlap of tokens",
      marks=pytest.mark.slow,
    ),
    pytest.param(
      "ranks",
      ["--faded", "0.5", "--recipe", "comp_wanda"],
      "without",
      "Distortion of ranks",
      marks=pytest.mark.slow,
    ),
    pytest.param(
      "influence",
      ["--units", "2"],
      "unrelated",
      "Influence on the order of tokens",
      marks=pytest.mark.slow,
    ),
    pytest.param(
      "damage",
      ["--removed", "0.1"],
      "layer_mean",
      "Damage before training",
      marks=pytest.mark.slow,
    ),
    pytest.param(
      "choice",
      ["--sizes", "8", "--recipe", "comp_wanda"],
      "vision_tokens",
      "Choice on fewer examples",
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_model_is_measured_and_written(
  tmp_path, capsys, verb, options, said, shown
):
  out = tmp_path / "out"
  count = 16 if verb == "choice" else 8
  command = ["inspect", verb, *_MODEL, "--examples", str(count), *options]
  assert verbs.main([*command, "--out", str(out)]) == 0
  assert said in capsys.readouterr().out
  names = {f"{verb}.html", f"{verb}.json", f"{verb}.svg"}
  assert {path.name for path in out.iterdir()} == names
  written = json.loads((out / f"{verb}.json").read_text())
  assert written["examples"] == count
  parts = {name.split("/")[0] for name in written["found"]}
  assert parts == _FOUND.get(verb, {"vision", "text"})
  assert shown in (out / f"{verb}.html").read_text()


@pytest.mark.parametrize(
  ("verb", "change", "message"),
  [
    ("overlap", ["--share", "1"], "--share must be between 0 and 1, not 1"),
    ("overlap", ["--examples", "0"], "--examples must be 1 or more"),
    ("overlap", ["--model", "nowhere"], "nowhere"),
    ("overlap", ["--config", "configs/nothing.py"], "no config file"),
    ("ranks", ["--faded", "0"], "--faded must be above 0"),
    ("ranks", ["--recipe", "none"], "recipe must be one of"),
    ("influence", ["--units", "1"], "--units must be 2 or more"),
    ("damage", ["--removed", "0.1", "1"], "--removed must be between 0 and 1"),
    ("choice", ["--sizes", "8", "12"], "1 or more and multiples of the first"),
    ("choice", ["--sizes", "0"], "1 or more and multiples of the first, not 0"),
    ("choice", ["--sizes", "8", "-8"], "1 or more and multiples of the first"),
    ("choice", ["--sizes", "4"], "--sizes 4: config.prune.validation_chunk"),
    ("choice", ["--examples", "64"], "--sizes must be at most half of the 64"),
    ("damage", ["--mode", "vision_tokens"], "vision_params, language_params"),
  ],
)
def test_wrong_options_are_one_line_and_code_2(
  tmp_path, capsys, verb, change, message
):
  out = tmp_path / "out"
  command = ["inspect", verb, *_MODEL, *change, "--out", str(out)]
  assert verbs.main(command) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not out.exists()

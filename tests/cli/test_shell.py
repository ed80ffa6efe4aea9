"""A user's mistake is one line and code 2, in a process of its own."""

import signal
import subprocess
import sys
import textwrap

import pytest

_CONFIG = """
  import ml_collections
  from ml_collections import config_dict

  def get_config(text="plain"):
    return ml_collections.ConfigDict({
      "ratio": 0.7, "seed": 0, "fast": True, "checkpoint": "", "text": text,
      "widths": (1, 2), "blank": config_dict.placeholder(int), "none": None,
      "recipe": {"name": "comp", "history": {"lam": 0.4}},
    })
"""

_MAIN = """
  from absl import flags
  from comp_jax import errors
  from comp_jax.cli import shell

  DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only look.")

  def main(config, workdir):
    import jax
    from absl import logging
    jax.devices()
    logging.info("a library's chatter")
    if config.checkpoint == "missing":
      raise errors.UserError("missing.safetensors:\\nno such file")
    if config.checkpoint == "bug":
      raise ValueError("a bug")
    if config.checkpoint == "wait":
      import time
      print("ready", flush=True)
      time.sleep(60)
    try:
      config.other = 1
    except (AttributeError, KeyError):
      print("locked")
    print(config.ratio, config.seed, config.fast, config.text, config.widths,
          config.blank, config.recipe.name, workdir, DRY_RUN.value)
    return 3 if config.checkpoint == "three" else None

  if __name__ == "__main__":
    shell.run(main, name="prune", needs_workdir=lambda: not DRY_RUN.value)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("shell")
  (path / "main.py").write_text(textwrap.dedent(_MAIN))
  (path / "base.py").write_text(textwrap.dedent(_CONFIG))
  (path / "broken.py").write_text("def get_config(:\n")
  (path / "empty.py").write_text("x = 1\n")
  (path / "failing.py").write_text(
    "def get_config():\n  raise ValueError('no\\nsuch size')\n"
  )
  return path


def _run(folder, *arguments):
  return subprocess.run(
    [sys.executable, "main.py", *arguments],
    cwd=folder,
    capture_output=True,
    text=True,
    timeout=120,
    stdin=subprocess.DEVNULL,
  )


def test_values_reach_a_locked_config(folder):
  result = _run(
    folder,
    "--config",
    "base.py:text",
    "--workdir=runs/a",
    "--config.ratio=1",
    "--config.seed",
    "4",
    "--noconfig.fast",
    "--config.widths=(3, 4, 5)",
    "--config.blank=7",
    "--config.recipe.name=upop",
  )
  assert result.stderr == ""
  assert result.stdout.splitlines() == [
    "locked",
    "1.0 4 False text (3, 4, 5) 7 upop runs/a False",
  ]
  assert result.returncode == 0


def test_workdir_may_be_left_out_when_it_is_not_needed(folder):
  result = _run(
    folder, "--config=base.py", "--dry_run", "--config.checkpoint=three"
  )
  assert result.stdout.endswith("None comp None True\n")
  assert (result.stderr, result.returncode) == ("", 3)


@pytest.mark.parametrize(
  ("arguments", "parts"),
  [
    ("--workdir=w", ["--config is missing"]),
    ("--config=basse.py", ["no config file 'basse.py'", "mean base.py?"]),
    ("--config=no/where.py", ["no config file 'no/where.py'"]),
    ("--config=broken.py", ["broken.py, line 1"]),
    ("--config=empty.py", ["empty.py has no get_config()"]),
    ("--config=failing.py", ["get_config() of failing.py: no such size"]),
    ("--config=base.py", ["--workdir is missing"]),
    ("--config=base.py --wrokdir=w", ["wrokdir", "workdir"]),
    ("--config=base.py --workdir=w stray", ["stray"]),
    (
      "--config=base.py --workdir=w --config.recipe.nmae=x",
      ["--config.recipe.nmae: base.py", "mean --config.recipe.name?"],
    ),
    (
      "--config=base.py --workdir=w --config.lam=1",
      ["mean --config.recipe.history.lam?"],
    ),
    (
      "--config=base.py --workdir=w --config.recipe.zzzzz=1",
      ["there are: history, name"],
    ),
    (
      "--config=base.py --workdir=w --config.recpie.name=1",
      ["mean --config.recipe.name?"],
    ),
    (
      "--config=base.py --workdir=w --config.seed.zzz=1",
      ["--config.seed is a value"],
    ),
    ("--config=base.py --config.ratio=high", ["ratio: 'high'", "float", "0.7"]),
    ("--config=base.py --config.seed=1.5", ["seed: '1.5'", "int"]),
    ("--config=base.py --config.fast=maybe", ["fast: 'maybe'", "bool"]),
    ("--config=base.py --config.widths=(1,'a')", ["widths: 'a'", "int"]),
    ("--config=base.py --config.widths=(1,", ["widths: '(1,'", "tuple"]),
    ("--config=base.py --config.recipe=x", ["is a section", "history, name"]),
    ("--config=base.py --config.none=1", ["config.none is None in base.py"]),
    (
      "--config=base.py --workdir=w --config.checkpoint=missing",
      ["missing.safetensors: no such file"],
    ),
  ],
)
def test_mistakes_are_one_line_and_code_two(folder, arguments, parts):
  result = _run(folder, *arguments.split())
  assert result.returncode == 2
  assert result.stdout == ""
  assert result.stderr.startswith("error: ")
  assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n")
  for part in parts:
    assert part in result.stderr
  assert not (folder / "w").exists()


def test_a_bug_keeps_its_traceback(folder):
  result = _run(
    folder, "--config=base.py", "--workdir=w", "--config.checkpoint=bug"
  )
  assert result.returncode == 1
  assert "Traceback" in result.stderr and "ValueError: a bug" in result.stderr


# Jobs in the background of a shell inherit an ignored SIGINT.
_HEARS_SIGINT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_interrupt_is_code_130(folder):
  with subprocess.Popen(
    [
      sys.executable,
      "-c",
      _HEARS_SIGINT,
      sys.executable,
      "main.py",
      "--config=base.py",
      "--workdir=w",
      "--config.checkpoint=wait",
    ],
    cwd=folder,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stdout.readline() == "ready\n"
    # Python drops a signal that arrives inside a finaliser: ask again.
    for _ in range(5):
      process.send_signal(signal.SIGINT)
      try:
        _, stderr = process.communicate(timeout=8)
        break
      except subprocess.TimeoutExpired:
        continue
  assert process.returncode == 130
  assert stderr == "prune: interrupted\n"


def test_help_shows_the_flags(folder):
  result = _run(folder, "--help")
  assert "--[no]dry_run" in result.stdout
  assert "Traceback" not in result.stderr

"""What `sweep` makes of its command line."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from comp_jax import errors
from comp_jax.cli import children, configs, sweep, verbs
from comp_jax.report import runs
from comp_jax.train import sweep_group

# A process of a group: the first is done, the second fails, others wait after
# their first point.
CHILD = """#!/bin/sh
while [ "$1" != --workdir ]; do shift; done
sweep=$2
for name; do :; done
case $name in
  group_0) mkdir $sweep/$name; cd $sweep/$name
    echo '{"config": {}, "points": []}' > config.json
    echo 'ROW' > results.jsonl;;
  group_1) echo "error: no such data" >&2; exit 2;;
  *) trap "touch $sweep/told; exit 130" TERM INT
    mkdir $sweep/$name; echo 'ROW' > $sweep/$name/results.jsonl
    touch $sweep/waits
    for tick in $(seq 600); do sleep 0.05; done;;
esac
"""
ROW = {
  "status": "done",
  "reason": "it ended above its target",
  "how": "masked",
  "macs": {"final": 5.0, "dense": 10.0},
  "metrics": {"finetuned_masked": {"test": {"accuracy": 0.5}}},
}


@pytest.fixture(scope="module")
def config():
  return configs.load("configs/emoji_tiny.py")


def test_a_mistake_ends_in_one_line(tmp_path, capsys):
  code = verbs.main(
    ["sweep", "--config", "configs/emoji_tiny.py", "--sweep", "ratios=0.5"]
    + ["--workdir", str(tmp_path), "--processes", "0"]
  )
  assert code == 2
  assert capsys.readouterr().err.startswith("error: --processes")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("axes", "named"),
  [
    (["recipes=uniform,compp"], "not 'compp'"),
    (["ratios=0.5,1.2"], "config.ratio must be in [0, 1), not 1.2"),
    (["prune.cost=eq9"], "config.prune.cost must be one of"),
    (["recipes=comp", "model.granularity=channel"], "recipe.cit gates heads"),
  ],
)
def test_points_that_cannot_run_are_named_before_any_does(
  tmp_path, capsys, axes, named
):
  folder = tmp_path / "sweep"
  command = ["sweep", "--config=configs/emoji_tiny.py", "--sweep", *axes]
  assert verbs.main([*command, f"--workdir={folder}"]) == 2
  assert named in capsys.readouterr().err
  assert not folder.exists()


@pytest.mark.parametrize(
  ("code", "said", "reason"),
  [
    (2, "error: no data\n*****\nVery slow compile?\n", "no data"),
    (1, "Traceback\n  in f\nValueError: 3\n", "ValueError: 3"),
    (3, "\n", "ended with code 3 and no message"),
    (-15, "W1130 slow\n", "killed by SIGTERM; the same command goes on"),
    (-9, "", "killed by SIGKILL, as the system does where memory runs out"),
  ],
)
def test_why_a_process_failed(code, said, reason):
  assert children.reason(code, said).startswith(reason)


def test_a_log_is_of_one_process(tmp_path):
  log = tmp_path / "log"
  with log.open("w") as earlier:
    earlier.write("of one before" * 9)
    earlier.flush()
    child = children.begin(["/bin/sh", "-c", "echo error: no >&2"], log)
    assert child.wait() == 0
    print("still here", file=earlier, flush=True)
  assert log.read_text() == "error: no\n"


def test_a_process_leaves_when_its_parent_is_gone():
  program = (
    "import os, signal, time; from comp_jax.cli import children;"
    "leave = lambda *_: (print('left', flush=True), os._exit(0));"
    "signal.signal(signal.SIGTERM, leave);"
    "children.follow({}); print(os.getpid(), flush=True); time.sleep(60)"
  )
  child = [sys.executable, "-c", program.format(os.getpid())]
  with subprocess.Popen(child, stdout=subprocess.PIPE, text=True) as alive:
    # Its parent is here: it stays.
    assert alive.stdout.readline()
    time.sleep(2 * children._LOOK)
    assert alive.poll() is None
    alive.kill()
  # One whose parent is gone before it looks, as one that gives its pid away.
  child[-1] = program.format(2**30)
  found = subprocess.run(child, capture_output=True, text=True, timeout=60)
  assert found.stdout.split()[-1] == "left"


def test_axes_may_follow_an_equals_sign(tmp_path, capsys):
  code = verbs.main(
    ["sweep", "--config=configs/emoji_tiny.py", "--sweep=ratios=0.5,0.7"]
    + ["seeds=0:2", "rato=1", f"--workdir={tmp_path}"]
  )
  assert code == 2
  # All three were read as axes.
  assert "did you mean --config.ratio" in capsys.readouterr().err


def test_results_that_were_cut_are_named(tmp_path):
  (tmp_path / "results.jsonl").write_text('{"status": "done"}\n{"sta')
  with pytest.raises(errors.UserError, match="results.jsonl is not JSON lines"):
    sweep_group.read(tmp_path)


@pytest.fixture
def sweep_over(tmp_path, monkeypatch):
  """Runs a sweep over some recipes, whose groups are processes of no JAX."""
  child = tmp_path / "child"
  child.write_text(CHILD.replace("ROW", json.dumps(ROW)))
  child.chmod(0o755)
  monkeypatch.setattr(sweep.sys, "executable", str(child))
  command = ["sweep", "--config", "configs/emoji_tiny.py"]
  command += ["--workdir", str(tmp_path / "sweep"), "--sweep", "ratios=0.5"]
  return lambda recipes: verbs.main([*command, f"recipes={recipes}"])


def test_a_sweep_goes_on_however_its_config_is_written(sweep_over, tmp_path):
  assert sweep_over("comp") == 0
  config = str(pathlib.Path("configs/emoji_tiny.py").resolve())
  again = ["sweep", "--config", config, "--workdir", str(tmp_path / "sweep")]
  assert verbs.main([*again, "--sweep", "ratios=0.5", "recipes=comp"]) == 0
  other = str(pathlib.Path("configs/nlvr_emoji.py").resolve())
  again[2] = other
  assert verbs.main([*again, "--sweep", "ratios=0.5", "recipes=comp"]) == 2


def _index(tmp_path):
  text = (tmp_path / "sweep" / runs.INDEX).read_text()
  keys = ("group", "status", "reason")
  return [tuple(p[key] for key in keys) for p in json.loads(text)["points"]]


def test_the_index_says_what_became_of_each_point(sweep_over, tmp_path, capsys):
  assert sweep_over("comp,uniform") == 2
  said = " ".join(capsys.readouterr().out.split())
  assert "recipe.name=comp: it ended above its target" in said
  assert "recipe.name=uniform: no such data" in said
  assert _index(tmp_path) == [
    ("group_0", "done", "it ended above its target"),
    ("group_1", "failed", "no such data"),
  ]
  left_out = runs.read([tmp_path / "sweep"])[1]
  assert "failed: no such data (recipe.name=uniform" in left_out[-1].reason


def test_a_sweep_in_a_workdir_can_be_added_to(sweep_over, tmp_path):
  assert sweep_over("comp") == 0
  assert sweep_over("comp,uniform") == 2
  assert [status for _, status, _ in _index(tmp_path)] == ["done", "failed"]
  listed = json.loads((tmp_path / "sweep" / "config.json").read_text())
  assert len(listed["groups"]) == 2
  assert sweep_over("uniform") == 2
  assert len(_index(tmp_path)) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_children_and_keeps_what_is_there(
  sweep_over, tmp_path, number
):
  folder = tmp_path / "sweep"

  def interrupt():
    while not (folder / "waits").exists():
      time.sleep(0.05)
    # What is done is gathered, and indexed, while its group runs.
    for _ in range(200):
      seen[:] = [status for _, status, _ in _index(tmp_path)]
      if seen[2] == "done":
        break
      time.sleep(0.05)
    os.kill(os.getpid(), number)

  seen, thread = [], threading.Thread(target=interrupt)
  thread.start()
  before = signal.getsignal(signal.SIGTERM)
  assert sweep_over("comp,uniform,random,tome") == 130
  thread.join()
  assert seen == ["done", "failed", "done", "waiting"]
  assert (folder / "told").exists()
  assert [status for _, status, _ in _index(tmp_path)] == seen
  assert signal.getsignal(signal.SIGTERM) is before

"""One folder, one config, one process."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from comp_jax import errors
from comp_jax.train import workdir

_CONFIG = {
  "seed": 0,
  "ratio": 0.7,
  "recipe": {"name": "comp", "widths": (1, 2)},
}


def test_first_use_writes_the_config_and_later_ones_agree(tmp_path):
  path = tmp_path / "a" / "run"
  workdir.open_workdir(path, _CONFIG, "prune.py")
  first = (path / "config.json").read_bytes()
  assert json.loads(first)["recipe"]["widths"] == [1, 2]
  backwards = dict(reversed(_CONFIG.items()))
  workdir.open_workdir(path, backwards, "prune.py")
  assert (path / "config.json").read_bytes() == first
  assert os.listdir(path) == ["config.json"]
  workdir.open_workdir(tmp_path / "b", backwards, "prune.py")
  assert (tmp_path / "b" / "config.json").read_bytes() == first


def test_another_config_lists_the_differing_keys(tmp_path):
  workdir.open_workdir(tmp_path, _CONFIG, "prune.py")
  other = {"seed": 1, "recipe": {"name": "upop", "widths": [1, 2]}, "new": True}
  with pytest.raises(errors.UserError) as raised:
    workdir.open_workdir(tmp_path, other, "prune.py")
  text = str(raised.value)
  assert "\n" not in text and str(tmp_path) in text
  assert "seed: 0 there, 1 now" in text
  assert 'recipe.name: "comp" there, "upop" now' in text
  assert "ratio: 0.7 there, (absent) now" in text
  assert "new: (absent) there, true now" in text
  assert "widths" not in text
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_another_program_is_refused_and_an_older_folder_resumes(tmp_path):
  workdir.open_workdir(tmp_path, _CONFIG, "train.py")
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(errors.UserError) as raised:
    workdir.open_workdir(tmp_path, _CONFIG, "prune.py")
  assert str(raised.value) == (
    f"{tmp_path} holds a run of train.py; give prune.py another --workdir"
  )
  assert (tmp_path / "config.json").read_bytes() == before
  # As it was written before programs were.
  (tmp_path / "config.json").write_text(json.dumps(_CONFIG))
  with workdir.claim(tmp_path, _CONFIG, "prune.py"):
    pass


@pytest.mark.parametrize(
  ("name", "text", "told"),
  [
    ("thesis.tex", "x", "thesis.tex"),
    # Hugging Face's folders have a file of this name.
    ("config.json", '{"model_type": "blip"}', "config.json of something else"),
  ],
)
def test_foreign_folders_are_refused_and_left_alone(tmp_path, name, text, told):
  (tmp_path / name).write_text(text)
  for use in (
    lambda: workdir.open_workdir(tmp_path, _CONFIG, "prune.py"),
    lambda: workdir.lock(tmp_path).__enter__(),
  ):
    with pytest.raises(errors.UserError, match=told):
      use()
  assert os.listdir(tmp_path) == [name]
  assert (tmp_path / name).read_text() == text


def test_a_run_killed_before_its_config_can_begin_again(tmp_path):
  (tmp_path / ".lock").touch()
  (tmp_path / ".config.json.tmp.abc").touch()
  workdir.open_workdir(tmp_path, _CONFIG, "prune.py")
  assert (tmp_path / "config.json").exists()


def test_unwritable_and_unreadable_places(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("x")
  for path in (tmp_path / "file", tmp_path / "file" / "run"):
    with pytest.raises(errors.UserError, match="cannot write"):
      workdir.open_workdir(path, _CONFIG, "prune.py")
  broken = tmp_path / "broken"
  broken.mkdir()
  (broken / "config.json").write_text("{")
  with pytest.raises(errors.UserError, match="not readable as JSON"):
    workdir.open_workdir(broken, _CONFIG, "prune.py")

  def refuse(**unused):
    raise PermissionError(13, "Permission denied")

  # The superuser, whom tests may run as, can write anywhere.
  monkeypatch.setattr(workdir.tempfile, "TemporaryFile", refuse)
  with pytest.raises(errors.UserError, match="Permission denied"):
    workdir.open_workdir(tmp_path / "closed", _CONFIG, "prune.py")
  assert os.listdir(tmp_path / "closed") == []


def test_a_held_folder_is_refused_until_its_holder_dies(tmp_path):
  program = f"""
    from comp_jax.train import workdir
    with workdir.claim({str(tmp_path)!r}, {{"seed": 0}}, "train.py"):
      print("held", flush=True)
      input()
  """
  with subprocess.Popen(
    [sys.executable, "-c", textwrap.dedent(program)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as holder:
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(errors.UserError, match="another run"):
      with workdir.lock(tmp_path):
        pass
    holder.kill()
    holder.wait(timeout=30)
  with workdir.claim(tmp_path, {"seed": 0}, "train.py") as path:
    assert path == tmp_path
    with pytest.raises(errors.UserError, match="another run"):
      with workdir.lock(tmp_path):
        pass
  with workdir.lock(tmp_path):
    pass

"""Files of PyTorch: every tensor as torch reads it, and no code is run."""

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import sys
import types
import warnings
import zipfile

import numpy as np
import pytest

from comp_jax import errors
from comp_jax.interop import torch_file

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

DTYPES = [
  "float16",
  "bfloat16",
  "float32",
  "float64",
  "int8",
  "uint8",
  "int16",
  "int32",
  "int64",
  "bool",
]


def _refused(path, *parts):
  """The file gives one error, of one line, that names it and says `parts`."""
  with pytest.raises(errors.UserError) as caught:
    torch_file.load(path)
  text = str(caught.value)
  assert text.startswith(f"{path}: ") and "\n" not in text
  for part in parts:
    assert part in text


def _equal(path, tensors):
  """The file holds these tensors; bfloat16 comes back as float32."""
  arrays = torch_file.load(path)
  assert list(arrays) == list(tensors)
  for name, tensor in tensors.items():
    if tensor.dtype == torch.bfloat16:
      tensor = tensor.float()
    expected = tensor.detach().numpy()
    assert arrays[name].dtype == expected.dtype, name
    np.testing.assert_array_equal(arrays[name], expected, err_msg=name)


@pytest.mark.parametrize("name", DTYPES)
def test_each_dtype_equals_torchs(name, tmp_path):
  values = torch.tensor([[-2.5, 0.0, 1.0], [3.14159, 100.7, 0.0]])
  if name == "uint8":
    values = values.abs()
  tensor = values.to(getattr(torch, name))
  tensors = {"matrix": tensor, "scalar": tensor[1, 0].clone()}
  tensors |= {"none": tensor[:0].clone(), "thin": tensor[:, :0].clone()}
  torch.save(tensors, tmp_path / "x.pth")
  _equal(tmp_path / "x.pth", tensors)


def test_views_equal_torchs(tmp_path):
  whole = torch.arange(24.0).reshape(4, 6)
  tensors = {
    "whole": whole,
    "turned": whole.T,
    "rows": whole[1:3],
    "strided": whole[::2, 1::3],
    "diagonal": whole.diagonal(),
    "repeated": whole[2, :1].expand(4),
    "cube": whole.reshape(2, 3, 4).permute(2, 0, 1),
    "parameter": torch.nn.Parameter(whole[3]),
  }
  torch.save({"state_dict": tensors}, tmp_path / "x.pth")
  with zipfile.ZipFile(tmp_path / "x.pth") as archive:
    stored = [n for n in archive.namelist() if "/data/" in n]
  assert len(stored) == 1  # They share it in the file as well.
  _equal(tmp_path / "x.pth", tensors)
  # What is read is the caller's own: writing to it changes nothing else.
  arrays = torch_file.load(tmp_path / "x.pth")
  arrays["whole"][:] = 0
  np.testing.assert_array_equal(arrays["rows"], whole[1:3])


@pytest.mark.parametrize("below", ["model", "state_dict", "module", None])
def test_a_state_dict_is_found_below_its_usual_names(below, tmp_path):
  state = {"module.a": torch.ones(2), "b.module.c": torch.zeros(3)}
  content = {below: state, "epoch": 3, "lr": [0.1]} if below else state
  torch.save(content, tmp_path / "x.pth")
  # DataParallel's prefix goes; the same word further in stays.
  arrays = torch_file.load(tmp_path / "x.pth")
  assert list(arrays) == ["a", "b.module.c"]


def test_a_cut_file_is_refused_wherever_it_ends(tmp_path):
  path = tmp_path / "x.pth"
  torch.save({"model": {"w": torch.rand(50, 50)}}, path)
  data = path.read_bytes()
  size = len(data)
  for cut in (0, 1, 30, 64, size // 4, size // 2, size - 100, size - 1):
    path.write_bytes(data[:cut])
    _refused(path, "not a whole PyTorch file", "fetch it again")


def test_a_damaged_storage_is_refused(tmp_path):
  path = tmp_path / "x.pth"
  torch.save({"w": torch.full((100,), 3.0)}, path)
  data = path.read_bytes()
  where = data.index(np.full(100, 3.0, np.float32).tobytes())
  path.write_bytes(data[:where] + b"\xff" + data[where + 1 :])
  _refused(path, "not a whole PyTorch file", "CRC")


def test_a_storage_that_is_not_there_is_refused(tmp_path):
  path = tmp_path / "x.pth"
  torch.save({"w": torch.ones(3)}, tmp_path / "whole.pth")
  for missing, part in (
    ("data/0", "not a readable PyTorch file"),
    ("data.pkl", "has no data.pkl"),
  ):
    with (
      zipfile.ZipFile(tmp_path / "whole.pth") as whole,
      zipfile.ZipFile(path, "w") as rest,
    ):
      for name in whole.namelist():
        if not name.endswith(missing):
          rest.writestr(name, whole.read(name))
    _refused(path, part)


def test_a_broken_pickle_is_refused(tmp_path):
  torch.save({"w": torch.ones(3)}, tmp_path / "whole.pth")
  with zipfile.ZipFile(tmp_path / "whole.pth") as whole:
    name = next(n for n in whole.namelist() if n.endswith("data.pkl"))
    data = whole.read(name)
  for part in (b"", data[:20], data[:-1], b"\xff" + data, data[2:]):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
      archive.writestr(name, part)
    _refused(tmp_path / "x.pth")


def test_the_format_before_zip_is_refused(tmp_path):
  path = tmp_path / "old.pth"
  state = {"w": torch.ones(3)}
  torch.save(state, path, _use_new_zipfile_serialization=False)
  _refused(path, "PyTorch before 1.6", "saved anew with torch.save")
  _refused(tmp_path / "absent.pth", "no such file")
  _refused(tmp_path)


class _Evil:
  """Asks for a shell when it is unpickled."""

  def __init__(self, call, *args):
    self._asked = call, args

  def __reduce__(self):
    return self._asked


def test_what_a_pickle_asks_for_is_not_run(tmp_path):
  """The sentinel that each of them would write never appears."""
  sentinel = tmp_path / "sentinel"
  shell = f"echo run > '{sentinel}'"
  python = f"open({str(sentinel)!r}, 'w')"
  path = tmp_path / "x.pth"
  for evil, named in (
    (_Evil(os.system, shell), "system"),
    (_Evil(eval, python), "eval"),
    (_Evil(exec, python), "exec"),
    (_Evil(open, str(sentinel), "w"), "open"),
    # Below what is read as inert as well.
    (_Evil(collections.Counter, _Evil(os.system, shell)), "system"),
  ):
    for content in (
      evil,
      {"model": {"w": torch.ones(2)}, "config": evil},
      {"model": {"w": torch.ones(2), "v": evil}},
      argparse.Namespace(inner=evil),
    ):
      torch.save(content, path)
      _refused(path, "refused, since it asks for", named)
      assert not sentinel.exists()
  # A function among what is inert is not called either.
  evil = _Evil(np.savetxt, str(sentinel), [1.0])
  torch.save({"model": {"w": torch.ones(2)}, "config": evil}, path)
  assert list(torch_file.load(path)) == ["w"] and not sentinel.exists()
  # What pickle itself would have done.
  pickle.loads(pickle.dumps(_Evil(os.system, shell)))
  assert sentinel.exists()


def test_a_whole_module_is_refused(tmp_path):
  """It is built by its class, which is code."""
  model = torch.nn.Sequential(torch.nn.Linear(2, 3))
  for content in (model, {"model": model}):
    torch.save(content, tmp_path / "x.pth")
    _refused(
      tmp_path / "x.pth",
      "asks for torch.nn.modules.container.Sequential",
      "save its state_dict alone",
    )


def test_tensors_of_other_kinds_are_refused(tmp_path):
  for tensor, part in (
    (torch.zeros(2, dtype=torch.complex64), "ComplexFloatStorage"),
    (torch.zeros(2, dtype=torch.uint16), "UntypedStorage"),
    (torch.eye(2).to_sparse(), "_rebuild_sparse_tensor"),
  ):
    torch.save({"w": tensor}, tmp_path / "x.pth")
    _refused(tmp_path / "x.pth", part)


def test_files_without_a_state_dict_say_so(tmp_path):
  for content in ({"epoch": 3}, torch.ones(3), [torch.ones(3)], {}, "words"):
    torch.save(content, tmp_path / "x.pth")
    _refused(tmp_path / "x.pth", "holds no state dict of tensors")


def _stub(monkeypatch, module):
  """A class of a package that need not be installed."""
  kind = type("Config", (dict,), {"__module__": module})
  parts = module.split(".")
  for i in range(len(parts)):
    name = ".".join(parts[: i + 1])
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
  sys.modules[module].Config = kind
  return kind


@pytest.mark.parametrize(
  "module", ["omegaconf.dictconfig", "easydict", "ruamel.yaml.comments", "yaml"]
)
def test_config_objects_are_inert(module, monkeypatch, tmp_path):
  """They hold nothing, and their packages are not imported."""
  with monkeypatch.context() as patch:
    config = _stub(patch, module)(lr=0.1)
    config.model = {"w": torch.zeros(9)}
    state = {"w": torch.ones(2)}
    torch.save({"config": config, "model": state}, tmp_path / "x.pth")
    torch.save(config, tmp_path / "alone.pth")
  imported = module in sys.modules
  _equal(tmp_path / "x.pth", state)
  assert (module in sys.modules) == imported
  _refused(tmp_path / "alone.pth", "holds no state dict of tensors")


def test_options_and_optimisers_are_inert(tmp_path):
  state = {"w": torch.nn.Parameter(torch.ones(2))}
  optimizer = torch.optim.SGD(state.values(), lr=0.1)
  content = {
    "args": argparse.Namespace(lr=0.1, model={"w": torch.zeros(9)}),
    "optimizer": optimizer,
    "optimizer_state": optimizer.state_dict(),
    "model": state,
  }
  torch.save(content, tmp_path / "x.pth")
  _equal(tmp_path / "x.pth", state)


EXTRAS = {
  "score": np.float64(3.2),
  "array": np.arange(3),
  "type": np.dtype("float32"),
  "random": np.random.default_rng(0),
  "meters": collections.defaultdict(list, loss=[1.0]),
  "counts": collections.Counter("aab"),
  "recent": collections.deque([1.0], maxlen=5),
  "seen": {1, 2},
  "frozen": frozenset("a"),
  "complex": 1j,
  "raw": b"bytes",
  "range": range(3),
  "when": datetime.datetime(2024, 1, 1),
  "where": pathlib.PurePosixPath("runs/1"),
  "device": torch.device("cpu"),
  "dtype": torch.float32,
  "by_epoch": {np.int64(1): 0.5, np.int64(2): 0.7},
}


@pytest.mark.parametrize("name", EXTRAS)
def test_harmless_extras_are_left_out(name, tmp_path):
  state = {"w": torch.ones(2)}
  torch.save({name: EXTRAS[name], "model": state}, tmp_path / "x.pth")
  _equal(tmp_path / "x.pth", state)
  torch.save({**state, name: EXTRAS[name]}, tmp_path / "x.pth")
  _equal(tmp_path / "x.pth", state)


def test_a_state_dict_may_be_a_defaultdict(tmp_path):
  state = {"w": torch.ones(2)}
  content = collections.defaultdict(dict, model=collections.defaultdict(int))
  content["model"].update(state)
  torch.save(content, tmp_path / "x.pth")
  _equal(tmp_path / "x.pth", state)


def test_an_inert_model_does_not_hide_the_state_dict(tmp_path):
  state = {"w": torch.ones(2)}
  content = {"model": np.str_("vit_base"), "state_dict": state}
  torch.save(content, tmp_path / "x.pth")
  _equal(tmp_path / "x.pth", state)


def test_a_torchscript_archive_is_read_for_its_weights(tmp_path):
  """As OpenAI's CLIP: parameters and buffers, by their paths."""
  model = torch.nn.Sequential(
    torch.nn.Linear(2, 3), torch.nn.Sequential(torch.nn.BatchNorm1d(3))
  ).eval()
  with warnings.catch_warnings():
    # Newer versions would rather not have it; the files are there.
    warnings.simplefilter("ignore", DeprecationWarning)
    script = torch.jit.script(model)
    torch.jit.save(script, tmp_path / "x.pt")
  with zipfile.ZipFile(tmp_path / "x.pt") as archive:
    assert any("/code/" in name for name in archive.namelist())
  arrays = torch_file.load(tmp_path / "x.pt")
  state = {k: v.numpy() for k, v in model.state_dict().items()}
  assert arrays.keys() == state.keys()
  for name, expected in state.items():
    np.testing.assert_array_equal(arrays[name], expected, err_msg=name)
  assert "1.0.running_var" in arrays

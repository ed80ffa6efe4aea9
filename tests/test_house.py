"""The house: imports point down, core stays pure, modules stay small."""

import ast
import importlib
import inspect
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "comp_jax"
# From the top floor to the ground.
FLOORS = (
  "cli",
  "report",
  "train",
  "recipes",
  "tasks",
  "data",
  "interop",
  "models",
  "core",
  "errors",
)
MODULES = sorted(PACKAGE.rglob("*.py"))


def _imports(path: pathlib.Path) -> set[str]:
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def _floor(name: str) -> int | None:
  parts = name.split(".")
  if parts[0] != "comp_jax" or len(parts) < 2 or parts[1] not in FLOORS:
    return None
  return FLOORS.index(parts[1])


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.name))
def test_nothing_imports_upwards(path):
  room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
  if room not in FLOORS:
    return
  here = FLOORS.index(room)
  above = [
    name
    for name in _imports(path)
    if (floor := _floor(name)) is not None and floor < here
  ]
  assert not above, f"{path} imports upwards: {above}"


@pytest.mark.parametrize(
  "path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name
)
def test_what_a_benchmark_calls_exists(path):
  """No test runs a benchmark: its names and arguments are held to ours."""
  tree = ast.parse(path.read_text(encoding="utf-8"))
  modules = {
    alias.name: importlib.import_module(f"{node.module}.{alias.name}")
    for node in ast.walk(tree)
    if isinstance(node, ast.ImportFrom) and node.module.startswith("comp_jax")
    for alias in node.names
  }
  called = [
    (node.value.id, node.attr)
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
  ]
  gone = [
    f"{name}.{attr}"
    for name, attr in called
    if name in modules and not hasattr(modules[name], attr)
  ]
  assert modules and not gone, f"{path.name} calls {gone}"
  for call in ast.walk(tree):
    if not isinstance(call, ast.Call) or not _ours(call.func, modules):
      continue
    words = {word.arg: None for word in call.keywords}
    if None in words or any(isinstance(a, ast.Starred) for a in call.args):
      continue
    named = getattr(modules[call.func.value.id], call.func.attr)
    # Raises where one is missing or unknown.
    inspect.signature(named).bind(*call.args, **words)


def _ours(called, modules):
  """Whether it is `module.name` of one of these modules."""
  return (
    isinstance(called, ast.Attribute)
    and isinstance(called.value, ast.Name)
    and called.value.id in modules
  )


@pytest.mark.parametrize(
  "path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda p: p.name
)
def test_core_knows_neither_flax_nor_files(path):
  banned = ("flax", "os", "pathlib", "json", "safetensors", "orbax")
  bad = [n for n in _imports(path) if n.split(".")[0] in banned]
  assert not bad
  assert "open(" not in path.read_text(encoding="utf-8")
  assert "jax.devices" not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("room", ["core", "models", "tasks", "recipes"])
def test_pure_rooms_touch_no_files(room):
  for path in sorted((PACKAGE / room).glob("*.py")):
    imported = _imports(path)
    assert not {n.split(".")[0] for n in imported} & {"os", "pathlib"}, path
    assert not any(n.startswith("comp_jax.interop") for n in imported), path
    assert "open(" not in path.read_text(encoding="utf-8"), path


def test_no_module_grows_too_large():
  large = {
    str(p.relative_to(ROOT)): n
    for p in MODULES
    if (n := len(p.read_text(encoding="utf-8").splitlines())) > 420
  }
  assert not large
  assert not list(PACKAGE.rglob("utils.py"))


def test_tensorflow_and_torch_stay_out():
  for path in MODULES:
    roots = {name.split(".")[0] for name in _imports(path)}
    assert not roots & {"tensorflow", "torch", "timm", "torchvision"}, path

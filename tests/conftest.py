"""Settings of every test: eight devices, checked shapes, no silent repairs."""

import importlib.metadata
import os
import pathlib
import sys
import types

# Before the first import of JAX, so that XLA reads them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Each device runs the loops of both towers at once, in any order, and each loop
# waits in its collectives for those of the other devices. With a thread per
# core, XLA's default, eight devices of two cores can wait for ever.
os.environ.setdefault("NPROC", "16")
# Programs run once or twice here: compiling them well costs more than it saves.
# The last flag halves it again; XLA aborts at one that it does not know.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
  + " --xla_cpu_use_fusion_emitters=false"
  * importlib.metadata.version("jaxlib").startswith("0.10."),
)

import beartype
import hypothesis
import jax
import jaxtyping

# The same examples each time; how long one takes is no matter of right or
# wrong.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")

jax.config.update("jax_num_cpu_devices", 8)
# Catches a mask of [m] against [b, n, m] that should have named its axes.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiled programs are kept between runs.
_CACHE = pathlib.Path(
  os.environ.get("COMP_JAX_TEST_CACHE", "~/.cache/comp_jax/xla")
).expanduser()
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# Before the first import of comp_jax: checks each annotated shape and type. An
# int is taken for a float, as PEP 484 has it; the hook finds its checker by
# name only.
_checker = types.ModuleType("comp_jax_type_checker")
_checker.check = beartype.beartype(
  conf=beartype.BeartypeConf(is_pep484_tower=True)
)
sys.modules[_checker.__name__] = _checker
jaxtyping.install_import_hook("comp_jax", f"{_checker.__name__}.check")


def pytest_collection_modifyitems(items):
  """The long modules first: no worker is left alone with one at the end."""
  items.sort(key=lambda item: item.path.parent.name not in ("train", "cli"))

"""What is saved comes back bit for bit, whatever happens in between."""

import gc
import logging
import pathlib
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from comp_jax import errors
from comp_jax.train import checkpoints, sharding

# A failed read leaves coroutines of Orbax behind that nobody awaits. Threads of
# its storage outlive the read for a moment and report to an event loop that is
# closed by then: to no object or to such a coroutine, here or in the next test.
pytestmark = [
  pytest.mark.filterwarnings(
    "ignore:Exception ignored in. (None|<coroutine)"
    ":pytest.PytestUnraisableExceptionWarning"
  ),
  pytest.mark.filterwarnings(
    "ignore:coroutine .* was never awaited:RuntimeWarning"
  ),
]


@pytest.fixture(autouse=True)
def _collect():
  """Frees such coroutines while their test's warning filter holds."""
  yield
  gc.collect()


def _state(seed=0):
  rng = np.random.default_rng(seed)
  params = {
    "layer_2": jnp.asarray(rng.normal(size=(256, 256)), jnp.float32),
    "layer_10": {"scale": jnp.asarray(rng.normal(size=(8,)), jnp.bfloat16)},
  }
  strange = np.array([0x7FC00001, 0xFFC12345, 0x80000000], np.uint32)
  return {
    "params": params,
    "optimizer": optax.adamw(1e-3).init(params),
    "step": jnp.int32(seed),
    "key": jax.random.key(seed),
    "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
    "visited": jnp.array([True, False]),
    "strange": jnp.asarray(strange.view(np.float32)),  # NaNs and -0.
    "stack": [jnp.float32(i) for i in range(12)],
    "nothing": None,
    "empty": {},
  }


def _abstract(state):
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state
  )


def _bits(tree):
  def bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      kind = str(jax.random.key_impl(leaf))
      leaf = jax.random.key_data(leaf)
    else:
      kind = str(leaf.dtype)
    return kind, leaf.shape, np.asarray(leaf).tobytes()

  return jax.tree.map(bits, tree), jax.tree.structure(tree)


def _damage(folder, change):
  """Applies `change` to the largest file: the one with the arrays' bytes."""
  files = [file for file in pathlib.Path(folder).rglob("*") if file.is_file()]
  file = max(files, key=lambda file: file.stat().st_size)
  data = bytearray(file.read_bytes())
  file.write_bytes(change(data))


@pytest.mark.parametrize("asynchronous", [False, True])
def test_restored_bits_equal_saved_bits(tmp_path, asynchronous):
  state = _state(3)
  meta = {"stage": 2, "loader": {"offset": 7}, "names": ["a", "b"]}
  with checkpoints.Checkpoints(
    tmp_path / "c", asynchronous=asynchronous
  ) as store:
    assert store.latest() is None
    assert store.restore_latest(_abstract(state)) is None
    store.save(5, state, meta)
    store.wait()
    assert store.latest() == 5
  with checkpoints.Checkpoints(tmp_path / "c") as store:
    restored, found = store.restore(5, _abstract(state))
  assert found == meta
  assert _bits(restored) == _bits(state)


def test_a_donated_state_is_saved_as_it_was(tmp_path):
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  state = jnp.arange(2**16, dtype=jnp.float32)
  with checkpoints.Checkpoints(tmp_path, asynchronous=True) as store:
    store.save(0, {"x": state})
    for _ in range(5):
      state = step(state)
    store.wait()
    restored, _ = store.restore(0, {"x": jax.ShapeDtypeStruct((2**16,), "f4")})
  np.testing.assert_array_equal(restored["x"], np.arange(2**16))


def test_arrays_go_to_the_given_shardings(tmp_path):
  state = _state()
  with checkpoints.Checkpoints(tmp_path) as store:
    # Saved from eight devices, read into four: a resume on another machine.
    eight, _ = sharding.tree_shardings(
      sharding.make_mesh(), state, sharding.FULLY_SHARDED
    )
    store.save(1, jax.device_put(state, eight))
    mesh = sharding.make_mesh(jax.devices()[:4])
    four, _ = sharding.tree_shardings(mesh, state, sharding.FULLY_SHARDED)
    abstract = jax.tree.map(
      lambda leaf, place: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=place
      ),
      state,
      four,
    )
    restored, _ = store.restore(1, abstract)
  for leaf, place in zip(
    jax.tree.leaves(restored), jax.tree.leaves(four), strict=True
  ):
    assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
  shards = restored["params"]["layer_2"].addressable_shards
  assert {shard.data.shape for shard in shards} == {(64, 256)}
  assert _bits(restored) == _bits(state)


def test_only_the_newest_are_kept_and_steps_only_rise(tmp_path):
  state = {"x": jnp.arange(3.0)}
  with checkpoints.Checkpoints(tmp_path, keep=2) as store:
    for step in (1, 2, 3):
      store.save(step, state)
    assert store.steps() == (2, 3)
    store.save(3, {"x": jnp.zeros(3)})  # Exists: left as it is.
    np.testing.assert_array_equal(store.restore(3, state)[0]["x"], state["x"])
    with pytest.raises(ValueError, match="not above"):
      store.save(1, state)


@pytest.mark.parametrize(
  "change",
  [
    lambda data: data[: len(data) // 2],
    lambda data: b"",
    # One bit, in the middle of the arrays.
    lambda data: (
      data[: len(data) // 2]
      + bytes([data[len(data) // 2] ^ 4])
      + data[len(data) // 2 + 1 :]
    ),
  ],
  ids=["half", "empty", "bit"],
)
def test_a_damaged_newest_falls_back_to_the_one_before(
  tmp_path, caplog, change
):
  old, new = _state(1), _state(2)
  with checkpoints.Checkpoints(tmp_path / "c") as store:
    store.save(1, old, {"stage": 1})
    store.save(2, new, {"stage": 2})
    _damage(tmp_path / "c" / "2", change)
    with caplog.at_level(logging.WARNING, "comp_jax"):
      step, restored, meta = store.restore_latest(_abstract(old))
    assert (step, meta) == (1, {"stage": 1})
    assert _bits(restored) == _bits(old)
    assert "damaged checkpoint" in caplog.text and "/2" in caplog.text
    # Its step can be taken again.
    store.save(2, new, {"stage": 2})
    step, restored, _ = store.restore_latest(_abstract(old))
    assert step == 2 and _bits(restored) == _bits(new)


def test_missing_parts_count_as_damage(tmp_path):
  state = {"x": jnp.arange(3.0)}
  with checkpoints.Checkpoints(tmp_path) as store:
    store.save(1, state)
    store.save(2, state)
    (tmp_path / "2" / "meta" / "metadata").unlink()
    assert store.restore_latest(state)[0] == 1


def test_no_readable_checkpoint_is_an_error_not_a_new_start(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as store:
    store.save(1, _state())
    _damage(tmp_path / "1", lambda data: b"")
    with pytest.raises(errors.UserError, match="none of the 1 checkpoints"):
      store.restore_latest(_abstract(_state()))
    assert (tmp_path / "1").exists()


def test_another_tree_is_named_and_not_called_damage(tmp_path):
  state = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4), "c": jnp.zeros(5)}
  other = {
    "a": jnp.zeros((2, 4)),
    "b": jnp.zeros(4, jnp.int32),
    "d": jnp.zeros(5),
  }
  with checkpoints.Checkpoints(tmp_path) as store:
    store.save(1, state)
    with pytest.raises(errors.UserError) as raised:
      store.restore_latest(other)
    assert store.latest() == 1
  for part in (
    "4 arrays",
    "a: stored float32[2, 3], needed float32[2, 4]",
    "b: stored float32[4], needed int32[4]",
    "c: stored float32[5], needed none",
    "d: stored none, needed float32[5]",
  ):
    assert part in str(raised.value)


def test_wide_numbers_are_refused(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as store:
    with pytest.raises(TypeError, match="a/b int64"):
      store.save(1, {"a": {"b": np.arange(3)}, "c": jnp.zeros(2)})
    assert store.latest() is None


def test_unusable_folder(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(errors.UserError, match="cannot keep checkpoints"):
    checkpoints.Checkpoints(tmp_path / "file" / "c")


_SAVER = """
  import itertools, sys
  import jax.numpy as jnp
  from comp_jax.train import checkpoints
  wait = sys.argv[2] == "0"
  store = checkpoints.Checkpoints(sys.argv[1], asynchronous=not wait)
  for step in itertools.count(1):
    state = {"x": jnp.full((512, 512), step, jnp.float32)}
    store.save(step, state, {"s": step})
    print(step, flush=True)
    if step == 500:
      break
"""


@pytest.mark.parametrize(
  ("asynchronous", "delays"), [(False, (0.02, 0.07)), (True, (0.04,))]
)
def test_sigkill_while_saving_leaves_a_whole_checkpoint(
  tmp_path, asynchronous, delays
):
  abstract = {"x": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
  for delay in delays:
    folder = tmp_path / str(delay)
    with subprocess.Popen(
      [
        sys.executable,
        "-c",
        textwrap.dedent(_SAVER),
        str(folder),
        str(int(asynchronous)),
      ],
      stdout=subprocess.PIPE,
      text=True,
    ) as process:
      for line in process.stdout:
        if int(line) >= 3:
          break
      time.sleep(delay)  # Anywhere in the saves that follow.
      process.kill()
      rest = process.stdout.read().split()
      process.wait(timeout=30)
    last = int(rest[-1]) if rest else 3
    with checkpoints.Checkpoints(folder) as store:
      step, state, meta = store.restore_latest(abstract)
      # An asynchronous save may be under way when the next one is announced.
      assert last - int(asynchronous) <= step <= last + 1
      assert meta == {"s": step}
      np.testing.assert_array_equal(state["x"], np.full((512, 512), step))
      store.save(step + 1, state)
      assert store.latest() == step + 1
      left = {entry.name for entry in folder.iterdir()}
      assert not [name for name in left if "tmp" in name]

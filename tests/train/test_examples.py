"""The file of outcomes: what is written is read, and nothing else is."""

import numpy as np
import pytest

from comp_jax import errors
from comp_jax.tasks import outcomes
from comp_jax.train import examples

FOUND = {
  "test": outcomes.Outcomes(
    metrics={"accuracy": 0.5},
    examples={
      "accuracy": np.array([True, False]),
      "t2i_rank": np.array([[0, 3], [1, 2]], np.int32),
    },
  ),
  "test2": outcomes.Outcomes(
    metrics={"accuracy": 1.0}, examples={"accuracy": np.array([1.0])}
  ),
}


def test_each_split_has_outcomes_of_its_own(tmp_path):
  folder = tmp_path / "run"
  examples.write(folder, FOUND)
  for split, expected in FOUND.items():
    found = examples.read(folder, split)
    assert found.keys() == expected.examples.keys()
    for name, array in expected.examples.items():
      np.testing.assert_array_equal(found[name], array)
      assert found[name].dtype == array.dtype
  assert examples.read(folder, "dev") == {}


def test_equal_outcomes_are_equal_bytes_and_leave_nothing_else(tmp_path):
  before = []
  for _ in range(2):
    examples.write(tmp_path, FOUND)
    before.append((tmp_path / examples.NAME).read_bytes())
  assert before[0] == before[1]
  assert [path.name for path in tmp_path.iterdir()] == [examples.NAME]


def test_without_outcomes_there_is_no_file(tmp_path):
  scores = outcomes.Outcomes(metrics={"cider": 1.0})
  examples.write(tmp_path, {"val": scores})
  assert not list(tmp_path.iterdir())
  assert examples.read(tmp_path, "val") == {}


@pytest.mark.parametrize("cut", [0, 40, 300])
def test_a_broken_file_is_named(tmp_path, cut):
  examples.write(tmp_path, FOUND)
  path = tmp_path / examples.NAME
  path.write_bytes(path.read_bytes()[:cut])
  with pytest.raises(errors.UserError, match="cannot read .*examples.npz"):
    examples.read(tmp_path, "test")


def test_pickles_are_refused(tmp_path):
  np.savez(tmp_path / examples.NAME, **{"test/accuracy": np.array([{}])})
  with pytest.raises(errors.UserError, match="cannot read .*examples.npz"):
    examples.read(tmp_path, "test")

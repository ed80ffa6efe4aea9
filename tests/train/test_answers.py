"""The file of answers that VQA's server takes."""

import json

import pytest

from comp_jax import errors
from comp_jax.train import answers


def test_the_result_file_has_the_servers_format(tmp_path):
  path = tmp_path / "results.json"
  answers.write(path, {"3": "yes", "7": "2", "vg-1": "no"})
  assert json.loads(path.read_text()) == [
    {"question_id": 3, "answer": "yes"},
    {"question_id": 7, "answer": "2"},
    {"question_id": "vg-1", "answer": "no"},
  ]
  with pytest.raises(errors.UserError, match="cannot write"):
    answers.write(tmp_path / "nowhere" / "results.json", {"1": "no"})

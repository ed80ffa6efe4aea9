"""Tables and figures of what is measured on a model."""

import xml.etree.ElementTree

import pytest

from comp_jax.report import measures

_OVERLAP = {
  "vision/attn": {"overlap": [0.3, 0.1], "chance": 0.25},
  "vision/mlp": {"overlap": [0.5, 0.6], "chance": 0.25},
  "text/cross0": {"overlap": [0.2], "chance": 0.27},
}
_MOVED = {
  "cit": [[0.0, 0.0], [0.2, 0.4]],
  "no_cit": [[0.0, 0.0], [0.5, 0.6]],
  "apart": [[0.0, 0.0], [0.1, 0.1]],
}
_RANKS = {"vision": {"tokens": _MOVED, "neurons": _MOVED}}
_INFLUENCE = {
  "vision/attn": {
    "influence": [[0.1, 0.2, 0.3], [0.3, 0.1, 0.2]],
    "influential": [0.0, 1.0],
  },
  "vision/mlp": {"influence": [[0.0, 0.1]], "influential": [0.0]},
}

_DAMAGE = {
  "dense": -1.9,
  "metric": {
    "Wanda": {"layer_mean": [-2.0, -2.2], "isomorphic": [-2.1, -2.4]},
    "random": {"layer_mean": [-2.5, -2.9], "isomorphic": [-2.6, -3.0]},
  },
}

_CHOICES = {
  "modes": ["a", "b"],
  "whole": [2.0, 1.0],
  "subsets": {1: [[3.0, 1.0], [1.0, 2.0]]},
}


def _rows(part, index=0):
  grid = part.grids[index]
  return [dict(zip(grid.columns, row, strict=True)) for row in grid.rows]


def test_overlap_has_a_row_per_layer_the_mean_and_chance():
  rows = _rows(measures.overlap(_OVERLAP))
  assert [row["Layer"] for row in rows] == ["0", "1", "mean", "by chance"]
  assert [row["vision attention"] for row in rows] == [
    "30.0",
    "10.0",
    "20.0",
    "25.0",
  ]
  crossed = [row["text cross-attention, first image"] for row in rows]
  assert crossed == ["20.0", "", "20.0", "27.0"]


def test_ranks_are_means_over_layers_at_each_share():
  part = measures.ranks(_RANKS, (0.0, 0.5))
  rows = _rows(part)
  assert [row["Heads removed"] for row in rows] == ["0 %", "50 %"]
  assert rows[1]["tokens, with CIT"] == "0.300"
  assert rows[1]["neurons, without"] == "0.550"
  assert rows[1]["tokens, between the two"] == "0.100"


def test_influence_is_held_against_importance_that_says_nothing():
  rows = _rows(measures.influence(_INFLUENCE, 0.3))
  assert [row["Layer"] for row in rows] == ["0", "1", "mean", "unrelated"]
  # One of three units is above the median, one of two.
  assert [row["vision attention"] for row in rows] == [
    "0.0",
    "100.0",
    "50.0",
    "33.3",
  ]
  assert rows[3]["vision MLP"] == "50.0"


def test_damage_has_a_table_per_share_and_a_row_per_score():
  first, second = measures.damage(_DAMAGE, (0.05, 0.1), "vision_params").grids
  assert "5.0 % of the MACs gone (vision_params), dense −1.900" in first.title
  assert first.columns == ("Score", "layer_mean", "isomorphic")
  assert first.rows == (
    ("Wanda", "−2.000", "−2.100"),
    ("random", "−2.500", "−2.600"),
  )
  assert second.rows[0] == ("Wanda", "−2.200", "−2.400")


def test_choices_say_how_often_fewer_examples_choose_alike():
  (grid,) = measures.choices(_CHOICES, 32).grids
  assert grid.title == "All examples choose b"
  # The second of two subsets prefers what costs 2 on all examples.
  assert grid.rows == (
    ("32", "2", "50 %", "1.500", "2.000 ± 1.414", "1.500 ± 0.707"),
    ("all", "1", "", "1.000", "2.000", "1.000"),
  )


@pytest.mark.parametrize(
  ("part", "words"),
  [
    (measures.overlap(_OVERLAP), [b"Vision", b"Text"]),
    (measures.ranks(_RANKS, (0.0, 0.5)), [b"Vision"]),
    (measures.influence(_INFLUENCE, 0.3), [b"Vision"]),
    (measures.damage(_DAMAGE, (0.05, 0.1), "vision_params"), [b"isomorphic"]),
    (measures.choices(_CHOICES, 32), [b"highest", b"all"]),
  ],
  ids=["overlap", "ranks", "influence", "damage", "choice"],
)
def test_figures_are_whole_and_the_same_twice(part, words):
  (figure,) = part.figures
  svg = figure.draw(False)
  assert xml.etree.ElementTree.fromstring(svg).tag.endswith("svg")
  assert svg == figure.draw(False) != figure.draw(True)
  # Text is drawn as paths; its source stands beside it.
  assert all(b"<!-- " + word in svg for word in words)

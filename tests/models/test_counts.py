"""Token counts at other thresholds, as a bisection asks for them."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from comp_jax.core import masks as masks_lib
from comp_jax.core.execution import Execution
from comp_jax.core.tokens import TokenPolicy
from comp_jax.models import families
from tests.models import model_kit as kit

BATCH = {**kit.batch(), **kit.answers()}


@pytest.mark.parametrize("readout", ["cls", "cross", "vqa"])
def test_counts_are_those_of_the_whole_model_where_a_policy_moved(readout):
  spec = kit.spec(readout=readout)
  model, params = families.prunable(spec), kit.params(spec)
  masks = masks_lib.ones(model.groups)
  policies = {
    tower: TokenPolicy(theta=jnp.float32(0.9)) for tower in spec.towers
  }
  execution = Execution(masks=masks, policies=policies)
  _, aux = model.forward(params, BATCH, execution)
  # Marks, which no pass could give.
  known = {t: jnp.full_like(aux[t]["counts"], -1) for t in model.towers}
  for flags in itertools.product([False, True], repeat=2):
    moved = dict(zip(model.towers, map(jnp.asarray, flags), strict=True))
    found = model.recounted(known, moved, params, BATCH, execution)
    assert found.keys() == known.keys()
    for tower, counts in found.items():
      if moved[tower]:
        np.testing.assert_array_equal(counts, aux[tower]["counts"])
      elif tower in model.tower_counts and not any(
        moved[t] for t in moved if t not in model.tower_counts
      ):
        # Not counted again.
        np.testing.assert_array_equal(counts, known[tower])
  assert ("text" in model.tower_counts) == (readout == "cls")

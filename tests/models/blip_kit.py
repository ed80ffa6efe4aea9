"""The four kinds of small BLIP, with weights and a batch for all of them."""

import jax
import numpy as np
import pytest

from tests.models import model_kit as kit

BATCH = {**kit.batch(), **kit.answers()}
NAMES = ("cross", "joint", "caption", "vqa")
MODELS = {name: kit.spec(readout=name) for name in NAMES}
PARAMS_OF = {name: kit.params(model) for name, model in MODELS.items()}
MODEL, PARAMS = MODELS["cross"], PARAMS_OF["cross"]
every_model = pytest.mark.parametrize("name", MODELS)


def close(actual, desired, atol=1e-5):
  jax.tree.map(
    lambda a, d: np.testing.assert_allclose(a, d, rtol=0, atol=atol),
    actual,
    desired,
  )

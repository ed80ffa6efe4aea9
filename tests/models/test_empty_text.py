"""An empty text is [CLS] [SEP]: a text like any other, which loses nothing."""

import numpy as np
import pytest

from comp_jax.core.tokens import TokenPolicy
from comp_jax.data import texts, tokenizers
from tests.models import model_kit as kit

WORDS = "a bed a fed a bad cab a deaf ace"


@pytest.fixture(scope="module")
def inputs():
  """Two empty texts, one of them of marks alone, and one that is none."""
  tokenizer = tokenizers.train_wordpiece([WORDS], kit.VOCAB)
  written = ["", texts.cleaned(" (...)!\n", 30), WORDS]
  ids, mask = tokenizer.encode(written, kit.LENGTH)
  cls, sep, pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
  assert sep == kit.SEP
  for row, valid in zip(ids[:2], mask[:2], strict=True):
    assert list(row) == [cls, sep] + [pad] * (kit.LENGTH - 2)
    assert list(np.flatnonzero(valid)) == [0, 1]
  return kit.batch(3) | {"text_ids": ids, "text_mask": mask}


@pytest.mark.parametrize(
  ("readout", "rule", "combine", "theta"),
  [
    ("mean", "mean", "drop", 0.9),
    ("end", "mean", "drop", 1.2),
    ("joint", "mean", "drop", 0.9),
    ("vqa", "mean", "merge", 0.9),
    ("cross", "madtp", "merge", 30.0),
    ("cross", "evit", "drop", 0.9),
    ("cross", "tome", "match", 2.5),
    ("cross", "crossget", "match", 2.5),
  ],
)
def test_an_empty_text_drops_no_token(readout, rule, combine, theta, inputs):
  """Under a threshold its outputs are those without one, and finite."""
  model = kit.spec(readout=readout)
  params = kit.params(model)
  batch = inputs | (kit.answers() if readout == "vqa" else {})
  policies = {
    "vision": TokenPolicy(),
    "text": TokenPolicy(theta=theta, rule=rule, combine=combine),
  }
  output, aux = kit.apply(model, params, batch, policies=policies)
  dense, _ = kit.apply(model, params, batch)
  # BLIP's retrieval reads each text twice.
  counts = np.asarray(aux["text"]["counts"]).reshape(3, -1, 3)
  assert np.all(counts[:2] == 2)
  assert np.all(counts[2, :, -1] < kit.LENGTH)  # The other one loses some.
  # Nothing to choose from: no score either, rather than 0 / 0.
  assert np.all(np.isfinite(aux["text"]["scores"]))
  for name, value in output.items():
    if np.ndim(value):
      assert np.all(np.isfinite(value[:2])), name
      np.testing.assert_allclose(
        value[:2], dense[name][:2], rtol=0, atol=1e-5, err_msg=name
      )

"""The two-tower loss and R@10 against NumPy, where concepts are shared."""

import jax.numpy as jnp
import numpy as np

from comp_jax.tasks import retrieval

B, P = 24, 4


def _pairs(seed):
  """Unit embeddings of 24 pairs, of which some share a concept."""
  rng = np.random.default_rng(seed)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
  image, text = unit(rng.normal(size=(2, B, P)))
  concept = rng.integers(0, 16, B)
  assert len(set(concept)) < B
  output = {
    "image_embedding": jnp.asarray(image, jnp.float32),
    "text_embedding": jnp.asarray(text, jnp.float32),
    "logit_scale": jnp.float32(3.0),
  }
  return image, text, concept, output, {"concept": jnp.asarray(concept)}


def test_pairs_of_one_concept_are_no_negatives_of_each_other():
  image, text, concept, output, batch = _pairs(0)
  logits = 3.0 * image @ text.T
  total = 0.0
  for i in range(B):
    others = [j for j in range(B) if j == i or concept[j] != concept[i]]
    for row in (logits[i, others], logits[others, i]):
      total += np.log(np.exp(row).sum()) - logits[i, i]
  np.testing.assert_allclose(
    retrieval.loss(output, batch), total / (2 * B), rtol=1e-5
  )


def test_r10_finds_any_entry_of_the_concept():
  found = []
  for seed in range(4):
    image, text, concept, output, batch = _pairs(seed)
    similarity = image @ text.T
    hits = [
      any(concept[j] == concept[i] for j in np.argsort(-row)[:10])
      for each in (similarity, similarity.T)
      for i, row in enumerate(each)
    ]
    np.testing.assert_allclose(
      retrieval.recall_at_10(output, batch), np.mean(hits), rtol=1e-6
    )
    found.append(np.mean(hits))
  assert 0 < min(found) < 1

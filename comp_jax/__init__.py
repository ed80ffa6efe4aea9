"""CoMP: collaborative multi-mode pruning of vision-language models."""

__version__ = "0.1.0"


def load(path):
  """The model that was saved in a folder, ready to run.

  Args:
    path: a folder that prune.py, train.py or `interop.store.save` wrote.

  Returns:
    A `comp_jax.interop.store.Loaded`: its methods are `encode_image`,
    `encode_text` and `logits`.
  """
  # `import comp_jax` alone must not load JAX.
  from comp_jax.interop import store

  return store.load(path)

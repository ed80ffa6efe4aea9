"""CoMP: collaborative multi-mode pruning of vision-language models."""

__version__ = "0.1.0"


def load(path, task=None, **options):
  """The model of a folder or file, ready to run.

  Args:
    path: a folder that prune.py, train.py or `interop.store.save` wrote; a
      Hugging Face folder of a CLIPModel; or a file in Hugging Face's or
      OpenAI's layout, dense or compressed by UPop.
    task: what the model is for; None for what the checkpoint says.
    **options: `heads` and `image_size`, see `interop.load.load`.

  Returns:
    A `comp_jax.interop.store.Loaded`: its methods are `encode_image`,
    `encode_text` and `logits`.
  """
  # `import comp_jax` alone must not load JAX.
  from comp_jax.interop import load as load_lib

  return load_lib.load(path, task, **options)

"""CoMP: collaborative multi-mode pruning of vision-language models."""

__version__ = "0.1.0"


def load(path, task=None, **options):
  """The model of a folder or file, ready to run.

  Args:
    path: a folder that prune.py, train.py or `interop.store.save` wrote; a
      Hugging Face folder of a CLIP or BLIP; or a file in the layout of Hugging
      Face, OpenAI (CLIP) or BLIP's authors, dense or compressed by UPop.
    task: `retrieval` (CLIP, BLIP), `matching`, `nlvr`, `caption` or `vqa`
      (BLIP); None for what the checkpoint says.
    **options: `heads` and `image_size`, see `interop.load.load`.

  Returns:
    A `comp_jax.interop.store.Loaded`: called with a batch it gives the outputs
    of its model; where images and texts meet in a joint space (CLIP, BLIP's
    retrieval) its methods are `encode_image`, `encode_text` and `logits`, too.

  Raises:
    UserError: nothing readable, another model than asked for, or arrays that
      do not fit.
  """
  # `import comp_jax` alone must not load JAX.
  from comp_jax.interop import load as load_lib

  return load_lib.load(path, task, **options)

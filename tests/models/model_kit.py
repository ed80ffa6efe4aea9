"""Small two-tower models, random parameters and batches for the tests."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from comp_jax.core.execution import Execution
from comp_jax.models import families, specs

VOCAB, LENGTH, SEP = 40, 12, 3


def spec(
  *, layer_scale=True, readout="mean", depth=(2, 2), **options
) -> specs.TwoTowerSpec:
  """A small pair; `end` makes it a CLIP, the others are BLIPs.

  They are `cross`, `joint`, `caption` and `vqa`.
  """
  if readout == "end":
    return _clip(depth, options)
  if readout in ("cross", "joint", "caption", "vqa"):
    return _blip(readout, depth, options)
  return specs.TwoTowerSpec(
    vision=specs.VitSpec(
      image_size=32,
      patch_size=8,
      encoder=specs.encoder(
        width=24,
        depth=depth[0],
        heads=3,
        mlp=40,
        norm_first=True,
        norm_eps=1e-6,
        layer_scale=layer_scale,
        **options,
      ),
    ),
    text=specs.BertSpec(
      vocab_size=VOCAB,
      max_length=LENGTH,
      readout=readout,
      sep_id=SEP,
      encoder=specs.encoder(
        width=16,
        depth=depth[1],
        heads=4,
        mlp=36,
        norm_first=False,
        norm_eps=1e-12,
        **options,
      ),
    ),
    joint_width=20,
  )


def _clip(depth, options):
  shared = {
    "norm_first": True,
    "norm_eps": 1e-5,
    "activation": "quick_gelu",
    **options,
  }
  return specs.TwoTowerSpec(
    vision=specs.VitSpec(
      image_size=32,
      patch_size=8,
      encoder=specs.encoder(
        width=24, depth=depth[0], heads=3, mlp=40, **shared
      ),
      pre_norm=True,
      patch_bias=False,
    ),
    text=specs.ClipTextSpec(
      vocab_size=VOCAB,
      max_length=LENGTH,
      encoder=specs.encoder(
        width=16, depth=depth[1], heads=4, mlp=36, causal=True, **shared
      ),
    ),
    joint_width=20,
  )


def _blip(readout, depth, options):
  vision = specs.VitSpec(
    image_size=32,
    patch_size=8,
    encoder=specs.encoder(
      width=24,
      depth=depth[0],
      heads=3,
      mlp=40,
      norm_first=True,
      norm_eps=1e-6,
      **options,
    ),
    readout="tokens",
  )

  def words(source_width, **more):
    encoder = specs.encoder(
      width=16,
      depth=depth[1],
      heads=4,
      mlp=36,
      norm_first=False,
      norm_eps=1e-12,
      source_width=source_width,
      **more,
      **options,
    )
    return {
      "vocab_size": VOCAB,
      "max_length": LENGTH,
      "sep_id": SEP,
      "encoder": encoder,
    }

  def decoder(source_width):
    return specs.DecoderSpec(bos_id=2, **words(source_width, causal=True))

  if readout == "caption":
    return specs.CaptionSpec(vision=vision, text=decoder(24))
  if readout == "vqa":
    text = specs.BertSpec(readout="tokens", **words(24))
    return specs.VqaSpec(vision=vision, text=text, answer=decoder(16))
  text = specs.BertSpec(readout="cls", **words(24))
  if readout == "joint":
    return specs.RetrievalSpec(vision=vision, text=text, joint_width=8)
  return specs.MatchingSpec(vision=vision, text=text)


def params(model: specs.TwoTowerSpec, seed=0):
  """Random values everywhere: no bias is 0 and no scale is 1."""
  rng = np.random.default_rng(seed)
  flat = traverse_util.flatten_dict(families.param_shapes(model))

  def draw(path, shape):
    value = rng.normal(size=shape)
    if path[-1] == "logit_scale":
      return np.float32(2.0)
    if path[-1] == "temperature":
      return np.float32(0.2)
    if path[-1] == "scale" or path[-1].startswith("layer_scale"):
      return (1.0 + 0.3 * value).astype(np.float32)
    if path[-1] == "kernel":
      return (0.25 * value).astype(np.float32)
    return (0.3 * value).astype(np.float32)

  return traverse_util.unflatten_dict(
    {path: draw(path, leaf.shape) for path, leaf in sorted(flat.items())}
  )


def unrolled(tree, model: specs.TwoTowerSpec):
  """Stacked parameters as those of the unrolled dense model."""
  tree = jax.tree.map(np.asarray, tree)
  for tower in model.towers:
    encoder = {
      f"layers_{i}": jax.tree.map(
        lambda x, i=i: x[i], tree[tower]["encoder"]["layers"]
      )
      for i in range(getattr(model, tower).encoder.depth)
    }
    tree = {**tree, tower: {**tree[tower], "encoder": encoder}}
  return tree


def texts(rng, b, n=LENGTH):
  """Ids and mask of texts of different lengths: [CLS] words [SEP] padding."""
  lengths = rng.integers(4, n + 1, size=b)
  lengths[0] = n
  ids = rng.integers(4, VOCAB, size=(b, n)).astype(np.int32)
  ids[:, 0] = 2
  mask = np.arange(n)[None] < lengths[:, None]
  ids[np.arange(b), lengths - 1] = SEP
  ids[~mask] = 0
  return ids, mask


def batch(b=3, seed=1):
  rng = np.random.default_rng(seed)
  ids, mask = texts(rng, b)
  image = rng.integers(0, 256, size=(b, 32, 32, 3)).astype(np.uint8)
  return {"image": image, "text_ids": ids, "text_mask": mask}


def answers(b=3, a=2, n=6, seed=2):
  """Answers of different lengths; the last example has one fewer."""
  ids, mask = texts(np.random.default_rng(seed), b * a, n)
  ids, mask = ids.reshape(b, a, n), mask.reshape(b, a, n)
  mask[-1, -1] = False
  return {"answer_ids": ids, "answer_mask": mask}


def slow_cases(*cases):
  """Parameters of a test that only `make test-slow` has.

  Each part of them is in a case beside them that always runs.
  """
  return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


# XLA's own optimisations take most of the time of a test and change nothing
# that is tested.
FAST = {"xla_backend_optimization_level": 0}


def forward(
  model: specs.TwoTowerSpec,
  tree,
  inputs,
  masks=None,
  probes=None,
  policies=None,
  estimator=None,
):
  """The model's output and aux."""
  tree, inputs = jax.tree.map(jnp.asarray, (tree, inputs))
  # Not jitted: outside a `jit` each operation runs by itself.
  run = families.prunable(model).forward.__wrapped__
  execution = Execution(
    masks=masks, probes=probes, policies=policies, estimator=estimator
  )
  return run(tree, inputs, execution)


apply = jax.jit(
  forward, static_argnames=("model", "estimator"), compiler_options=FAST
)
# With the compiler of every day, where the suite's settings leave parts out.
fused = jax.jit(
  forward,
  static_argnames=("model", "estimator"),
  compiler_options={
    **FAST,
    **(
      {"xla_cpu_use_fusion_emitters": True}
      if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", "")
      else {}
    ),
  },
)

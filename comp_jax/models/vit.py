"""Vision transformer: CLS, learned positions, optional LayerScale."""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from comp_jax.core import execution as execution_lib
from comp_jax.core import tokens as tokens_lib
from comp_jax.models import blocks, specs
from comp_jax.models import encoder as encoder_lib


class Vit(nn.Module):
  """Images to their CLS embedding, or to all of their tokens."""

  spec: specs.VitSpec

  @nn.compact
  def __call__(
    self,
    image: UInt8[Array, "b s s 3"] | Float[Array, "b s s 3"],
    execution: execution_lib.TowerExecution = execution_lib.DENSE_TOWER,
  ) -> tuple[Float[Array, "b d"] | tokens_lib.TokenState, dict]:
    """What is read out, normalised, and the encoder's aux.

    Args:
      image: pixels: bytes, or floats that are normalised already.
      execution: units, tokens and what is gathered.

    Raises:
      ValueError: images of another size.
    """
    spec, encoder = self.spec, self.spec.encoder
    size = (spec.image_size, spec.image_size, 3)
    if image.shape[1:] != size:
      raise ValueError(f"images of shape {image.shape[1:]}, model wants {size}")
    if image.dtype == jnp.uint8:
      scale = lambda v: np.asarray(v, np.float32).reshape(1, 1, 1, 3)  # noqa: E731
      image = (image.astype(jnp.float32) / 255.0 - scale(spec.mean)) / scale(
        spec.std
      )
    b, grid, p = image.shape[0], spec.grid, spec.patch_size
    patches = image.reshape(b, grid, p, grid, p, 3)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, grid**2, p, p, 3)
    x = blocks.Projection(
      (p, p, 3),
      (encoder.width,),
      encoder.dtype,
      spec.patch_bias,
      name="patch_embed",
    )(patches)
    cls = self.param(
      "cls_token", nn.initializers.normal(0.02), (encoder.width,)
    )
    positions = self.param(
      "position_embedding",
      nn.initializers.normal(0.02),
      (spec.tokens, encoder.width),
    )
    cls = jnp.broadcast_to(cls[None, None], (b, 1, encoder.width))
    x = jnp.concatenate([cls.astype(x.dtype), x], axis=1)
    x = x + positions[None].astype(x.dtype)
    norm = functools.partial(
      nn.LayerNorm, epsilon=encoder.norm_eps, dtype="float32"
    )
    if spec.pre_norm:
      x = norm(name="pre_norm")(x).astype(encoder.dtype)
    is_cls = jnp.arange(spec.tokens)[None] == jnp.zeros((b, 1), jnp.int32)
    state = tokens_lib.TokenState(
      x=x,
      valid=jnp.ones((b, spec.tokens), bool),
      protected=is_cls,
      readout=is_cls,
    )
    state, aux = encoder_lib.Encoder(encoder, name="encoder")(state, execution)
    last = norm(name="norm")
    if spec.readout == "tokens":
      x = last(state.x.astype(jnp.float32)).astype(encoder.dtype)
      return dataclasses.replace(state, x=x), aux
    # CLS is protected and order is kept: it is always token 0.
    return last(state.x[:, 0].astype(jnp.float32)), aux


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
  """The cubic convolution kernel with parameter `a`."""
  x = np.abs(x)
  near = ((a + 2) * x - (a + 3)) * x**2 + 1
  far = a * (((x - 5) * x + 8) * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def resample_positions(
  table: Float[np.ndarray, "n d"], grid: int
) -> Float[np.ndarray, "k d"]:
  """The position table of another grid; the row of CLS is copied.

  Bicubic, half-pixel centres, no antialiasing, a = -0.75, edges clamped: what
  PyTorch's `interpolate(mode="bicubic")` does. (`jax.image.resize` uses
  a = -0.5, spec `upop.md` 3.2.)
  """
  cls, patches = table[:1], table[1:]
  old = round(len(patches) ** 0.5)
  if old == grid:
    return table
  centres = (np.arange(grid) + 0.5) * old / grid - 0.5
  first = np.floor(centres).astype(int)
  weights = np.zeros((grid, old))
  for offset in range(-1, 3):
    source = first + offset
    rows = np.clip(source, 0, old - 1)
    np.add.at(weights, (np.arange(grid), rows), _cubic(centres - source, -0.75))
  square = np.asarray(patches, np.float64).reshape(old, old, -1)
  square = np.einsum("ai,bj,ijd->abd", weights, weights, square)
  resampled = square.reshape(grid * grid, -1).astype(table.dtype)
  return np.concatenate([cls, resampled])

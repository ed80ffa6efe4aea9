"""Random parameters, and how what runs once is compiled."""

import jax
import jax.numpy as jnp

QUICK = {"xla_backend_optimization_level": 0}


def random_params(rng, shapes, scale):
  """Parameters of these shapes; norms and layer scales around 1."""

  def draw(path, shape):
    value = rng.normal(size=shape.shape) * scale
    name = path[-1].key
    return jnp.asarray(value + (name[:5] in ("scale", "layer")), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)

"""What a config says of updates: clipping, decay, the lengths of a phase."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from comp_jax.cli import configs
from comp_jax.models import families, presets
from comp_jax.train import fit, prepare, setup

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def config():
  return configs.load(str(ROOT / "configs" / "emoji_tiny.py"))


def test_every_field_of_a_section_reaches_its_schedule(config):
  section = config.finetune
  section.steps, section.chunk, section.warmup, section.save_every = 7, 5, 3, 2
  section.learning_rate, section.weight_decay = 0.25, 0.125
  section.clip, section.decay = 0.5, "all"
  found = dataclasses.asdict(setup.schedule(section, extra=4))
  assert found == {
    "steps": 11,
    "chunk": 5,
    "learning_rate": 0.25,
    "warmup": 3,
    "weight_decay": 0.125,
    "clip": 0.5,
    "decay": "all",
    "save_every": 2,
    "rates": (),
    "horizon": None,
  }


@pytest.mark.parametrize(("warmup", "steps"), [(0, 7), (3, 7), (9, 7), (0, 1)])
def test_the_cosine_is_optax_s_and_its_length_can_be_traced(warmup, steps):
  start = 0.0 if warmup else 1.0
  theirs = optax.warmup_cosine_decay_schedule(
    start, 1.0, min(warmup, steps - 1), steps
  )
  count = jnp.arange(steps + 2)
  expected = jax.vmap(theirs)(count)
  ours = fit.cosine(count, warmup, steps)
  np.testing.assert_allclose(ours, expected, atol=1e-6)
  traced = jax.jit(fit.cosine, static_argnums=1)
  np.testing.assert_allclose(
    traced(count, warmup, jnp.float32(steps)), expected, atol=1e-6
  )


@pytest.mark.parametrize(("clip", "norm"), [(0.5, 0.5), (0.0, 5.0)])
@pytest.mark.parametrize("decay", fit.DECAYS)
def test_the_search_clips_and_decays_as_the_config_says(
  config, clip, norm, decay
):
  config.prune.clip, config.prune.decay = clip, decay
  config.prune.weight_decay, config.prune.warmup_stages = 0.5, 0
  optimizer = prepare.optimizer(config, 1.0)
  params = {"kernel": jnp.ones(()), "bias": jnp.ones(())}
  gradients = {"kernel": jnp.float32(3.0), "bias": jnp.float32(4.0)}
  updates, state = optimizer.update(gradients, optimizer.init(params), params)
  assert _norm_seen(state) == pytest.approx(norm, rel=1e-5)
  # Adam's first step is 1; what decays goes half a weight further.
  np.testing.assert_allclose(updates["kernel"], -1.5, rtol=1e-5)
  bias = -1.5 if decay == "all" else -1.0
  np.testing.assert_allclose(updates["bias"], bias, rtol=1e-5)


@pytest.mark.parametrize("decay", fit.DECAYS)
def test_what_decays(decay):
  """All of a model's projections and its words; no norm, bias or position."""
  spec = presets.spec("tiny_nlvr", vocab_size=16)
  params = jax.tree.map(jnp.ones_like, families.initial_params(spec, 0))
  optimizer = fit.adamw(1.0, 0.5, 1.0, decay)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  decayed = {
    path[-1].key
    for path, update in jax.tree.leaves_with_path(updates)
    if np.asarray(update).any()
  }
  matrices = {"kernel", "merge_kernel", "word_embedding"}
  others = {"bias", "cls_token", "merge_bias", "position_embedding", "scale"}
  every = {path[-1].key for path, _ in jax.tree.leaves_with_path(updates)}
  assert every == matrices | others
  assert decayed == (matrices if decay == "matrices" else every)


@pytest.mark.parametrize(("clip", "norm"), [(0.5, 0.5), (0.0, 5.0)])
def test_a_gradient_longer_than_clip_is_shortened_to_it(clip, norm):
  """Seen in Adam's first moment, as the update does not tell."""
  params = {"a": jnp.zeros(()), "b": jnp.zeros(())}
  optimizer = fit.adamw(1.0, 0.0, clip, "all")
  gradients = {"a": jnp.float32(3.0), "b": jnp.float32(4.0)}
  _, state = optimizer.update(gradients, optimizer.init(params), params)
  assert _norm_seen(state) == pytest.approx(norm, rel=1e-5)


def _norm_seen(state):
  """The norm of the first gradient that Adam saw."""
  moment = optax.tree_utils.tree_get(state, "mu")
  return float(np.linalg.norm(jax.tree.leaves(moment))) / 0.1

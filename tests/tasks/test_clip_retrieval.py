"""Three steps of CLIP's retrieval by momentum contrast against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from comp_jax.core.execution import DENSE
from comp_jax.models import families
from comp_jax.tasks import library, task
from comp_jax.train import step

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from tests.interop import test_clip, test_clip_parity  # noqa: E402
from tests.tasks import torch_clip  # noqa: E402

B, QUEUE, RATE = test_clip_parity.PAIRS, 8, 0.05
# The second step shows an image of the first again, the third fills the
# queue a second time.
CONCEPTS = np.array([[0, 1, 2, 2], [3, 0, 5, 6], [7, 1, 1, 9]], np.int32)


def close(ours, theirs):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_three_steps_equal_torchs():
  built = test_clip.build()
  spec, params = test_clip_parity.tree(built.state_dict())
  model = torch_clip.ClipRetrieval(built, QUEUE)
  options = task.Options(queue=QUEUE, momentum=0.9, distill=0.4, ramp=2)
  todo = library.of(spec, options)
  objective = step.Objective(
    prunable=families.prunable(spec), loss=todo.loss, memory=todo.memory(spec)
  )
  memory = objective.memory.initial(params, jax.random.key(0))
  run = jax.jit(lambda p, m, b: objective.gradients(p, m, b, DENSE))
  ours, theirs = (
    optax.sgd(RATE),
    torch.optim.SGD(model.online.parameters(), lr=RATE),
  )
  for index, concept in enumerate(CONCEPTS):
    batch = test_clip_parity.batch(seed=index)
    batch["concept"] = jnp.asarray(concept)
    there = {name: torch.tensor(np.asarray(x)) for name, x in batch.items()}
    expected = model(
      there["image"].permute(0, 3, 1, 2),
      there["text_ids"].long(),
      there["text_mask"].long(),
      there["concept"].long(),
      alpha=0.4 * min(1, index / 2),
      momentum=0.9,
    )
    theirs.zero_grad()
    expected.backward()
    theirs.step()
    memory, loss, gradient, _ = run(params, memory, batch)
    updates, _ = ours.update(gradient, ours.init(params))
    params = optax.apply_updates(params, updates)
    close(loss, expected.item())
    _, weights = test_clip_parity.tree(model.online.state_dict())
    jax.tree.map(close, params, weights)
    # What is remembered.
    _, twins = test_clip_parity.tree(model.twin.state_dict())
    del twins["logit_scale"]
    jax.tree.map(close, memory["twins"], twins)
    close(memory["image"], model.image_queue.T)
    close(memory["text"], model.text_queue.T)
    np.testing.assert_array_equal(memory["concept"], model.idx_queue)
    assert int(memory["pointer"]) == model.pointer

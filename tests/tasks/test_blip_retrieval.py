"""Three steps of BLIP's retrieval against PyTorch; re-ranked recalls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import comp_jax
from comp_jax import errors
from comp_jax.core.execution import DENSE
from comp_jax.models import blip_retrieval as model_lib
from comp_jax.models import families
from comp_jax.tasks import blip_retrieval, library, momentum, task
from comp_jax.train import step
from tests.models import model_kit as kit

B, QUEUE, RATE = 4, 8, 0.05
OPTIONS = task.Options(queue=QUEUE, momentum=0.9, distill=0.4, ramp=2)
# The second step shows an image of the first again, the third fills the
# queue a second time.
CONCEPTS = np.array([[0, 1, 2, 2], [3, 0, 5, 6], [7, 1, 1, 9]], np.int32)


def _batches():
  rng = np.random.default_rng(5)
  for concept in CONCEPTS:
    ids, mask = kit.texts(rng, B)
    batch = {
      "image": rng.normal(size=(B, 32, 32, 3)).astype(np.float32),
      "text_ids": ids,
      "text_mask": mask,
      "concept": concept,
    }
    yield jax.tree.map(jnp.asarray, batch)


def _objective(spec, options=OPTIONS, **more):
  todo = library.of(spec, options)
  return step.Objective(
    prunable=families.prunable(spec),
    loss=todo.loss,
    memory=todo.memory(spec),
    **more,
  )


def test_three_steps_equal_torchs(tmp_path):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  from tests.interop import torch_nlvr
  from tests.tasks import torch_retrieval

  model = torch_retrieval.BlipRetrieval(
    size=32,
    patch=8,
    vision=(24, 3, 40),
    text=(16, 4, 36),
    vocab=kit.VOCAB,
    length=kit.LENGTH,
    depth=2,
    joint=8,
    queue=QUEUE,
  )
  torch_nlvr.randomised(model, seed=0)
  with torch.no_grad():
    model.temp.fill_(0.2)
  model.start()
  torch.save({"model": model.state_dict()}, tmp_path / "retrieval.pth")
  loaded = comp_jax.load(tmp_path / "retrieval.pth", heads=(3, 4))
  spec, params = loaded.spec, loaded.params
  objective = _objective(spec)
  memory = objective.memory.initial(params, jax.random.key(0))
  run = jax.jit(lambda p, m, b: objective.gradients(p, m, b, DENSE))
  forward = jax.jit(lambda p, b: objective.prunable.forward(p, b, DENSE)[0])
  optimizer = optax.sgd(RATE)
  trained = [p for p in model.parameters() if p.requires_grad]
  theirs = torch.optim.SGD(trained, lr=RATE)
  for index, batch in enumerate(_batches()):
    _, told, _ = objective.memory.recall(params, memory, batch)
    output = forward(params, {**batch, "key": told["key"]})
    similarity = output["image_embedding"] @ output["text_embedding"].T
    others, _ = model_lib.hard_negatives(
      output["logit_scale"] * similarity, batch["concept"], told["key"]
    )
    there = lambda x: torch.tensor(np.asarray(x))  # noqa: E731
    loss = model(
      there(batch["image"]).permute(0, 3, 1, 2),
      there(batch["text_ids"]).long(),
      there(batch["text_mask"]),
      there(batch["concept"]).long(),
      [there(x).long() for x in others],
      alpha=0.4 * min(1, index / 2),
      momentum=0.9,
    )
    theirs.zero_grad()
    loss.backward()
    memory, ours, grads, _ = run(params, memory, batch)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)  # noqa: E731
    close(ours, loss.item())
    layer = model.text_encoder.encoder["layer"][1]
    scanned = grads["text"]["encoder"]["layers"]
    close(
      scanned["cross"]["key"]["kernel"][1].reshape(24, 16),
      layer.crossattention["self"].key.weight.grad.T,
    )
    close(
      scanned["mlp"]["up"]["kernel"][1],
      layer.intermediate["dense"].weight.grad.T,
    )
    close(
      grads["vision"]["encoder"]["layers"]["mlp"]["up"]["kernel"][0],
      model.visual_encoder.blocks[0].mlp["fc1"].weight.grad.T,
    )
    close(grads["text_projection"]["kernel"], model.text_proj.weight.grad.T)
    close(grads["temperature"], model.temp.grad)
    theirs.step()
    updates, _ = optimizer.update(grads, optimizer.init(params))
    params = optax.apply_updates(params, updates)
    # What is remembered.
    close(memory["image"], model.image_queue.T)
    close(memory["text"], model.text_queue.T)
    np.testing.assert_array_equal(memory["concept"], model.idx_queue[0])
    assert int(memory["pointer"]) == int(model.ptr_queue)
    twins = memory["twins"]
    close(twins["vision_projection"]["kernel"], model.vision_proj_m.weight.T)
    close(
      twins["text"]["encoder"]["layers"]["mlp"]["down"]["kernel"][0],
      model.text_encoder_m.encoder["layer"][0].output.dense.weight.T,
    )


def test_microbatches_compare_with_all_that_is_remembered():
  """Parts of a batch see the twins' features of the whole of it."""
  spec = kit.spec(readout="joint")
  params = jax.tree.map(jnp.asarray, kit.params(spec))
  contrast = lambda output, batch, seen: momentum.contrast(output, batch, seen)  # noqa: E731
  batch = next(_batches())
  results = []
  for parts in (1, 2):
    objective = dataclasses.replace(
      _objective(spec, microbatches=parts), loss=contrast
    )
    memory = objective.memory.initial(params, jax.random.key(0))
    results.append(
      jax.jit(
        lambda p, m, b, objective=objective: objective.gradients(
          p, m, b, DENSE
        )[1:3]
      )(params, memory, batch)
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), *results
  )


def test_a_new_phase_keeps_the_queues_and_resets_the_twins():
  spec = kit.spec(readout="joint")
  params = jax.tree.map(jnp.asarray, kit.params(spec))
  memory = momentum.Momentum(spec=spec, options=OPTIONS)
  start = memory.initial(params, jax.random.key(3))
  moved = jax.tree.map(lambda x: x + 1, params)
  after, _, _ = jax.jit(memory.recall)(moved, start, next(_batches()))
  new = memory.renewed(after, moved)
  assert int(after["pointer"]) == B
  # The oldest entries come first: batches of another size may follow.
  for name in ("image", "text", "concept"):
    rolled = np.roll(np.asarray(after[name]), -B, axis=0)
    np.testing.assert_array_equal(new[name], rolled)
  assert np.any(np.asarray(new["image"]))
  assert int(new["step"]) == int(new["pointer"]) == 0
  jax.tree.map(
    np.testing.assert_array_equal, new["twins"], families.twins(spec, moved)
  )


def test_a_pair_without_any_negative_counts_alone():
  """The published code fails there (spec `upop.md` part 6)."""
  logits = jnp.array([[0.0, 2.0], [1.0, 0.0]])
  output = {
    "logits": logits,
    "negative_logits": jnp.full((2, 2, 2), jnp.array([-9.0, 9.0])),
    "has_negative": jnp.array([False, False]),
  }
  expected = -np.mean(np.asarray(jax.nn.log_softmax(logits))[:, 1])
  np.testing.assert_allclose(
    blip_retrieval.match_loss(output), expected, rtol=1e-6
  )


@pytest.mark.parametrize(
  ("queue", "batch", "wanted"), [(0, 4, "use 4"), (10, 4, "use 8 or 12")]
)
def test_a_queue_holds_whole_batches(queue, batch, wanted):
  memory = momentum.Momentum(
    spec=kit.spec(readout="joint"), options=task.Options(queue=queue)
  )
  with pytest.raises(errors.UserError, match=wanted):
    memory.check(batch)


@pytest.mark.parametrize("rerank", [3, 5, 100, 0])
def test_reranked_recalls_follow_a_plain_reading(rerank):
  """Spec `upop.md` part 5: candidates by similarity, then similarity + ITM."""
  rng = np.random.default_rng(8)
  count, captions, size = 21, 2, 4
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
  images = unit(rng.normal(size=(count, 6)).astype(np.float32))
  texts = unit(
    images[:, None] + rng.normal(size=(count, captions, 6)).astype(np.float32)
  )
  itm = rng.normal(size=(count, count * captions)).astype(np.float32)
  # Ids of the fake texts and tokens of the fake images are their numbers.
  numbers = np.arange(count * captions, dtype=np.int32).reshape(count, -1, 1)
  judged = []

  def predict(batch):
    if "tokens" in batch:
      image = batch["tokens"][batch["image_index"]][:, 0, 0].astype(int)
      text = batch["text_ids"][:, 0]
      judged.extend(zip(image, text, strict=True))
      return itm[image, text]
    which = batch["image"]
    return {
      "image": images[which],
      "text": texts[which],
      "tokens": np.asarray(which, np.float32)[:, None, None],
      "valid": np.ones((size, 1), bool),
    }

  def batches():
    for start in range(0, count, size):
      which = np.minimum(np.arange(start, start + size), count - 1)
      yield {
        "image": which,
        "text_ids": numbers[which],
        "text_mask": np.ones((size, captions, 1), bool),
        "concept": which,
        "_mask": np.arange(start, start + size) < count,
      }

  found = library.of(
    kit.spec(readout="joint"), task.Options(rerank=rerank)
  ).evaluate(predict, batches())
  flat = texts.reshape(-1, 6)
  similarity = images @ flat.T
  truth = np.arange(count * captions) // captions
  expected, best = {}, {}
  for name, table, heads, right in (
    ("i2t", similarity, itm, np.arange(count)[:, None] == truth[None]),
    ("t2i", similarity.T, itm.T, truth[:, None] == np.arange(count)[None]),
  ):
    ranks = []
    for row, head, hit in zip(table, heads, right, strict=True):
      scores = row
      if rerank:
        scores = np.full(len(row), -100.0)
        top = np.argsort(-row)[:rerank]
        scores[top] = row[top] + head[top]
      order = np.argsort(-scores, kind="stable")
      places = [list(order).index(i) for i in np.nonzero(hit)[0]]
      # Left at -100: not found.
      reached = [p for p in places if scores[order[p]] > -100]
      ranks.append(min(reached, default=10**6))
    best[name] = np.array(ranks)
    for k in (1, 5, 10):
      expected[f"{name}_r{k}"] = float(np.mean(np.array(ranks) < k))
  assert found.metrics == pytest.approx(expected)
  # The texts of an image are in its row.
  assert found.examples["t2i_rank"].shape == (count, captions)
  for name, ranks in best.items():
    reached = np.minimum(found.examples[f"{name}_rank"].ravel(), 10**6)
    np.testing.assert_array_equal(reached, ranks)
  if rerank == 3:
    # Not every pair was judged, and hardly any of them twice.
    assert len(set(judged)) < count * count * captions / 4
    assert len(judged) < len(set(judged)) + size * 6

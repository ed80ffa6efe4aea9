"""Texts that a decoder writes: beam search over cached keys and values.

Shapes are static, so one compilation serves all batches of a size. Masked,
token-pruned and compact models write alike: what is cached is masked already,
and dropped tokens of the source are not valid.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from comp_jax.core import execution as execution_lib
from comp_jax.models import families, specs

# Below every sum of log-probabilities, and still a number.
_LOWEST = -1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beam:
  """How a text is looked for.

  Attributes:
    width: texts that are followed at once.
    max_length: tokens of a text, the prompt included.
    min_length: tokens before the text may end, the prompt included.
  """

  width: int = 3
  max_length: int = 20
  min_length: int = 0


def write(
  spec: specs.ModelSpec,
  params: Mapping,
  batch: Mapping,
  prompt: Int[Array, "b p"],
  beam: Beam,
  execution: execution_lib.Execution = execution_lib.DENSE,
) -> tuple[Int[Array, "b n"], Float[Array, " b"]]:
  """The best text of each example, and its mean log-probability per token.

  Args:
    spec: a model whose last tower is a decoder.
    params: its weights.
    batch: what the decoder looks at; text of its own is not read.
    prompt: token ids that the texts begin with; the first one is taken for
      the decoder's `bos_id`.
    beam: how to look.
    execution: masks and token policies.

  Returns:
    Ids that begin with the prompt and are 0 after [SEP].
  """
  decoder = getattr(spec, spec.towers[-1])
  module, variables = families.module(spec), {"params": params}
  # Layers under a scan stack what they keep in front of the batch.
  axis = 1 if decoder.encoder.scan else 0
  source = module.apply(variables, batch, execution, method="read")
  n, (b, start) = min(beam.max_length, decoder.max_length), prompt.shape
  ids = jnp.zeros((b, n), jnp.int32).at[:, :start].set(prompt)
  mask = jnp.broadcast_to(jnp.arange(n)[None] < start, (b, n))
  logits, kept = module.apply(
    variables,
    source,
    ids,
    mask,
    execution,
    method="write",
    mutable=["cache", "seen"],
  )
  repeat = functools.partial(jnp.repeat, repeats=beam.width)
  kept = jax.tree.map(lambda x: repeat(x, axis=axis), kept)
  source = jax.tree.map(lambda x: repeat(x, axis=0), source)

  def step(cache, tokens, rows, position):
    """Logits after the next tokens of the texts that go on."""
    cache = jax.tree.map(lambda x: jnp.take(x, rows, axis=axis), cache)
    logits, new = module.apply(
      {**variables, "cache": cache, "seen": kept["seen"]},
      source,
      tokens[:, None],
      jnp.ones((len(tokens), 1), bool),
      execution,
      position,
      method="write",
      mutable=["cache"],
    )
    return logits[:, 0], new["cache"]

  logits = repeat(logits[:, start - 1], axis=0)
  return _search(step, logits, kept["cache"], ids, start, decoder.sep_id, beam)


def _search(step, logits, cache, ids, start: int, sep_id: int, beam: Beam):
  """Beam search; a finished text's score is its mean over what was written.

  It goes on while a text that is followed scores above the worst finished one
  of its example.
  """
  b, n = ids.shape
  k = beam.width
  rows = jnp.arange(b)[:, None]
  texts = jnp.repeat(ids[:, None], k, axis=1)
  first = jnp.full((b, k), _LOWEST).at[:, 0].set(0.0)

  def goes_on(state):
    return (state["position"] < n) & jnp.any(state["open"])

  def body(state):
    position = state["position"]
    log_p = jax.nn.log_softmax(state["logits"], axis=-1)
    ends_early = (position < beam.min_length) & (
      jnp.arange(log_p.shape[-1]) == sep_id
    )
    log_p = jnp.where(ends_early[None], -jnp.inf, log_p)
    total = log_p.reshape(b, k, -1) + state["scores"][..., None]
    # Twice as many as are followed: all of the best may end here.
    scores, flat = jax.lax.top_k(total.reshape(b, -1), 2 * k)
    parents, tokens = jnp.divmod(flat, log_p.shape[-1])
    tokens = tokens.astype(jnp.int32)
    grown = state["texts"][rows, parents].at[:, :, position].set(tokens)
    ends = (tokens == sep_id) | (position + 1 == n)

    ended = ends & (jnp.arange(2 * k) < k)[None] & state["open"][:, None]
    mean = jnp.where(ended, scores / (position + 1 - start), _LOWEST)
    merged = _best(
      k,
      jnp.concatenate([state["finished_scores"], mean], axis=1),
      texts=jnp.concatenate([state["finished"], grown], axis=1),
      finished=jnp.concatenate([state["is_finished"], ended], axis=1),
    )
    running = _best(
      k,
      jnp.where(ends, _LOWEST, scores),
      texts=grown,
      parents=parents,
      tokens=tokens,
    )
    logits, cache = step(
      state["cache"],
      running["tokens"].reshape(-1),
      (rows * k + running["parents"]).reshape(-1),
      position,
    )
    hope = running["scores"][:, 0] / (position + 1 - start)
    worst = jnp.min(merged["scores"], axis=1)
    beaten = jnp.all(merged["finished"], axis=1) & (hope <= worst)
    return {
      "position": position + 1,
      "logits": logits,
      "cache": cache,
      "texts": running["texts"],
      "scores": running["scores"],
      "finished": merged["texts"],
      "finished_scores": merged["scores"],
      "is_finished": merged["finished"],
      "open": state["open"] & ~beaten,
    }

  state = jax.lax.while_loop(
    goes_on,
    body,
    {
      "position": jnp.asarray(start, jnp.int32),
      "logits": logits,
      "cache": cache,
      "texts": texts,
      "scores": first,
      "finished": texts,
      "finished_scores": jnp.full((b, k), _LOWEST),
      "is_finished": jnp.zeros((b, k), bool),
      "open": jnp.ones(b, bool),
    },
  )
  return state["finished"][:, 0], state["finished_scores"][:, 0]


def _best(
  k: int, scores: Float[Array, "b c"], **more: Array
) -> dict[str, Array]:
  """The k best candidates of each example."""
  scores, index = jax.lax.top_k(scores, k)
  rows = jnp.arange(len(scores))[:, None]
  return {"scores": scores} | {key: x[rows, index] for key, x in more.items()}

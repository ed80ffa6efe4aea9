"""NumPy readings of the paper's equations: float64, loops, one sample.

Written from the design, not from `comp_jax`: nothing here imports it. Dropped
tokens and padding really leave the arrays, so that the masked execution is
compared with physical removal.
"""

import math

import numpy as np


def token_scores(attention, pool, gate=None, causal=False):
  """Eq. 6, with `gate` Eq. 7, of one sample: attention [h, n, n], pool [n]."""
  heads, n, _ = attention.shape
  scores = np.zeros(n)
  for i in range(n):
    if not pool[i]:
      continue
    for query in range(n):
      if not pool[query]:
        continue
      best = 0.0
      for h in range(heads):
        vote = attention[h, query, i] * (1.0 if gate is None else gate[h])
        best = max(best, vote)
      scores[i] += best
    if causal:
      scores[i] /= sum(1 for query in range(i, n) if pool[query])
  total = scores.sum()
  return scores / total if total > 0 else scores


def stays(scores, pool, theta):
  """The pool tokens of one sample that a threshold keeps."""
  members = [i for i in range(len(pool)) if pool[i]]
  kept = np.zeros(len(pool), bool)
  if theta <= 0 or scores.sum() == 0:
    kept[members] = True
    return kept
  for i in members:
    kept[i] = scores[i] > theta / len(members)
  if members and not kept.any():
    kept[max(members, key=lambda i: (scores[i], -i))] = True
  return kept


def token_weights(scores, valid, pool, readout, cip):
  """w_n of Eq. 4 (1 for every valid token without CIP), of one sample."""
  weights = np.zeros(len(valid))
  if not cip:
    weights[valid] = 1.0
    return weights
  total = scores[pool].sum()
  for i in range(len(valid)):
    if readout[i] and valid[i]:
      weights[i] = 1.0
    elif pool[i]:
      weights[i] = scores[i] / total if total > 0 else 1.0 / pool.sum()
  return weights


def moment(samples):
  """mean over samples of sum_n w_n X_n^2; samples of (X [n, ...], w [n])."""
  total = 0.0
  for x, w in samples:
    total = total + sum(w[n] * x[n] ** 2 for n in range(len(w)))
  return total / len(samples)


def wanda_rows(kernel, layer_scale, a):
  """Eq. 3 / 4 for each row: mean_j |W_ij * scale_j| * sqrt(a_i)."""
  rows = np.zeros(len(kernel))
  for i in range(len(kernel)):
    mean = np.mean([abs(w * s) for w, s in zip(kernel[i], layer_scale)])  # noqa: B905
    rows[i] = mean * math.sqrt(a[i])
  return rows


def greedy_lowest(score, eligible, macs, indivisible, need):
  """Units taken one by one, lowest score first, until `need` is saved."""
  order = sorted(
    (i for i in range(len(score)) if eligible[i]), key=lambda i: (score[i], i)
  )
  taken, saved, heads_closed = np.zeros(len(score), bool), 0.0, False
  for i in order:
    if saved >= need:
      break
    if indivisible[i]:
      heads_closed = heads_closed or saved + macs[i] > need
      if heads_closed:
        continue
    taken[i] = True
    saved += macs[i]
  return taken


def stage_cost(metric_before, metric_after, macs_before, macs_after):
  """Eq. 8."""
  return (metric_before - metric_after) / (macs_before - macs_after)


def exploration(stage, last, open_, tau):
  """Eq. 9: softmax(I_m / tau) over the open modes."""
  weights = [
    math.exp((stage - t) / tau) if o else 0.0
    for t, o in zip(last, open_)  # noqa: B905
  ]
  return np.array(weights) / sum(weights)


def momentum(interval, lam0, longest):
  """lam of Eq. 10."""
  return max(lam0 - lam0 / longest * (interval - 1), 0.0)


def history(modes, executions, lam0, longest, min_delta):
  """Costs R after a list of (mode, cost, delta macs), one per stage (Eq. 10).

  Starts without costs; a mode whose MACs did not fall learns nothing.
  """
  cost, last = [None] * modes, [0] * modes
  for stage, (mode, value, delta) in enumerate(executions, start=1):
    if delta >= min_delta:
      if cost[mode] is None:
        cost[mode] = value
      else:
        lam = momentum(stage - last[mode], lam0, longest)
        cost[mode] = lam * cost[mode] + (1 - lam) * value
    last[mode] = stage
  return [c or 0.0 for c in cost], last, [t > 0 for t in last]


def _layer_norm(x, p, eps):
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + eps) * p["scale"] + p["bias"]


def _gelu(x):
  erf = np.vectorize(math.erf)
  return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def encode(
  layers,
  x,
  protected,
  readout,
  *,
  masks,
  theta,
  gate,
  merge,
  norm_first,
  eps,
  scale_width,
):
  """One sample through an encoder that removes what it drops.

  Args:
    layers: parameters, one nested dict per layer.
    x: [n, d], valid tokens only.
    protected: [n].
    readout: [n].
    masks: {"attn": [l, h], "mlp": [l, m]}, soft or hard.
    theta: threshold.
    gate: CIT.
    merge: whether the dropped tokens become one.
    norm_first: pre-norm, else post-norm.
    eps: of the LayerNorms.
    scale_width: the attention is scaled by its square root.

  Returns:
    The last tokens, their positions, and one dict per layer: `positions`
    entering, `left` after the drop (indices into `positions`), `scores`,
    `attended` [n, h, e], `hidden` [k, m], `pool`, `readout`.
  """
  positions, trace = np.arange(len(x)), []
  for l, p in enumerate(layers):  # noqa: E741
    heads, neurons = masks["attn"][l], masks["mlp"][l]
    y = _layer_norm(x, p["norm1"], eps) if norm_first else x
    q, k, v = (
      (
        np.einsum("nd,dhe->nhe", y, p["attention"][name]["kernel"])
        + p["attention"][name]["bias"]
      )
      * heads[:, None]
      for name in ("query", "key", "value")
    )
    logits = np.einsum("qhe,khe->hqk", q, k) / math.sqrt(scale_width)
    attention = np.exp(logits - logits.max(-1, keepdims=True))
    attention /= attention.sum(-1, keepdims=True)
    attended = np.einsum("hqk,khe->qhe", attention, v)
    update = (
      np.einsum("qhe,hed->qd", attended, p["attention"]["out"]["kernel"])
      + p["attention"]["out"]["bias"]
    )
    x = x + update * p.get("layer_scale1", 1.0)
    if not norm_first:
      x = _layer_norm(x, p["norm1"], eps)

    pool = ~protected
    scores = token_scores(attention, pool, heads if gate else heads > 0)
    kept = stays(scores, pool, theta)
    if merge:
      dropped = [i for i in range(len(x)) if pool[i] and not kept[i]]
      if dropped:
        slot = max(dropped, key=lambda i: (scores[i], -i))
        share = scores[dropped] / scores[dropped].sum()
        x[slot] = share @ x[dropped]
        kept[slot] = True
    left = np.flatnonzero(kept | protected)
    step = {
      "positions": positions,
      "left": left,
      "scores": scores,
      "attention": attention,
      "attended": attended,
      "pool": pool,
      "readout": readout,
    }
    x, positions = x[left], positions[left]
    protected, readout = protected[left], readout[left]

    y = _layer_norm(x, p["norm2"], eps) if norm_first else x
    hidden = _gelu(
      (y @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"]) * neurons
    )
    update = hidden @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"]
    x = x + update * p.get("layer_scale2", 1.0)
    if not norm_first:
      x = _layer_norm(x, p["norm2"], eps)
    trace.append({**step, "hidden": hidden})
  return x, positions, trace


def encoder_moments(traces, cip):
  """a of Eq. 4 per layer, {"attn": [l][h, e], "mlp": [l][m]}.

  Attention is weighed by its own layer's scores, the MLP of layer l by those
  of layer l+1, the last MLP by its own.

  Args:
    traces: the traces of `encode`, one per sample.
    cip: whether tokens are weighed.
  """
  depth = len(traces[0])
  result = {"attn": [], "mlp": []}
  for l in range(depth):  # noqa: E741
    attention, mlp = [], []
    for trace in traces:
      step = trace[l]
      attention.append((step["attended"], _weights(step, cip)))
      if l + 1 < depth:
        weights = _weights(trace[l + 1], cip)
      else:
        left = step["left"]
        own = {k: step[k][left] for k in ("scores", "pool", "readout")}
        weights = _weights(own, cip)
      mlp.append((step["hidden"], weights))
    result["attn"].append(moment(attention))
    result["mlp"].append(moment(mlp))
  return result


def _weights(step, cip):
  everyone = np.ones(len(step["pool"]), bool)
  return token_weights(
    step["scores"], everyone, step["pool"], step["readout"], cip
  )


def dominance(hidden, magnitude, valid):
  """What each token accounts for of Eq. 3: hidden [b, n, i], valid [b, n]."""
  b, n, rows = hidden.shape
  shares = np.zeros((b, n))
  for i in range(rows):
    parts = np.where(valid, hidden[..., i] ** 2, 0.0)
    whole = parts.sum()
    if whole > 0:
      score = magnitude[i] * math.sqrt(whole / b)
      # The mean over samples of the shares is the score.
      shares += score * b * parts / whole
  return shares


def overlap(first, second, pool, share):
  """Common part of the best tokens of one sample, and by chance."""
  members = [i for i in range(len(pool)) if pool[i]]
  count = math.ceil(share * len(members) - 1e-9)

  def best(scores):
    return set(sorted(members, key=lambda i: (-scores[i], i))[:count])

  return len(best(first) & best(second)) / count, count / len(members)


def rank_distortion(before, after):
  """1 - Spearman's correlation of two lists; equal values share a rank."""

  def ranks(x):
    return [
      np.mean([k for k, y in enumerate(sorted(x)) if y == value]) for value in x
    ]

  if len(before) < 2:
    return 0.0
  if len(set(before)) == 1 or len(set(after)) == 1:
    return 1.0
  return 1.0 - np.corrcoef(ranks(before), ranks(after))[0, 1]

"""A small PyTorch reading of BLIP for NLVR2, written from spec `upop.md` 3.4.

Modules are named so that the state dict has the authors' keys. Only what the
tests need: evaluation mode, no dropout, all images of one size.
"""

import math

import torch
from torch import nn
from torch.nn import functional


class VitBlock(nn.Module):
  def __init__(self, width, heads, neurons):
    super().__init__()
    self.heads = heads
    self.norm1 = nn.LayerNorm(width, eps=1e-6)
    self.attn = nn.ModuleDict(
      {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
    )
    self.norm2 = nn.LayerNorm(width, eps=1e-6)
    self.mlp = nn.ModuleDict(
      {"fc1": nn.Linear(width, neurons), "fc2": nn.Linear(neurons, width)}
    )

  def forward(self, x):
    b, n, d = x.shape
    qkv = self.attn["qkv"](self.norm1(x))
    q, k, v = qkv.reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    a = (q @ k.transpose(-1, -2) / math.sqrt(d // self.heads)).softmax(-1)
    x = x + self.attn["proj"]((a @ v).transpose(1, 2).reshape(b, n, d))
    hidden = functional.gelu(self.mlp["fc1"](self.norm2(x)))
    return x + self.mlp["fc2"](hidden)


class Vit(nn.Module):
  def __init__(self, size, patch, width, depth, heads, neurons):
    super().__init__()
    tokens = (size // patch) ** 2 + 1
    self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
    self.patch_embed = nn.ModuleDict(
      {"proj": nn.Conv2d(3, width, patch, stride=patch)}
    )
    self.blocks = nn.ModuleList(
      VitBlock(width, heads, neurons) for _ in range(depth)
    )
    self.norm = nn.LayerNorm(width, eps=1e-6)

  def forward(self, images):
    x = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
    x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
    x = x + self.pos_embed
    for block in self.blocks:
      x = block(x)
    return self.norm(x)


class Projections(nn.Module):
  """Query, key and value of BERT."""

  def __init__(self, width, source):
    super().__init__()
    self.query = nn.Linear(width, width)
    self.key = nn.Linear(source, width)
    self.value = nn.Linear(source, width)

  def attend(self, x, read, heads, mask):
    split = lambda y: y.reshape(*y.shape[:2], heads, -1).transpose(1, 2)  # noqa: E731
    q, k = split(self.query(x)), split(self.key(read))
    v = split(self.value(read))
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
      logits = logits + (1.0 - mask[:, None, None].float()) * -10000.0
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Output(nn.Module):
  def __init__(self, width, inputs=None):
    super().__init__()
    self.dense = nn.Linear(inputs or width, width)
    self.LayerNorm = nn.LayerNorm(width, eps=1e-12)


class CrossOutput(nn.Module):
  def __init__(self, width, merges):
    super().__init__()
    self.dense0 = nn.Linear(width, width)
    self.dense1 = nn.Linear(width, width)
    if merges:
      self.merge_layer = nn.Linear(2 * width, width)
    self.LayerNorm = nn.LayerNorm(width, eps=1e-12)


class BertLayer(nn.Module):
  def __init__(self, width, source, heads, neurons, merges):
    super().__init__()
    self.heads, self.merges = heads, merges
    self.attention = nn.ModuleDict(
      {"self": Projections(width, width), "output": Output(width)}
    )
    self.crossattention = nn.ModuleDict(
      {
        "self0": Projections(width, source),
        "self1": Projections(width, source),
        "output": CrossOutput(width, merges),
      }
    )
    self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, neurons)})
    self.output = Output(width, neurons)

  def forward(self, x, mask, images):
    out = self.attention["output"]
    attended = self.attention["self"].attend(x, x, self.heads, mask)
    x = out.LayerNorm(out.dense(attended) + x)
    out, cross = self.crossattention["output"], self.crossattention
    first = cross["self0"].attend(x, images[0], self.heads, None)
    second = cross["self1"].attend(x, images[1], self.heads, None)
    first, second = out.dense0(first), out.dense1(second)
    if self.merges:
      joined = out.merge_layer(torch.cat([first, second], dim=-1))
    else:
      joined = (first + second) / 2
    x = out.LayerNorm(joined + x)
    hidden = functional.gelu(self.intermediate["dense"](x))
    return self.output.LayerNorm(self.output.dense(hidden) + x)


class Text(nn.Module):
  def __init__(self, vocab, length, width, source, depth, heads, neurons):
    super().__init__()
    self.embeddings = nn.ModuleDict(
      {
        "word_embeddings": nn.Embedding(vocab, width),
        "position_embeddings": nn.Embedding(length, width),
        "LayerNorm": nn.LayerNorm(width, eps=1e-12),
      }
    )
    self.encoder = nn.ModuleDict(
      {
        "layer": nn.ModuleList(
          BertLayer(width, source, heads, neurons, i >= depth // 2)
          for i in range(depth)
        )
      }
    )

  def forward(self, ids, mask, images):
    x = self.embeddings["word_embeddings"](ids)
    x = x + self.embeddings["position_embeddings"].weight[None, : ids.shape[1]]
    x = self.embeddings["LayerNorm"](x)
    states = []
    for layer in self.encoder["layer"]:
      x = layer(x, mask, images)
      states.append(x)
    return x, states


class BlipNlvr(nn.Module):
  """Images as PyTorch has them: all first ones, then all second ones.

  `vision` and `text` are width, heads and neurons; `depth` is of both.
  """

  def __init__(self, *, size, patch, vision, text, vocab, length, depth):
    super().__init__()
    self.visual_encoder = Vit(size, patch, vision[0], depth[0], *vision[1:])
    self.text_encoder = Text(
      vocab, length, text[0], vision[0], depth[1], *text[1:]
    )
    self.cls_head = nn.Sequential(
      nn.Linear(text[0], text[0]), nn.ReLU(), nn.Linear(text[0], 2)
    )

  def forward(self, images, ids, mask):
    tokens = self.visual_encoder(images)
    first, second = tokens.split(len(ids))
    x, states = self.text_encoder(ids, mask, (first, second))
    return self.cls_head(x[:, 0]), states


def randomised(model: nn.Module, seed: int) -> nn.Module:
  """The model with every parameter random: no bias or norm is trivial."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, value in model.named_parameters():
      noise = 0.2 * torch.randn(value.shape, generator=generator)
      norm = "norm" in name.lower() and name.endswith("weight")
      value.copy_(1 + noise if norm else noise)
  return model.eval()

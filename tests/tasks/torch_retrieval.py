"""A small PyTorch reading of BLIP's retrieval, from spec `upop.md` 3.7.

Modules are named so that the state dict has the authors' keys. The negatives
are given, not drawn: random numbers are not the same in PyTorch.
"""

import copy

import torch
from torch import nn
from torch.nn import functional

from tests.interop import torch_nlvr


class Layer(nn.Module):
  def __init__(self, width, source, heads, neurons):
    super().__init__()
    self.heads = heads
    projections, output = torch_nlvr.Projections, torch_nlvr.Output
    self.attention = nn.ModuleDict(
      {"self": projections(width, width), "output": output(width)}
    )
    self.crossattention = nn.ModuleDict(
      {"self": projections(width, source), "output": output(width)}
    )
    self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, neurons)})
    self.output = output(width, neurons)

  def forward(self, x, mask, images):
    for block, read, seen in (
      (self.attention, x, mask),
      (self.crossattention, images, None),
    ):
      if read is not None:
        update = block["self"].attend(x, read, self.heads, seen)
        out = block["output"]
        x = out.LayerNorm(out.dense(update) + x)
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
    layers = [Layer(width, source, heads, neurons) for _ in range(depth)]
    self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

  def forward(self, ids, mask, images=None):
    x = self.embeddings["word_embeddings"](ids)
    x = x + self.embeddings["position_embeddings"].weight[None, : ids.shape[1]]
    x = self.embeddings["LayerNorm"](x)
    for layer in self.encoder["layer"]:
      x = layer(x, mask, images)
    return x[:, 0]


class BlipRetrieval(nn.Module):
  """The training forward: twins, queues, contrast and matching."""

  TWINS = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")

  def __init__(
    self, *, size, patch, vision, text, vocab, length, depth, joint, queue
  ):
    super().__init__()
    self.visual_encoder = torch_nlvr.Vit(
      size, patch, vision[0], depth, *vision[1:]
    )
    self.text_encoder = Text(
      vocab, length, text[0], vision[0], depth, *text[1:]
    )
    self.vision_proj = nn.Linear(vision[0], joint)
    self.text_proj = nn.Linear(text[0], joint)
    self.itm_head = nn.Linear(text[0], 2)
    self.temp = nn.Parameter(torch.tensor(0.2))
    self.register_buffer("image_queue", torch.zeros(joint, queue))
    self.register_buffer("text_queue", torch.zeros(joint, queue))
    self.register_buffer("idx_queue", torch.full((1, queue), -100))
    self.register_buffer("ptr_queue", torch.zeros(1, dtype=torch.long))

  def start(self):
    """Adds the twins, equal to the weights."""
    for name in self.TWINS:
      twin = copy.deepcopy(getattr(self, name)).requires_grad_(False)
      setattr(self, f"{name}_m", twin)

  def forward(self, images, ids, mask, idx, others, alpha, momentum):
    unit = lambda x: functional.normalize(x, dim=-1)  # noqa: E731
    with torch.no_grad():
      self.temp.clamp_(0.001, 0.5)
      for name in self.TWINS:
        pairs = zip(
          getattr(self, f"{name}_m").parameters(),
          getattr(self, name).parameters(),
          strict=True,
        )
        for twin, weight in pairs:
          twin.copy_(twin * momentum + weight * (1 - momentum))
    tokens = self.visual_encoder(images)
    image = unit(self.vision_proj(tokens[:, 0]))
    text = unit(self.text_proj(self.text_encoder(ids, mask)))
    with torch.no_grad():
      image_m = unit(self.vision_proj_m(self.visual_encoder_m(images)[:, 0]))
      text_m = unit(self.text_proj_m(self.text_encoder_m(ids, mask)))
      all_images = torch.cat([image_m.T, self.image_queue], dim=1)
      all_texts = torch.cat([text_m.T, self.text_queue], dim=1)
      same = (idx[:, None] == torch.cat([idx, self.idx_queue[0]])[None]).float()
      hard = same / same.sum(1, keepdim=True)
      soft = lambda x: (x / self.temp).softmax(1)  # noqa: E731
      to_text = alpha * soft(image_m @ all_texts) + (1 - alpha) * hard
      to_image = alpha * soft(text_m @ all_images) + (1 - alpha) * hard
    found = lambda x: (x / self.temp).log_softmax(1)  # noqa: E731
    contrast = -(found(image @ all_texts) * to_text).sum(1).mean()
    contrast = contrast - (found(text @ all_images) * to_image).sum(1).mean()
    with torch.no_grad():
      pointer, b = int(self.ptr_queue), len(idx)
      self.image_queue[:, pointer : pointer + b] = image_m.T
      self.text_queue[:, pointer : pointer + b] = text_m.T
      self.idx_queue[0, pointer : pointer + b] = idx
      self.ptr_queue[0] = (pointer + b) % self.image_queue.shape[1]
    read = lambda seen, which: self.itm_head(  # noqa: E731
      self.text_encoder(ids[which], mask[which], seen)
    )
    own = torch.arange(b)
    logits = torch.cat(
      [read(tokens, own), read(tokens[others[0]], own), read(tokens, others[1])]
    )
    labels = torch.cat([torch.ones(b), torch.zeros(2 * b)]).long()
    return contrast / 2 + functional.cross_entropy(logits, labels)

"""A small PyTorch reading of CLIP's retrieval, from spec `upop.md` 3.8.

The towers are transformers'. Where the published code enqueues the online
features and ends the text twin in the online last norm, the twin has all
parts of its own here, and its features are enqueued: what
`docs/paper_vs_code.md` says of momentum twins.
"""

import copy

import torch
from torch import nn
from torch.nn import functional


class ClipRetrieval(nn.Module):
  """The training forward: a twin, queues and contrast."""

  def __init__(self, model, queue):
    super().__init__()
    joint = model.config.projection_dim
    self.online = model
    self.twin = copy.deepcopy(model).requires_grad_(False)
    self.register_buffer("image_queue", torch.zeros(joint, queue))
    self.register_buffer("text_queue", torch.zeros(joint, queue))
    self.register_buffer("idx_queue", torch.full((queue,), -100))
    self.pointer = 0

  def forward(self, images, ids, mask, idx, alpha, momentum):
    def features(model):
      seen = model.vision_model(pixel_values=images).pooler_output
      read = model.text_model(input_ids=ids, attention_mask=mask).pooler_output
      projected = model.visual_projection(seen), model.text_projection(read)
      return (functional.normalize(x, dim=-1) for x in projected)

    with torch.no_grad():
      self.online.logit_scale.clamp_(0, 4.6052)
      for old, new in zip(
        self.twin.parameters(), self.online.parameters(), strict=True
      ):
        old.copy_(old * momentum + new * (1 - momentum))
      image_m, text_m = features(self.twin)
    image, text = features(self.online)
    scale = self.online.logit_scale.exp()
    with torch.no_grad():
      all_images = torch.cat([image_m.T, self.image_queue], dim=1)
      all_texts = torch.cat([text_m.T, self.text_queue], dim=1)
      same = (idx[:, None] == torch.cat([idx, self.idx_queue])[None]).float()
      hard = same / same.sum(1, keepdim=True)
      soft = lambda x: (scale * x).softmax(1)  # noqa: E731
      to_text = alpha * soft(image_m @ all_texts) + (1 - alpha) * hard
      to_image = alpha * soft(text_m @ all_images) + (1 - alpha) * hard
    found = lambda x: (scale * x).log_softmax(1)  # noqa: E731
    loss = -(found(image @ all_texts) * to_text).sum(1).mean()
    loss = loss - (found(text @ all_images) * to_image).sum(1).mean()
    with torch.no_grad():
      filled = slice(self.pointer, self.pointer + len(idx))
      self.image_queue[:, filled] = image_m.T
      self.text_queue[:, filled] = text_m.T
      self.idx_queue[filled] = idx
      self.pointer = filled.stop % len(self.idx_queue)
    return loss / 2

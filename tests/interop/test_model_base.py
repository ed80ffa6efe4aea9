"""A pretrained BLIP (`model_base.pth`) as a start for each task."""

import jax
import numpy as np
import pytest

from comp_jax import errors
from comp_jax.interop import load
from tests.interop import test_blip_decoders as decoders

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


def _pretrained(model):
  """What the authors' pretraining registers (blip_pretrain.py), no less."""
  arrays = decoders.authors(model)
  rng = np.random.default_rng(5)
  normal = lambda *shape: torch.tensor(rng.normal(size=shape))  # noqa: E731
  heads = {"vision_proj": 8, "text_proj": 8, "itm_head": 2}
  for name, width in heads.items():
    twins = (name,) if name == "itm_head" else (name, f"{name}_m")
    for each in twins:
      arrays[f"{each}.weight"] = normal(width, 24).float()
      arrays[f"{each}.bias"] = normal(width).float()
  arrays["temp"] = torch.tensor(0.05)
  del arrays["idx_queue"], arrays["ptr_queue"]
  arrays["queue_ptr"] = torch.zeros(1, dtype=torch.long)
  for prefix in ("text_encoder.", "text_encoder_m.", "text_decoder.bert."):
    arrays[f"{prefix}embeddings.position_ids"] = torch.arange(12)[None]
  assert {name.split(".")[0] for name in arrays} == {
    *("visual_encoder", "text_encoder", "text_decoder"),
    *("visual_encoder_m", "text_encoder_m", "vision_proj_m", "text_proj_m"),
    *("vision_proj", "text_proj", "itm_head", "temp"),
    *("image_queue", "text_queue", "queue_ptr"),
  }
  return arrays


def test_a_pretrained_blip_is_a_start_for_each_of_its_parts(tmp_path):
  """Whose numbers are those of a checkpoint that has the part alone."""
  arrays, path = _pretrained(decoders.build("vqa")), tmp_path / "model_base.pth"
  torch.save({"model": arrays}, path)
  parts = {
    "retrieval": ["text_encoder.", "vision_proj.", "text_proj.", "itm_head."],
    "matching": ["text_encoder.", "itm_head."],
    "nlvr": ["text_encoder.", "itm_head."],
    "caption": ["text_decoder."],
    "vqa": ["text_encoder.", "text_decoder."],
  }
  for task, names in parts.items():
    loaded = load.load(path, task, heads=(3, 4))
    assert loaded.spec.family == task
    names = ("visual_encoder.", *names, *["temp"] * (task == "retrieval"))
    alone = {k: v for k, v in arrays.items() if k.startswith(names)}
    torch.save({"model": alone}, tmp_path / "part.pth")
    part = load.load(tmp_path / "part.pth", task, heads=(3, 4))
    assert loaded.spec == part.spec
    jax.tree.map(np.testing.assert_array_equal, loaded.params, part.params)
  with pytest.raises(errors.UserError, match="name the task .*, caption, vqa"):
    load.load(path, heads=(3, 4))
  # A decoder that looked at images of another width than the questions'.
  for name in [n for n in arrays if "crossattention.self" in n]:
    if name.startswith("text_decoder.") and name.endswith(
      ("key.weight", "value.weight")
    ):
      arrays[name] = torch.zeros(24, 32)
  torch.save({"model": arrays}, path)
  with pytest.raises(errors.UserError, match="answer reads .* 32, .* have 24"):
    load.load(path, "vqa", heads=(3, 4))

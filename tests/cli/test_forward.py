"""`python -m comp_jax forward` on published checkpoints, against PyTorch."""

import numpy as np
import pytest

from comp_jax.cli import verbs
from tests.models import model_kit as kit

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from tests.interop import test_blip_decoders as decoders  # noqa: E402
from tests.interop import test_blip_nlvr, test_clip, torch_nlvr  # noqa: E402


def _forward(folder, model, inputs, *options):
  """The arrays that the command writes."""
  np.savez(folder / "in.npz", **inputs)
  arguments = ["--model", str(model), "--inputs", str(folder / "in.npz")]
  arguments += ["--out", str(folder / "out.npz"), *options]
  assert verbs.main(["forward", *arguments]) == 0
  return dict(np.load(folder / "out.npz"))


def _close(ours, theirs, atol=1e-4):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def test_pairs_of_images_come_and_go_as_pytorch_has_them(tmp_path):
  model = torch_nlvr.BlipNlvr(**test_blip_nlvr.SIZES)
  model = torch_nlvr.randomised(model, seed=0)
  torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
  rng = np.random.default_rng(0)
  ids, mask = kit.texts(rng, 3)
  # All first images, then all second ones.
  images = rng.normal(size=(6, 3, 32, 32)).astype(np.float32)
  found = _forward(
    tmp_path,
    tmp_path / "model.pth",
    {"images": images, "input_ids": ids, "attention_mask": mask},
    *("--task", "nlvr", "--heads", "3", "4", "--aux"),
  )
  with torch.no_grad():
    logits, states = model(
      torch.tensor(images), torch.tensor(ids).long(), torch.tensor(mask)
    )
    seen = model.visual_encoder.norm(torch.tensor(found["vision/hidden_2"]))
    _close(seen, model.visual_encoder(torch.tensor(images)))
  _close(found["logits"], logits)
  for index, expected in enumerate(states):
    _close(found[f"text/hidden_{index}"][mask], expected.numpy()[mask], 1e-5)
  assert found["vision/counts"].shape == (6, 4)
  assert found["vision/scores_0"].shape == (6, 17)


@pytest.mark.parametrize("task", ["caption", "vqa"])
def test_a_decoder_begins_as_its_pytorch_does(task, tmp_path, capsys):
  """transformers takes the token that is given, the authors put [DEC]."""
  model, batch = decoders.build(task), decoders.batch_of(task)
  name = "text" if task == "caption" else "answer"
  given = {**batch, f"{name}_ids": batch[f"{name}_ids"].copy()}
  given[f"{name}_ids"][..., 0] = 7
  inputs = {
    "images": batch["image"].transpose(0, 3, 1, 2),
    "input_ids": given["text_ids"],
    "attention_mask": batch["text_mask"],
  }
  if task == "vqa":  # One answer to each question.
    for each in (given, batch):
      each |= {key: each[key][:, :1] for key in ("answer_ids", "answer_mask")}
    inputs["decoder_input_ids"] = given["answer_ids"][:, 0]
    inputs["decoder_attention_mask"] = given["answer_mask"][:, 0]
  real = np.reshape(batch[f"{name}_mask"], (3, -1))

  def check(checkpoint, expected, *options):
    found = _forward(tmp_path, checkpoint, inputs, *options)["logits"]
    with torch.no_grad():
      logits, _ = decoders._decoded(model, task, expected)
    _close(found[real], logits.numpy().reshape(found.shape)[real])

  model.save_pretrained(tmp_path / "published")
  check(tmp_path / "published", given)
  shown = capsys.readouterr().out
  assert "taken for" not in shown
  # What `decoders._decoded` had to work around.
  assert ("questions have padding" in shown) == (task == "vqa")
  folder = tmp_path / "converted"
  options = ["--source", str(tmp_path / "published"), "--to", str(folder)]
  assert verbs.main(["convert", *options]) == 0
  check(folder, given)
  assert ("have padding" in capsys.readouterr().out) == (task == "vqa")
  torch.save({"model": decoders.authors(model)}, tmp_path / "model.pth")
  check(tmp_path / "model.pth", batch, "--heads", "3", "4")
  shown = capsys.readouterr().out
  assert f"begin with {decoders.BOS}" in shown and "padding" not in shown
  whole = inputs | {"attention_mask": np.ones_like(batch["text_mask"])}
  _forward(tmp_path, tmp_path / "published", whole)
  assert "padding" not in capsys.readouterr().out


def test_a_model_that_is_named_wrongly_is_one_line(tmp_path, capsys):
  model = torch_nlvr.BlipNlvr(**test_blip_nlvr.SIZES)
  file, folder = tmp_path / "model.pth", tmp_path / "ours"
  torch.save({"model": model.state_dict()}, file)
  heads = ["--heads", "3", "4"]
  convert = ["convert", "--to", str(folder), "--source"]
  assert verbs.main([*convert, str(file), *heads]) == 0
  capsys.readouterr()
  for source, options, message in (
    (file, [], "0 heads in visual_encoder.blocks.0; give their number"),
    (file, ["--heads", "5"], "24 channels in visual_encoder.blocks.0.attn.pro"),
    (file, ["--heads", "-3"], "-3 heads"),
    (file, ["--heads", "3", "4", "5"], "one number, or one of the vision"),
    (file, [*heads, "--image_size", "36"], "must be a multiple of 8"),
    (file, [*heads, "--image_size", "0"], "must be a multiple of 8"),
    (file, [*heads, "--task", "vqa"], "a BLIP for nlvr, not one that does vqa"),
    (folder, ["--task", "vqa"], "a model for nlvr, not for vqa"),
    (folder, heads, "stand in its spec.json"),
    (folder, ["--image_size", "64"], "was made for 32 pixels"),
  ):
    for verb in (convert, ["inspect", "cost", "--model"]):
      assert verbs.main([*verb, str(source), *options]) == 2
      error = capsys.readouterr().err
      assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("layout", ["hugging_face", "legacy", "openai"])
def test_a_clip_without_a_mask_reads_out_the_end_of_text(
  layout, tmp_path, capsys
):
  """transformers knows it by its id, older configs and OpenAI as the highest.

  A missing mask of all tokens would read out the padding.
  """
  model = test_clip.model.__wrapped__()
  images, ids, mask = test_clip.inputs.__wrapped__()
  ids = np.where(mask, ids, 3)  # What pads may be any token.
  ids[0, 1:3] = test_clip.EOT, test_clip.EOT - 1  # It is the first that counts.
  source, options = tmp_path / "published", []
  if layout == "openai":
    source, options = tmp_path / "model.pth", ["--heads", "3", "4"]
    arrays = test_clip._openai(model).items()
    torch.save({k: torch.tensor(np.asarray(v)) for k, v in arrays}, source)
  else:
    if layout == "legacy":
      model.config.text_config.eos_token_id = 2
      model.text_model.eos_token_id = 2
      ids[:, 0] = 2
    model.save_pretrained(source)
  inputs = {"images": images.transpose(0, 3, 1, 2), "input_ids": ids}
  folder = tmp_path / "converted"
  arguments = ["--source", str(source), "--to", str(folder), *options]
  assert verbs.main(["convert", *arguments]) == 0
  expected = test_clip._expected(model, (images, ids, np.ones_like(mask)))
  for path, given in ((source, options), (folder, [])):
    found = _forward(tmp_path, path, inputs, *given)
    _close(found["logits"], expected)
  if layout == "hugging_face":
    capsys.readouterr()
    np.savez(tmp_path / "in.npz", **inputs | {"input_ids": ids % test_clip.EOT})
    arguments = ["--inputs", str(tmp_path / "in.npz"), "--out", "x.npz"]
    assert verbs.main(["forward", "--model", str(folder), *arguments]) == 2
    assert "without the model's end of text, 39" in capsys.readouterr().err

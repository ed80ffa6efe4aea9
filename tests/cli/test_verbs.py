"""`python -m comp_jax`: convert, forward and inspect."""

import json
import pathlib

import numpy as np
import pytest

import comp_jax
from comp_jax.cli import verbs
from comp_jax.interop import store
from comp_jax.models import families
from tests.models import model_kit as kit


@pytest.fixture(scope="module", params=["end", "cross", "joint", "vqa"])
def model(request, tmp_path_factory):
  """A saved model of either family, and arrays as PyTorch has them."""
  folder = tmp_path_factory.mktemp(request.param)
  spec = kit.spec(readout=request.param)
  store.save(
    folder / "model",
    params=kit.params(spec),
    spec=spec,
    policies={},
    tokenizer_json="{}",
    recipe={"name": "random"},
  )
  # The first answers: a second one is missing.
  answers = {name: array[:, :1] for name, array in kit.answers().items()}
  batch = {**kit.batch(), **answers}
  np.savez(
    folder / "in.npz",
    decoder_input_ids=batch["answer_ids"][:, 0],
    decoder_attention_mask=batch["answer_mask"][:, 0],
    images=batch["image"].transpose(0, 3, 1, 2),
    input_ids=batch["text_ids"].astype(np.int64),
    attention_mask=batch["text_mask"].astype(np.int64),
    stranger=np.zeros(3),
  )
  return folder, spec, batch


def test_forward_writes_what_the_model_says(model):
  folder, spec, batch = model
  out = folder / "out.npz"
  arguments = ["--model", str(folder / "model"), "--inputs"]
  arguments += [str(folder / "in.npz"), "--out", str(out), "--aux"]
  assert verbs.main(["forward", *arguments]) == 0
  arrays = dict(np.load(out))
  expected, aux = kit.apply(spec, kit.params(spec), batch)
  for name, value in expected.items():
    value = value[:, 0] if spec.family == "vqa" else value
    np.testing.assert_allclose(arrays[name], value, rtol=0, atol=1e-5)
  shape = {"two_tower": (3, 3), "vqa": (3, 6, kit.VOCAB)}
  assert arrays["logits"].shape == shape.get(spec.family, (3, 2))
  for tower in ("vision", "text"):
    width = getattr(spec, tower).encoder.width
    tokens = aux[tower]["scores"].shape[-1]
    for layer in range(2):
      assert arrays[f"{tower}/hidden_{layer}"].shape == (3, tokens, width)
      np.testing.assert_allclose(
        arrays[f"{tower}/scores_{layer}"],
        aux[tower]["scores"][layer],
        rtol=0,
        atol=1e-5,
      )


def test_convert_writes_a_folder_that_loads(model, capsys):
  folder, spec, _ = model
  arguments = ["--source", str(folder / "model"), "--to", str(folder / "copy")]
  assert verbs.main(["convert", *arguments]) == 0
  assert comp_jax.load(folder / "copy").spec == spec
  assert spec.family in capsys.readouterr().out


def test_inspect_cost_adds_up(model, capsys):
  folder, spec, _ = model
  arguments = ["--model", str(folder / "model"), "--text_tokens", "7"]
  assert verbs.main(["inspect", "cost", *arguments]) == 0
  shown = capsys.readouterr().out
  counts = {
    "vision": np.full((1, 3), 17),
    "text": np.full((spec.readings, 3), 7),
    "answer": np.full((1, 3), 5),
  }
  total = families.macs(spec, None, counts)
  assert f"{total / 1e9:.4f} G" in shown
  assert f"{families.params_count(spec):,}" in shown


def test_inspect_cost_refuses_what_a_preset_has_of_its_own(capsys):
  for option in (["--task", "nlvr"], ["--heads", "3"]):
    command = ["inspect", "cost", "--model", "blip_vqa", *option]
    assert verbs.main(command) == 2
    assert f"error: {option[0]} says how" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("model", "figures"),
  [
    ("clip_l14_336", ("197.7619 G", "395.7007 G", "855,888,385")),
    ("blip_retrieval", ("70.5739 G", "153.2425 G", "447,486,979")),
    ("blip_caption", ("65.7196 G", "223,971,644", "legacy, the published")),
    ("blip_nlvr", ("132.5407 G", "259,372,034", "convention: the same")),
    ("blip_vqa", ("107.3026 G", "186.1213 G", "361,478,972")),
  ],
)
def test_inspect_knows_the_published_costs(capsys, model, figures):
  """Spec `upop.md` part 4: the legacy figures and the twins' parameters."""
  assert verbs.main(["inspect", "cost", "--model", model]) == 0
  shown = " ".join(capsys.readouterr().out.split())
  assert all(figure in shown for figure in figures)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"images": np.zeros((2, 32, 32, 3))}, "wanted [b, 3, h, w]"),
    ({"images": np.zeros((2, 3, 16, 16))}, "the model wants 32 x 32"),
    ({"images": np.zeros((3, 3, 32, 32), int)}, "images are int64"),
    ({"input_ids": np.full((3, 12), kit.VOCAB)}, "the model knows 0 to 39"),
    ({"input_ids": np.zeros((3, 12))}, "input_ids are float64"),
    ({"attention_mask": np.zeros((3, 12))}, "a text without any token"),
    (
      {"input_ids": np.zeros((3, 13), int), "attention_mask": None},
      "texts of 13 tokens in input_ids, the model has 12",
    ),
    ({"input_ids": np.zeros((2, 13), np.int64)}, "must be [b, n] alike"),
    ({"input_ids": None}, "lacks input_ids"),
  ],
)
def test_wrong_inputs_are_one_line_and_code_2(
  model, tmp_path, capsys, change, message
):
  folder, _, _ = model
  arrays = {**np.load(folder / "in.npz"), **change}
  arrays = {name: value for name, value in arrays.items() if value is not None}
  np.savez(tmp_path / "bad.npz", **arrays)
  out = tmp_path / "out.npz"
  arguments = ["--model", str(folder / "model"), "--out", str(out)]
  arguments += ["--inputs", str(tmp_path / "bad.npz")]
  assert verbs.main(["forward", *arguments]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not out.exists()


def test_a_missing_model_is_named(capsys, tmp_path):
  arguments = ["--source", str(tmp_path / "gone"), "--to", str(tmp_path / "x")]
  assert verbs.main(["convert", *arguments]) == 2
  assert "gone" in capsys.readouterr().err
  assert verbs.main(["inspect", "cost", "--model", "nobody"]) == 2
  assert "nobody" in capsys.readouterr().err


def test_evaluate_measures_what_the_report_of_a_run_has(tmp_path, capsys):
  to = tmp_path / "out"
  options = [
    "--config",
    "configs/emoji_tiny.py",
    "--model",
    "assets/emoji_tiny",
  ]
  assert verbs.main(["evaluate", *options, "--out", str(to)]) == 0
  found = json.loads((to / "evaluate.json").read_text())["metrics"]
  # The dense row of the README's first table.
  assert set(found) == {"select", "test"}
  assert found["test"]["t2i_r10"] == pytest.approx(0.257, abs=5e-4)
  assert "T2I" in capsys.readouterr().out
  # Without pictures all are alike: one of 1,321 is right, the ties by order.
  blind = [*options, "--split", "test", "--hide", "image"]
  assert verbs.main(["evaluate", *blind, "--out", str(to)]) == 0
  found = json.loads((to / "evaluate.json").read_text())
  assert found["hidden"] == ["image"]
  assert found["metrics"]["test"]["t2i_r10"] < 0.01
  assert "assets/emoji_tiny, without image" in capsys.readouterr().out
  assert verbs.main(["evaluate", *options, "--hide", "image2"]) == 2
  assert "the examples have no image2 to hide" in capsys.readouterr().err
  assert verbs.main(["evaluate", *options, "--split", "tset"]) == 2
  assert "emoji has no split 'tset'" in capsys.readouterr().err
  # The config of a model with longer texts.
  longer = tmp_path / "longer.py"
  text = pathlib.Path("configs/emoji_tiny.py").read_text()
  longer.write_text(text.replace("text_length = 24", "text_length = 25"))
  assert verbs.main(["evaluate", "--config", str(longer), *options[2:]]) == 2
  assert "config.data.text_length is 25" in capsys.readouterr().err


def test_answers_need_a_folder_to_go_to(tmp_path, capsys):
  to = str(tmp_path / "gone" / "answers.json")
  options = ["--config", "no.py", "--model", "none", "--to", to]
  assert verbs.main(["answer", *options]) == 2
  assert "there is no folder" in capsys.readouterr().err


def test_texts_without_their_image_are_counted(model, tmp_path, capsys):
  folder, spec, _ = model
  arrays = dict(np.load(folder / "in.npz"))
  np.savez(tmp_path / "in.npz", **{**arrays, "images": arrays["images"][:2]})
  arguments = ["--model", str(folder / "model"), "--inputs"]
  arguments += [str(tmp_path / "in.npz"), "--out", str(tmp_path / "out.npz")]
  # Where no tower sees the other, every image meets every text.
  free = spec.family == "two_tower"
  assert verbs.main(["forward", *arguments]) == (0 if free else 2)
  if free:
    assert np.load(tmp_path / "out.npz")["logits"].shape == (2, 3)
  else:
    assert "2 images and 3 texts" in capsys.readouterr().err


def test_what_is_no_npz_is_said(model, tmp_path, capsys):
  folder, _, _ = model
  np.save(tmp_path / "bare.npz.npy", np.zeros(3))
  arguments = ["--model", str(folder / "model"), "--out", str(tmp_path / "o")]
  arguments += ["--inputs", str(tmp_path / "bare.npz.npy")]
  assert verbs.main(["forward", *arguments]) == 2
  assert "numpy.savez writes one" in capsys.readouterr().err

"""Every figure is drawn, holds what it should and leaves no state behind."""

import io
import xml.etree.ElementTree

import matplotlib
import matplotlib._pylab_helpers
import numpy as np
import PIL.Image
import pytest

from comp_jax import errors
from comp_jax.report import patches, plots, structure, style

_FIGURES = ("stages", "costs", "kept", "patches")


def _draw(which, report, samples, **options):
  if which == "stages":
    return plots.stages(report["stages"], report["macs"], **options)
  if which == "costs":
    return plots.costs(report["stages"], report["probe"], **options)
  if which == "kept":
    return structure.kept(report["kept"], **options)
  return patches.patches(
    samples["image"], samples["valid"], samples["text"], **options
  )


@pytest.mark.parametrize("which", _FIGURES)
def test_svg_is_well_formed_and_the_same_twice(which, report, samples):
  before = dict(matplotlib.rcParams)
  first = _draw(which, report, samples)
  root = xml.etree.ElementTree.fromstring(first)
  assert root.tag.endswith("svg")
  assert first == _draw(which, report, samples)
  assert first != _draw(which, report, samples, dark=True)
  assert dict(matplotlib.rcParams) == before
  # Somebody else may have imported pyplot; no figure is ever its own.
  assert not matplotlib._pylab_helpers.Gcf.figs


@pytest.mark.parametrize("which", _FIGURES)
def test_png(which, report, samples):
  data = _draw(which, report, samples, format="png")
  with PIL.Image.open(io.BytesIO(data)) as image:
    assert image.format == "PNG" and image.width > 1000


def test_a_mode_has_one_colour_everywhere(report, samples):
  figures = [
    _draw(which, report, samples).decode().lower()
    for which in ("stages", "costs", "kept")
  ]
  for mode in {stage["mode"] for stage in report["stages"]} - {"warmup"}:
    for figure in figures:
      assert style.colour(mode).lower() in figure
  assert len(set(style.COLOURS.values())) == len(style.COLOURS)
  assert len(set(style.MARKERS.values())) == len(style.MARKERS)


def test_plots_survive_what_was_not_measured(report):
  for stage in report["stages"]:
    stage.update(metric_immediate=None, cost=None)
    stage["costs"] = {"vision_params": None}
  report["macs"]["target"] = None
  plots.stages(report["stages"], report["macs"])
  plots.costs(report["stages"], {})
  # A mode that the table does not know is drawn too.
  report["stages"][0]["mode"] = "new_mode"
  report["stages"][1]["mode"] = "vision_params+language_params"
  plots.stages(report["stages"][:2], report["macs"])
  report["kept"]["vision"]["tokens_static"] = None
  del report["kept"]["text"]
  structure.kept(report["kept"])


def test_a_stage_of_several_modes_counts_for_each():
  assert style.pruned("all", "vision_params")
  assert style.pruned("vision_params+vision_tokens", "vision_tokens")
  assert not style.pruned("none", "vision_tokens")
  assert not style.pruned("vision_tokens", "vision_params")
  assert style.label("a_params+b_tokens") == "a parameters + b tokens"


def test_many_layers_and_stages(report):
  tower = report["kept"]["vision"]
  for name in ("heads", "neurons", "tokens_static"):
    tower[name] = tower[name] * 6
  tower["tokens_mean"] = [65.0] * 37
  structure.kept(report["kept"])
  stages = [dict(report["stages"][1], index=i) for i in range(60)]
  plots.stages(stages, report["macs"])


def test_each_picture_is_stored_once(samples):
  svg = patches.patches(samples["image"], samples["valid"], samples["text"])
  assert svg.count(b"<image ") == len(samples["image"])
  # The input and six layers of each picture.
  assert svg.count(b'<use xlink:href="#picture0"') == 7
  ids = [
    element.get("id")
    for element in xml.etree.ElementTree.fromstring(svg).iter()
    if element.get("id")
  ]
  assert len(ids) == len(set(ids))


def test_dropped_patches_are_dimmed_and_live_ones_are_not():
  image = np.full((1, 16, 16, 3), 255, np.uint8)
  valid = np.ones((1, 2, 5), bool)
  valid[0, 1, 1] = False  # The top left of a grid of two by two.
  data = patches.patches(image, valid, [""], format="png")
  with PIL.Image.open(io.BytesIO(data)) as file:
    pixels = np.asarray(file.convert("L"), int)[60:]  # Without the headings.
  # The picture is all white, so whatever is veiled lies in one dropped patch:
  # a quarter of the right one of two pictures.
  veiled = np.abs(pixels - 128) < 20
  side = patches._CELL * 150
  assert veiled.sum() == pytest.approx((side / 2) ** 2, rel=0.05)
  rows, columns = np.nonzero(veiled)
  assert np.percentile(columns, 1) > 0.48 * pixels.shape[1]
  middle = [int(np.median(rows)), int(np.median(columns))]
  half = int(side / 2)
  assert veiled[middle[0], middle[1]]
  for down, right in ((half, 0), (0, half), (0, -2 * half)):
    assert pixels[middle[0] + down, middle[1] + right] == 255


def test_patches_refuse_what_is_no_square(samples):
  with pytest.raises(errors.UserError, match="63 patches"):
    patches.patches(
      samples["image"], samples["valid"][..., :-1], samples["text"]
    )


def test_helpers_of_the_patches():
  assert patches.shown_layers(4, 6) == [0, 1, 2, 3]
  shown = patches.shown_layers(12, 6)
  assert len(shown) == 6 and shown[0] == 0 and shown[-1] == 11
  assert patches.shorten("a  b\nc", 10) == "a b c"
  assert patches.shorten("abcdefgh", 4) == "abc…"
  assert patches.drawable("né 🙂") == "né □"

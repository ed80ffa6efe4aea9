"""What a run leaves on disk: whole, self-contained, or nothing."""

import html.parser
import json
import math
import os

import numpy as np
import pytest

from comp_jax import errors
from comp_jax.report import html as page
from comp_jax.report import schema, write

_NAMES = {"report.json", "report.md", "report.html", "samples.npz"}


@pytest.fixture
def undrawn(monkeypatch):
  """Leaves out the figures, which take seconds and are tested elsewhere."""
  monkeypatch.setattr(write.html, "figures", lambda *_: [])


class _Links(html.parser.HTMLParser):
  """Collects what a page would load, and its visible words."""

  def __init__(self):
    super().__init__()
    self.links, self.tags, self.words = [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    for name, value in attrs:
      if name in ("src", "href", "srcset", "data", "action", "poster"):
        self.links.append(value)

  def handle_data(self, data):
    self.words.append(data)


def _parse(text: str) -> _Links:
  parser = _Links()
  parser.feed(text)
  return parser


def test_writes_all_files(tmp_path, report, samples, undrawn):
  workdir = tmp_path / "new" / "run"
  written = write.write(workdir, report, samples)
  assert {path.name for path in workdir.iterdir()} == _NAMES
  assert written == report == schema.load(workdir)
  back = write.read_samples(workdir)
  for name in ("image", "valid"):
    np.testing.assert_array_equal(back[name], samples[name])
  assert list(back["text"]) == samples["text"]


def test_json_has_no_nan_and_takes_arrays(tmp_path, report, undrawn):
  report["stages"][2]["loss"] = math.nan
  report["stages"][3]["cost"] = np.float32("inf")
  report["probe"]["vision_params"] = -math.inf
  report["seed"] = np.int64(3)
  report["stages"][1]["explored"] = np.bool_(True)
  report["kept"]["vision"]["heads"] = np.array([4, 3, 3, 2, 2, 1], np.int32)
  report["config"]["path"] = tmp_path
  report["config"]["shape"] = (1, 2)
  write.write(tmp_path, report)

  def refuse(name):
    raise AssertionError(f"{name} in the JSON")

  text = (tmp_path / "report.json").read_text(encoding="utf-8")
  back = json.loads(text, parse_constant=refuse)
  assert back["stages"][2]["loss"] is None
  assert back["stages"][3]["cost"] is None
  assert back["probe"]["vision_params"] is None
  assert back["seed"] == 3 and back["stages"][1]["explored"] is True
  assert back["kept"]["vision"]["heads"] == [4, 3, 3, 2, 2, 1]
  assert back["config"]["path"] == str(tmp_path)
  assert back["config"]["shape"] == [1, 2]


def test_page_is_self_contained(report, samples):
  report["config"]["address"] = "https://example.org/x"
  text = page.page(report, samples)
  links = _parse(text)
  assert len(links.links) == 8  # Four figures, each light and dark.
  assert all(link.startswith("data:image/svg") for link in links.links)
  assert not {"script", "link", "iframe", "object"} & set(links.tags)
  style = text[text.index("<style>") : text.index("</style>")]
  assert "url(" not in style and "@import" not in style
  assert "$" not in style


def test_page_escapes_everything(report):
  evil = '<script>alert("x")</script>'
  report["name"] = report["recipe"] = evil
  report["config"]["note"] = evil
  report["versions"]["evil"] = evil
  report["stages"][1]["mode"] = evil
  report["metrics"]["dense"][evil] = {evil: 1.0}
  report["macs"]["convention"] = evil
  parsed = _parse(page.page(report))
  assert "script" not in parsed.tags
  assert evil in "".join(parsed.words)


def test_page_shows_summary_then_figures_then_stages(report):
  text = page.page(report)
  order = ["70.1 %", "fine-tuned", "<picture>", "Eq.\u00a08", "Configuration"]
  places = [text.index(word) for word in order]
  assert places == sorted(places)
  assert "Surviving patches" not in text  # No samples, no such figure.


def test_markdown_has_the_tables(report):
  text = write.markdown(report)
  assert text.startswith("# emoji_tiny\n")
  assert "| fine-tuned | 0.43 G | 70.1 % | 0.61 M | 0.115 | 0.230 |" in text
  assert "| 6 | language tokens | yes |" in text


def test_dense_only_works(tmp_path, dense_only):
  write.write(tmp_path, dense_only)
  assert {path.name for path in tmp_path.iterdir()} == _NAMES - {"samples.npz"}
  assert "<picture>" not in (tmp_path / "report.html").read_text("utf-8")
  assert "Stages" not in (tmp_path / "report.md").read_text("utf-8")


def test_a_failing_page_leaves_nothing(tmp_path, report, monkeypatch):
  def fail(*_):
    raise RuntimeError("drawing failed")

  monkeypatch.setattr(write.html, "page", fail)
  with pytest.raises(RuntimeError, match="drawing failed"):
    write.write(tmp_path, report)
  assert list(tmp_path.iterdir()) == []


def test_a_bad_report_leaves_nothing(tmp_path, report):
  del report["seed"]
  with pytest.raises(errors.UserError, match="seed is missing"):
    write.write(tmp_path / "run", report)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("when", [0, 1, 2])
def test_a_failing_disk_leaves_no_partial_file(
  tmp_path, report, monkeypatch, undrawn, when
):
  write.write(tmp_path, report)
  old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  report["seed"] = 5
  calls, replace = [], os.replace

  def fail(source, target):
    calls.append(target)
    if len(calls) > when:
      raise OSError(28, "No space left on device")
    replace(source, target)

  monkeypatch.setattr(write.os, "replace", fail)
  with pytest.raises(errors.UserError, match="No space left"):
    write.write(tmp_path, report)
  new = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
  assert set(new) == set(old)  # No temporary file stays.
  assert new["report.json"] == old["report.json"]  # It goes last.
  changed = {name for name in new if new[name] != old[name]}
  assert len(changed) == when


def test_an_unwritable_folder_is_a_clear_error(tmp_path, report, undrawn):
  (tmp_path / "file").write_text("x")
  with pytest.raises(errors.UserError, match="cannot write the report to"):
    write.write(tmp_path / "file", report)
  assert (tmp_path / "file").read_text() == "x"


def test_bad_samples_are_refused(tmp_path, report, samples):
  samples["image"] = samples["image"].astype(np.float32)
  with pytest.raises(errors.UserError, match="samples do not fit: .*float32"):
    write.write(tmp_path, report, samples)
  assert list(tmp_path.iterdir()) == []
  with pytest.raises(errors.UserError, match="cannot read the samples"):
    write.read_samples(tmp_path)

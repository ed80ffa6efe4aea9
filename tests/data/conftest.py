"""Miniature data sets and a cache folder of the tests' own."""

import io
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from comp_jax.data import sources

REPO = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
  """A fresh cache, so that no test reads what an earlier version built."""
  before = {k: os.environ.get(k) for k in ("COMP_JAX_CACHE", "COMP_JAX_DATA")}
  folder = tmp_path_factory.mktemp("cache")
  os.environ["COMP_JAX_CACHE"] = str(folder)
  os.environ.pop("COMP_JAX_DATA", None)
  yield before
  for key, value in before.items():
    os.environ.pop(key, None)
    if value is not None:
      os.environ[key] = value


@pytest.fixture(scope="session")
def emoji():
  return sources.open_source("emoji")


@pytest.fixture(scope="session")
def flickr8k(cache):
  for folder in (cache["COMP_JAX_DATA"], REPO.parent / "shared" / "data"):
    if folder and (pathlib.Path(folder) / "flickr8k_128px.parquet").is_file():
      return sources.open_source("flickr8k", dir=str(folder))
  pytest.skip("flickr8k_128px.parquet not found; set COMP_JAX_DATA")


def jpeg(seed: int, size: tuple[int, int] = (20, 16)) -> bytes:
  """A small photo of random blocks."""
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).resize(size).save(out, "jpeg")
  return out.getvalue()


@pytest.fixture
def official(tmp_path):
  """A folder in the official Flickr8k layout: 12 train, 3 dev, 2 test."""
  folder = tmp_path / "flickr"
  (folder / "Flicker8k_Dataset").mkdir(parents=True)
  ids = [f"{i:04d}_abc.jpg" for i in range(17)]
  for i, name in enumerate(ids):
    (folder / "Flicker8k_Dataset" / name).write_bytes(jpeg(i))
  lines = [
    f"{name}#{c}\tcaption {c} of {name} ." for name in ids for c in range(5)
  ]
  # A line of the real file whose photo no split lists.
  lines.append("2258277193_586949ec62.jpg.1#0\tsome people .")
  (folder / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
  for split, part in (
    ("train", ids[:12]),
    ("dev", ids[12:15]),
    ("test", ids[15:]),
  ):
    text = "\n".join(part) + "\n"
    (folder / f"Flickr_8k.{split}Images.txt").write_text(text)
  return folder


@pytest.fixture
def toy_source():
  """Ten examples in memory with three captions each."""
  return [
    {
      "image": jpeg(i),
      "captions": [f"a{c} photo of thing {i}" for c in range(3)],
      "concept": 100 + i,
      "id": str(i),
    }
    for i in range(10)
  ]

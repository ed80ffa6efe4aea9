"""A model from wherever it lies: our folders, and what others published.

Read are folders that this project wrote, Hugging Face folders (config.json
beside safetensors or .bin) and single files of PyTorch or safetensors.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from comp_jax import errors
from comp_jax.interop import blip, clip, hf_config, store, torch_file
from comp_jax.models import specs

_BLIPS = {
  "retrieval": blip.retrieval,
  "matching": blip.matching,
  "nlvr": blip.nlvr,
  "caption": blip.caption,
  "vqa": blip.vqa,
}
TASKS = tuple(_BLIPS)
# What else a BLIP that does something may be asked for.
_ALSO = {
  "retrieval": ("matching", "nlvr"),
  "matching": ("retrieval", "nlvr"),
  "pretrained": ("retrieval", "matching", "nlvr", "caption", "vqa"),
}
# What `recipe` says of a Hugging Face folder's `layout`.
TRANSFORMERS = "transformers"
_FILES = (".safetensors", ".pth", ".pt", ".bin")


def load(
  path: str | os.PathLike,
  task: str | None = None,
  *,
  heads: tuple[int, int] | None = None,
  image_size: int | None = None,
) -> store.Loaded:
  """The model of a folder or file, ready to run.

  Args:
    path: a folder that prune.py or train.py wrote; a Hugging Face folder of a
      CLIPModel, a BlipForImageTextRetrieval, a BlipForConditionalGeneration or
      a BlipForQuestionAnswering; or a file of tensors in the layout of Hugging
      Face or the authors, dense or compressed by UPop.
    task: `retrieval` (CLIP, BLIP), `matching`, `nlvr`, `caption` or `vqa`
      (BLIP); None for what the checkpoint is. A BLIP that matches can be a
      start for `nlvr`. A pretrained one (the authors' `model_base`) is a start
      for all, so that a task must be named.
    heads: of the vision and the text tower of a published checkpoint; None for
      the config's, else width / 64.
    image_size: side of the images in pixels; None for the checkpoint's. The
      position table of a dense checkpoint is resampled to another one.

  Returns:
    A `store.Loaded`; its tokenizer is empty where the source brings none.

  Raises:
    UserError: nothing readable, another model than asked for, or arrays that
      do not fit (all of them are named).
  """
  path = pathlib.Path(path)
  if task is not None and task not in TASKS:
    raise errors.UserError(
      f"task must be one of {', '.join(TASKS)}, not {task!r}"
    )
  if (path / store.SPEC).is_file() or not (
    path.is_file() or (path / "config.json").is_file()
  ):
    return _saved(path, task, heads)
  source = read(path)
  spec, params = source.build(source.arrays, task, heads, image_size)
  return store.Loaded(
    spec=spec,
    params=jax.tree.map(jnp.asarray, params),
    policies={},
    tokenizer_json=_tokenizer(path) if source.config else "",
    recipe={
      "name": "loaded",
      "source": str(path),
      "layout": TRANSFORMERS if source.config else "authors",
    },
  )


def _saved(
  path: pathlib.Path, task: str | None, heads: tuple[int, int] | None
) -> store.Loaded:
  """The model of a folder of ours, which says itself what it is."""
  loaded = store.load(path)
  family = loaded.spec.family
  does = "retrieval" if family == "two_tower" else family
  if task not in (None, does):
    raise errors.UserError(f"{path}: a model for {does}, not for {task}")
  if heads is not None:
    raise errors.UserError(
      f"{path}: heads are given for published checkpoints; those of this model "
      f"stand in its {store.SPEC}"
    )
  return loaded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
  """A checkpoint in a layout that is not ours.

  Attributes:
    path: where it lies.
    arrays: its tensors, flat.
    config: config.json of a Hugging Face folder, else empty.
  """

  path: pathlib.Path
  arrays: Mapping[str, np.ndarray]
  config: Mapping[str, Any]

  def build(
    self,
    arrays: Mapping[str, np.ndarray],
    task: str | None,
    heads: tuple[int, int] | None,
    image_size: int | None,
  ) -> tuple[specs.ModelSpec, dict]:
    """The spec and the parameters of arrays in this layout; see `load`."""
    does, where = blip.task_of(arrays), str(self.path)
    if does == "pretrained" and task is None:
      raise errors.UserError(
        f"{where}: a pretrained BLIP, the start of several models; name "
        f"the task (--task): {', '.join(_ALSO[does])}"
      )
    if clip.is_layout(arrays) and task in (None, "retrieval"):
      build, options = clip.two_tower, hf_config.clip(self.config, where)
    elif does and task in (None, does, *_ALSO.get(does, ())):
      build = _BLIPS[task or does]
      options = hf_config.blip(self.config, where, does)
    else:
      if does:
        what = f"a BLIP for {does}" if does in TASKS else f"a {does} BLIP"
      elif clip.is_layout(arrays):
        what = "a CLIP"
      elif self.config:
        what = f"a {self.config.get('model_type')} model"
      else:
        what = "tensors of an unknown layout"
      wanted = f" that does {task}" if task else ""
      raise errors.UserError(
        f"{where}: {what}, not one{wanted} that is read here: CLIP"
        " (retrieval) of Hugging Face or OpenAI, BLIP (retrieval, matching,"
        " nlvr, caption, vqa) of Hugging Face or its authors"
      )
    options["heads"] = heads or options.get("heads")
    spec, params = build(arrays, where, image_size=image_size, **options)
    for tower, source in spec.sources.items():
      reads = getattr(spec, tower).encoder.source_width
      width = getattr(spec, source).encoder.width
      if reads != width:
        raise errors.UserError(
          f"{where}: the cross-attention of {tower} reads states of width "
          f"{reads}, those of {source} have {width}"
        )
    return spec, params


def read(path: pathlib.Path) -> Published:
  """The tensors and the config of a published folder or file."""
  config = {}
  if path.is_dir():
    config = hf_config.read(path)
    arrays = _folder_arrays(path)
  else:
    arrays = _file_arrays(path)
  for copy, first in blip.TIED.items():
    both = {copy, first} <= arrays.keys()
    if both and not np.array_equal(arrays[copy], arrays[first]):
      raise errors.UserError(
        f"{path}: {copy} differs from {first}, to which BLIP ties it"
      )
  return Published(path=path, arrays=arrays, config=config)


def _folder_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  """All arrays of a Hugging Face folder, its shards joined."""
  arrays = {}
  for file in _weights(path):
    arrays |= _file_arrays(file)
  return arrays


def _weights(path: pathlib.Path) -> list[pathlib.Path]:
  """The files that transformers would read, or the only one that there is.

  Others may lie beside them: of other code, of an optimiser, arguments.
  """
  for name in ("model.safetensors", "pytorch_model.bin"):
    index = path / f"{name}.index.json"
    if (path / name).is_file():
      return [path / name]
    if index.is_file():
      return _shards(index)
  for suffix in ("*.safetensors", "*.bin"):
    files = sorted(path.glob(suffix))
    if len(files) == 1:
      return files
    if files:
      raise errors.UserError(
        f"{path}: neither model.safetensors nor an index of shards beside "
        f"{', '.join(file.name for file in files)}; name one file"
      )
  raise errors.UserError(
    f"{path}: no *.safetensors and no *.bin beside config.json; fetch the "
    "weights as well"
  )


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
  """The files that an index of shards names."""
  try:
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    files = [index.parent / name for name in sorted(set(names))]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f"{index}: not a readable index of shards ({error!r}); fetch it again"
    ) from error
  if missing := [file.name for file in files if not file.is_file()]:
    raise errors.UserError(
      f"{index}: names {', '.join(missing)}, not in the folder; fetch the "
      "weights as well"
    )
  return files


def _file_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  if path.suffix not in _FILES:
    raise errors.UserError(
      f"{path}: a file of tensors ends in {', '.join(_FILES)}"
    )
  if path.suffix != ".safetensors":
    return torch_file.load(path)
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      return {key: file.get_tensor(key) for key in file.keys()}
  # The library raises types of its own for each way a header can be wrong.
  except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
    raise errors.UserError(
      f"{path}: not a whole safetensors file ({error}); fetch it again"
    ) from error


def _tokenizer(path: pathlib.Path) -> str:
  """The tokenizer of a Hugging Face folder; empty where there is none."""
  if (path / "tokenizer.json").is_file():
    return (path / "tokenizer.json").read_text(encoding="utf-8")
  if not any((path / name).is_file() for name in ("vocab.json", "vocab.txt")):
    return ""
  # Only older folders need it, and it takes seconds to import.
  import transformers

  tokenizer = transformers.AutoTokenizer.from_pretrained(str(path))
  return tokenizer.backend_tokenizer.to_str()

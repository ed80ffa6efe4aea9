"""A model as a folder that needs nothing else: save, load, run.

The folder holds `model.safetensors` (parameters), `spec.json` (shapes and
token policies), `tokenizer.json` and `recipe.json` (how it was made). Dense
checkpoints and compact models are stored alike.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from comp_jax import errors
from comp_jax.core import execution as execution_lib
from comp_jax.core import tokens as tokens_lib
from comp_jax.interop import atomic
from comp_jax.interop import tensors as tensors_lib
from comp_jax.models import families, spec_json, specs

FORMAT = 1
PARAMS, SPEC = "model.safetensors", "spec.json"
TOKENIZER, RECIPE = "tokenizer.json", "recipe.json"
FILES = (PARAMS, SPEC, TOKENIZER, RECIPE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
  """A model read from its folder.

  Attributes:
    spec: shapes of the towers.
    params: parameters, nested dict of arrays.
    policies: token policy by tower; empty drops no token.
    tokenizer_json: the tokenizer, as the `tokenizers` package writes it.
    recipe: how the model was made; plain JSON.
  """

  spec: specs.ModelSpec
  params: Mapping[str, Any]
  policies: Mapping[str, tokens_lib.TokenPolicy]
  tokenizer_json: str
  recipe: Mapping[str, Any]

  @functools.cached_property
  def _image(self) -> Callable[..., Array]:
    return self._jitted("encode_image", "vision")

  @functools.cached_property
  def _text(self) -> Callable[..., Array]:
    return self._jitted("encode_text", "text")

  @functools.cached_property
  def _forward(self) -> Callable[..., tuple[dict, dict]]:
    run = families.prunable(self.spec).forward
    execution = execution_lib.Execution(policies=self.policies)

    @jax.jit
    def forward(params, batch):
      return run(params, batch, execution)

    return forward

  def __call__(self, batch: Mapping[str, Any]) -> tuple[dict, dict]:
    """The outputs of the model's family, and aux of each tower.

    Args:
      batch: `image` [b, s, s, 3] and `text_ids`, `text_mask` [b, n].

    Returns:
      `logits` [b, 2] of a matching model; embeddings and scale of two towers;
      all of them of a BLIP for retrieval.
    """
    return self._forward(self.params, dict(batch))

  def _jitted(self, method: str, tower: str) -> Callable[..., Array]:
    if not hasattr(self.spec, "joint_width"):
      raise errors.UserError(
        f"a {self.spec.family} model has no joint space of images and texts;"
        " call the loaded model with a batch of pairs"
      )
    model = families.module(self.spec)
    execution = execution_lib.Execution(policies=self.policies).of(tower)

    @jax.jit
    def encode(params, *inputs):
      embedding, _ = model.apply(
        {"params": params}, *inputs, execution, method=method
      )
      return embedding

    return encode

  def encode_image(
    self, images: Num[Array | np.ndarray, "b s s 3"]
  ) -> Float[Array, "b p"]:
    """Unit embeddings of images: bytes, or floats normalised already."""
    return self._image(self.params, images)

  def encode_text(
    self,
    text_ids: Int[Array | np.ndarray, "b n"],
    text_mask: Bool[Array | np.ndarray, "b n"],
  ) -> Float[Array, "b p"]:
    """Unit embeddings of texts; the mask is False on padding."""
    return self._text(self.params, text_ids, text_mask)

  def logits(
    self,
    images: Num[Array | np.ndarray, "i s s 3"],
    text_ids: Int[Array | np.ndarray, "t n"],
    text_mask: Bool[Array | np.ndarray, "t n"],
  ) -> Float[Array, "i t"]:
    """Scaled similarity of each image with each text."""
    images = self.encode_image(images)
    texts = self.encode_text(text_ids, text_mask)
    model = families.module(self.spec)
    scale = model.apply({"params": self.params}, method="scale")
    return scale * images @ texts.T


def save(
  path: str | os.PathLike,
  *,
  params: Mapping[str, Any],
  spec: specs.ModelSpec,
  policies: Mapping[str, tokens_lib.TokenPolicy],
  tokenizer_json: str,
  recipe: Mapping[str, Any],
) -> None:
  """Writes a model's folder, whole or not at all; replaces an older one.

  Args:
    path: the folder. One that holds anything but a saved model is refused.
    params: parameters that fit `spec`.
    spec: the model: dense, or `towers.compacted`.
    policies: token policy by tower; empty for a dense model.
    tokenizer_json: text of a `tokenizer.json`.
    recipe: how the model was made; plain JSON types.

  Raises:
    UserError: the folder cannot be written or holds other files.
    ValueError, TypeError: the arguments do not belong together.
  """
  path = pathlib.Path(os.path.abspath(path))
  _check_policies(policies, spec)
  try:
    tensors_lib.check_tree(params, families.param_shapes(spec), "save")
  except errors.UserError as error:
    raise ValueError(str(error)) from error
  arrays = jax.tree.map(np.asarray, dict(params))
  texts = {
    SPEC: atomic.to_json(
      {
        "format": FORMAT,
        "spec": spec_json.to_dict(spec),
        "policies": {t: _policy_to_dict(p) for t, p in policies.items()},
        "sha256": tensors_lib.digest(arrays),
      }
    ),
    TOKENIZER: tokenizer_json,
    RECIPE: atomic.to_json(dict(recipe)),
  }
  try:
    with _replacing_folder(path) as temporary:
      for name, text in texts.items():
        atomic.write_text(temporary / name, text)
      tensors_lib.save_params(
        temporary / PARAMS, arrays, {"format": str(FORMAT)}
      )
  except OSError as error:
    raise errors.UserError(
      f"{path}: cannot write the model ({error.strerror or error}); give a"
      " folder that you may write to"
    ) from error


def load(path: str | os.PathLike) -> Loaded:
  """The model of a folder that `save` wrote, from its own files alone.

  Raises:
    UserError: a file is missing, broken, of another format, or does not fit
      the others.
  """
  path = pathlib.Path(path)
  missing = [name for name in FILES if not (path / name).is_file()]
  if missing:
    what = f"not a whole saved model, it lacks {', '.join(missing)}"
    if not path.is_dir():
      what = "no such folder or file"
    raise errors.UserError(
      f"{path}: {what}; give the folder that train.py or prune.py wrote, or a"
      " published checkpoint (Hugging Face's folders have a config.json)"
      + _interrupted(path)
    )
  about = _read_json(path / SPEC)
  if about.get("format") != FORMAT:
    raise errors.UserError(
      f"{path / SPEC}: format {about.get('format')!r}, this version reads"
      f" {FORMAT}; save the model again, or use the version that wrote it"
    )
  try:
    spec = spec_json.from_dict(about["spec"])
    policies = {
      tower: _policy_from_dict(fields)
      for tower, fields in about["policies"].items()
    }
    _check_policies(policies, spec)
    shapes = families.param_shapes(spec)
  # The file may hold any type in any place.
  except Exception as error:
    raise errors.UserError(
      f"{path / SPEC}: not the description of a model"
      f" ({type(error).__name__}: {error}); save the model again"
    ) from error
  params, _ = tensors_lib.load_params(path / PARAMS)
  tensors_lib.check_tree(params, shapes, str(path / PARAMS))
  found = tensors_lib.digest(params)
  # Folders of older versions have none.
  if about.get("sha256", found) != found:
    raise errors.UserError(
      f"{path / PARAMS}: not the numbers that {SPEC} was written with (their"
      " SHA-256 is another one); fetch or make the model again"
    )
  _read_json(path / TOKENIZER)
  return Loaded(
    spec=spec,
    params=jax.tree.map(jnp.asarray, params),
    policies=policies,
    tokenizer_json=(path / TOKENIZER).read_text(encoding="utf-8"),
    recipe=_read_json(path / RECIPE),
  )


def _read_json(path: pathlib.Path) -> dict:
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise errors.UserError(
      f"{path}: cannot read it as JSON ({error}); save the model again"
    ) from error
  if not isinstance(value, dict):
    raise errors.UserError(
      f"{path}: holds a {type(value).__name__}, not a JSON object; save the"
      " model again"
    )
  return value


def _policy_to_dict(policy: tokens_lib.TokenPolicy) -> dict[str, Any]:
  return {
    "theta": float(policy.theta),
    "rule": policy.rule,
    "gate": bool(policy.gate),
    "combine": policy.combine,
    "keep": None if policy.keep is None else [int(k) for k in policy.keep],
  }


def _policy_from_dict(fields: Mapping[str, Any]) -> tokens_lib.TokenPolicy:
  fields = dict(fields)
  keep = fields.pop("keep")
  return tokens_lib.TokenPolicy(
    keep=None if keep is None else tuple(keep), **fields
  )


def _check_policies(
  policies: Mapping[str, tokens_lib.TokenPolicy], spec: specs.ModelSpec
) -> None:
  """Raises a ValueError where a policy cannot run on its tower."""
  for tower, policy in policies.items():
    if tower not in spec.towers:
      raise ValueError(f"a token policy for {tower!r}, which is no tower")
    encoder = getattr(spec, tower).encoder
    theta, keep = float(policy.theta), policy.keep
    if not (math.isfinite(theta) and theta >= 0):
      raise ValueError(f"{tower}: theta must be 0 or more, not {theta}")
    for field, known in (
      ("rule", tokens_lib.RULES),
      ("combine", tokens_lib.COMBINE),
    ):
      value = getattr(policy, field)
      if value not in known:
        raise ValueError(
          f"{tower}: {field} must be one of {known}, not {value!r}"
        )
    if keep is None:
      continue
    if encoder.scan:
      raise ValueError(f"{tower}: static token counts need unrolled layers")
    if len(keep) != encoder.depth or not all(
      isinstance(k, int | np.integer) and k >= 1 for k in keep
    ):
      raise ValueError(
        f"{tower}: static token counts {list(keep)} for {encoder.depth} layers"
      )


def _previous(path: pathlib.Path) -> pathlib.Path:
  """Where a folder lies while its successor takes its place."""
  return path.with_name(f".{path.name}.previous")


def _interrupted(path: pathlib.Path) -> str:
  previous = _previous(pathlib.Path(os.path.abspath(path)))
  if path.exists() or not previous.is_dir():
    return ""
  return f" (a save was cut short: the model before it is in {previous})"


@contextlib.contextmanager
def _replacing_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary folder that becomes `path` when the block ends.

  A folder cannot be renamed over another one, so the old one steps aside for
  the moment between two renames; a failure puts it back.
  """
  if path.exists():
    if not path.is_dir():
      raise errors.UserError(f"{path}: is a file; give a folder")
    others = sorted({entry.name for entry in path.iterdir()} - set(FILES))
    if others:
      raise errors.UserError(
        f"{path}: holds other files ({', '.join(others[:5])}) that replacing"
        " it would delete; give a folder of its own"
      )
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = pathlib.Path(
    tempfile.mkdtemp(prefix=f".{path.name}.tmp.", dir=path.parent)
  )
  previous = _previous(path)
  try:
    yield temporary
    # mkdtemp makes folders that only their owner may enter.
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o777 & ~mask)
    if path.exists():
      shutil.rmtree(previous, ignore_errors=True)
      os.rename(path, previous)
    try:
      os.rename(temporary, path)
    except BaseException:
      if previous.exists() and not path.exists():
        os.rename(previous, path)
      raise
    shutil.rmtree(previous, ignore_errors=True)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise

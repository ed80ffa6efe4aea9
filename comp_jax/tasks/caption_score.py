"""How close captions are to those that people wrote: the COCO scores.

BLEU, ROUGE-L and CIDEr come from the `pycocoevalcap` package; METEOR, SPICE and
the tokenizer of the official evaluation need Java too. Without it texts are
split by `words`, which differs from the official one in rare cases (hyphens,
abbreviations). SPICE also needs the models of its parser, 400 MB, which nothing
here fetches unasked: `python -m pycocoevalcap.spice.get_stanford_models`.
"""

import importlib.resources
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence

from comp_jax import errors

# What `get_stanford_models` leaves in the package's folder.
PARSER = "stanford-corenlp-3.6.0"
# A clitic stands alone, as in the official tokenizer; marks are dropped.
_WORD = re.compile(r"n't\b|'\w+|\w+?(?=n't\b)|\w+")


def words(text: str) -> str:
  """A text in lower case without punctuation, words apart."""
  return " ".join(_WORD.findall(text.lower()))


def scores(
  written: Mapping[str, str],
  references: Mapping[str, Sequence[str]],
  *,
  java: bool | None = None,
) -> dict[str, float]:
  """`bleu_1` to `bleu_4`, `rouge_l`, `cider`; with Java `meteor` and `spice`.

  Args:
    written: image -> the caption to judge.
    references: image -> what people wrote.
    java: whether Java may be used; None for where it is installed. `spice`
      is there where its parser's models are too.

  Raises:
    UserError: the package is missing, or an image has no reference.
  """
  missing = sorted(written.keys() ^ references.keys())
  if missing:
    raise errors.UserError(
      f"{len(missing)} images have either no caption or no reference, first "
      f"{', '.join(missing[:5])}"
    )
  java = shutil.which("java") is not None if java is None else java
  bleu, rouge, cider = scorers()
  ours = {image: [text] for image, text in written.items()}
  theirs = {image: list(texts) for image, texts in references.items()}
  split = _official if java else _split
  ours, theirs = split(ours), split(theirs)
  blocks, _ = bleu(4).compute_score(theirs, ours, verbose=0)
  found = {f"bleu_{n}": float(x) for n, x in enumerate(blocks, 1)}
  found["rouge_l"] = float(rouge().compute_score(theirs, ours)[0])
  found["cider"] = float(cider().compute_score(theirs, ours)[0])
  if java:
    from pycocoevalcap.meteor import meteor

    found["meteor"] = float(meteor.Meteor().compute_score(theirs, ours)[0])
  if java and has_parser():
    from pycocoevalcap.spice import spice

    # It was written for Java 8: where it fails, the other scores stand.
    try:
      found["spice"] = float(spice.Spice().compute_score(theirs, ours)[0])
    except (subprocess.SubprocessError, OSError) as error:
      warnings.warn(f"SPICE is left out: {error}", stacklevel=2)
  return found


def has_parser() -> bool:
  """Whether SPICE has its parser: the package lacks it, and would fetch it."""
  library = importlib.resources.files("pycocoevalcap.spice") / "lib"
  parts = ("", "-models")
  return all((library / f"{PARSER}{part}.jar").is_file() for part in parts)


def scorers() -> tuple[Callable, Callable, Callable]:
  """What makes the scorers of BLEU, ROUGE-L and CIDEr.

  Raises:
    UserError: the package is missing.
  """
  try:
    from pycocoevalcap.bleu import bleu
    from pycocoevalcap.cider import cider
    from pycocoevalcap.rouge import rouge
  except ImportError as error:
    raise errors.UserError(
      "captions are scored by a package that is not installed; run: pip install"
      " pycocoevalcap"
    ) from error
  return bleu.Bleu, rouge.Rouge, cider.Cider


def _split(texts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
  return {image: [words(x) for x in each] for image, each in texts.items()}


def _official(texts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
  from pycocoevalcap.tokenizer import ptbtokenizer

  return ptbtokenizer.PTBTokenizer().tokenize(
    {image: [{"caption": x} for x in each] for image, each in texts.items()}
  )

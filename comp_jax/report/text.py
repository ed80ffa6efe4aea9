"""Numbers as text, one way for every table, plot and page."""

import math

NOTHING = "–"  # What was not measured.
Number = int | float


def metric_name(name: str) -> str:
  """The metric's name as printed: `t2i_r10` is `T2I R@10`."""
  head, _, tail = name.partition("_r")
  if head in ("t2i", "i2t") and tail.isdigit():
    return f"{head.upper()} R@{tail}"
  return name


def macs_unit(dense: Number) -> tuple[float, str]:
  """The divisor and letter that suit a model of this size."""
  for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
    if dense >= scale:
      return scale, letter
  return 1e3, "k"


def number(value: Number | None, digits: int = 3) -> str:
  """A fixed-point number, or a dash where nothing was measured."""
  if value is None or not math.isfinite(value):
    return NOTHING
  text = f"{value:.{digits}f}"
  return text.replace("-", "−") if float(text) else text.lstrip("-")


def significant(value: Number | None) -> str:
  """Three significant digits, or a dash."""
  if value is None or not math.isfinite(value):
    return NOTHING
  if value and not 1e-3 <= abs(value) < 1e4:
    return f"{value:.2e}".replace("-", "−")
  places = 2 if not value else max(0, 2 - math.floor(math.log10(abs(value))))
  return number(value, min(places, 4))


def quantity(value: Number | None, dense: Number) -> str:
  """MACs or parameters in the unit that suits the dense number."""
  if value is None:
    return NOTHING
  scale, letter = macs_unit(dense)
  return f"{number(value / scale, 2 if dense / scale < 100 else 1)} {letter}"


def removed(value: Number | None, dense: Number) -> str:
  """The part of the dense number that is gone, in per cent."""
  if value is None or not dense:
    return NOTHING
  return f"{number(100 * (1 - value / dense), 1)} %"


def signed(value: Number) -> str:
  """A fixed-point number that always shows its sign."""
  text = number(value)
  return text if text.startswith("−") else f"+{text}"

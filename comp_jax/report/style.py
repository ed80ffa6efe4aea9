"""Names, colours and markers of the modes, and the two themes of a page."""

import dataclasses

# Okabe and Ito's palette, safe for colour-blind readers. Blue is vision, orange
# is language; the deep tone is parameters, the light one tokens; each mode also
# has its own marker, so that no reading rests on colour alone.
COLOURS = {
  "vision_params": "#0072B2",
  "vision_tokens": "#56B4E9",
  "language_params": "#D55E00",
  "language_tokens": "#E69F00",
  "cross_params": "#009E73",
  "all": "#CC79A7",
  "warmup": "#8A919C",
  "none": "#C3C8CF",
}
MARKERS = {
  "vision_params": "s",
  "vision_tokens": "o",
  "language_params": "D",
  "language_tokens": "^",
  "cross_params": "P",
  "all": "p",
  "warmup": "X",
  "none": "h",
}
MODES = tuple(m for m in COLOURS if m not in ("all", "warmup", "none"))
# Colour and marker of things that are no modes, in this order.
SERIES = tuple((COLOURS[mode], MARKERS[mode]) for mode in (*MODES, "all"))
# Several modes at once ("a+b"), or one that this table does not know yet.
FALLBACK_COLOUR = "#8C6BB1"
FALLBACK_MARKER = "v"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Theme:
  """Colours of everything in a plot that is not data."""

  surface: str
  ink: str
  muted: str
  grid: str
  ghost: str  # The dense model behind the pruned one.
  tint: float  # Opacity of a mode's band behind the lines.


LIGHT = Theme(
  surface="#FFFFFF",
  ink="#1B1F24",
  muted="#5B6470",
  grid="#E6E9ED",
  ghost="#E3E7EC",
  tint=0.13,
)
DARK = Theme(
  surface="#181B20",
  ink="#E8EAED",
  muted="#A3ABB6",
  grid="#2C3138",
  ghost="#30363E",
  tint=0.20,
)


def theme(dark: bool) -> Theme:
  """The dark theme or the light one."""
  return DARK if dark else LIGHT


def colour(mode: str) -> str:
  """The mode's fixed colour, the same in every plot and table."""
  return COLOURS.get(mode, FALLBACK_COLOUR)


def marker(mode: str) -> str:
  """The mode's fixed matplotlib marker."""
  return MARKERS.get(mode, FALLBACK_MARKER)


def label(mode: str) -> str:
  """The mode's name in running text."""
  special = {"warmup": "warm-up", "all": "all modes", "none": "no mode"}
  if mode in special:
    return special[mode]
  words = mode.replace("_params", " parameters").replace("_", " ")
  return words.replace("+", " + ")


def parts(mode: str) -> list[str]:
  """The single modes of a stage that maybe pruned several."""
  return mode.split("+")


def pruned(stage_mode: str, mode: str) -> bool:
  """Whether a stage of this mode, maybe of several, pruned the given one."""
  return stage_mode == "all" or mode in parts(stage_mode)


def order(modes: set[str]) -> list[str]:
  """The modes in the project's fixed order, unknown ones last."""
  known = [m for m in ("warmup", *MODES, "all", "none") if m in modes]
  return known + sorted(modes - set(known))

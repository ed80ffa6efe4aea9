"""The one exception of a user's mistake."""

from typing import Any


class UserError(Exception):
  """A mistake that the user can mend; shown as one line, exit code 2.

  The message names what was wrong, where, and what to do.
  """


def one_line(error: Any) -> str:
  """The text of an error without line breaks."""
  text = error.args[0] if isinstance(error, KeyError) else error
  return " ".join(str(text).split())

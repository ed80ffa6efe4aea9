"""The one exception of a user's mistake."""


class UserError(Exception):
  """A mistake that the user can mend; shown as one line, exit code 2.

  The message names what was wrong, where, and what to do.
  """

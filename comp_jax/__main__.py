"""`python -m comp_jax VERB ...`."""

import sys

from comp_jax.cli import verbs

if __name__ == "__main__":
  sys.exit(verbs.main())

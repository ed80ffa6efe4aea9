"""The processes of a sweep's groups: begun, followed, asked why they ended."""

import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

# How a mistake of the user ends a process of ours.
ERROR = "error: "
# Seconds between two looks at whether a parent is still there.
_LOOK = 1.0


def begin(command: Sequence[str], log: pathlib.Path) -> subprocess.Popen:
  """Starts a process whose standard error goes to a file.

  A file takes whatever a child says; a pipe that nobody reads while it runs
  would fill up and stop it. One that still writes to the file of an earlier
  process, as after a parent that was killed, keeps that to itself.
  """
  log.unlink(missing_ok=True)
  with log.open("w") as said:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)


def reason(code: int, said: str) -> str:
  """Why a process failed, in one line.

  Args:
    code: that it returned.
    said: on standard error, warnings of libraries among it.
  """
  lines = [line for line in said.splitlines() if line.strip()]
  mistakes = [line for line in lines if line.startswith(ERROR)]
  if mistakes:
    return mistakes[-1].removeprefix(ERROR)
  if code < 0:
    name = signal.Signals(-code).name
    hint = ", as the system does where memory runs out" * (name == "SIGKILL")
    return f"killed by {name}{hint}; the same command goes on with it"
  return lines[-1] if lines else f"ended with code {code} and no message"


def follow(parent: int) -> None:
  """Has this process asked to stop (SIGTERM) once `parent` is gone.

  A parent that was killed tells its children nothing, and they would keep a
  folder to themselves that the same command is to go on with.
  """

  def look():
    while os.getppid() == parent:
      time.sleep(_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=look, daemon=True).start()

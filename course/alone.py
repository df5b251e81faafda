"""Run a command while no other one runs under the same lock: two `make` at once set up one environment.

Called by the Makefile, under whatever Python there is. The system frees the lock when the command and all that it started
have ended, however they end.
"""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path


def main(lock: str, *command: str) -> int:
    """Wait for the lock, saying for whom, and run the command; returns its exit code."""
    with open(lock, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            process = ""
            for _ in range(40):  # who has the lock writes its number in a moment
                process = process or Path(lock).read_text().strip()
                time.sleep(0 if process else 0.05)
            who = f" (process {process})" if process else ""
            print(f"Waiting for another make here{who}, which sets up .venv.")
            sys.stdout.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        print(os.getpid(), file=file, flush=True)
        return subprocess.call(command, pass_fds=[file.fileno()])


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)

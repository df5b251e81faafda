"""The types are right: a test like others, so that a core that waits can look for it."""

import subprocess
import sys

from course import ROOT


def test_types():
    command = [sys.executable, "-m", "mypy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

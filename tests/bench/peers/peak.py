"""Run a command and print the peak memory of all its processes, in bytes: `python peak.py COMMAND...`."""

from __future__ import annotations

import resource
import subprocess
import sys

if __name__ == "__main__":
    subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
    print(1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)

"""Run a command and say on stderr how much memory it took: `python tests/benchmarks/peak.py COMMAND [ARGUMENT ...]`.

This is a process of its own because Linux counts the memory of whoever starts a process towards that process's peak; this
one is small.
"""

import resource
import subprocess
import sys

if __name__ == "__main__":
    exit_code = subprocess.call(sys.argv[1:])
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit, file=sys.stderr)
    sys.exit(exit_code)

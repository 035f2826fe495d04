"""One program per peer, each run inside that peer's environment: `python -m peers.runners.NAME JOB`, from tests/benchmarks.

JOB is a JSON object (see `job`); the last line printed is a JSON object with what was measured (see `figures`). Nothing here
imports layermesh except its own runner, and nothing is shared but the standard library.
"""

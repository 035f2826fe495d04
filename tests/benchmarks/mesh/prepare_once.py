"""Have workers make a model ready and note how far they are when: `python prepare_once.py MODEL ADDRESS ...`.

Prints one JSON object: `began` and `ready` in seconds of the monotonic clock, and `steps`, each [seconds, what, bytes so far,
bytes in all].
"""

import json
import sys
import time

from layermesh import LayerMesh


def main() -> None:
    """Open the model on the workers that are named, answer with one token, and print."""
    model, *addresses = sys.argv[1:]
    steps: list[tuple[float, str, int, int]] = []
    with LayerMesh(model, device="cpu", workers=addresses, discover=False, spread=True) as mesh:
        mesh.local.on_progress = lambda _, doing, done, total: steps.append((time.monotonic(), doing, done, total))
        began = time.monotonic()
        assert mesh.workers is not None
        mesh.workers.engage()
        ready = time.monotonic()
        mesh.generate([5, 6, 7], max_new_tokens=1)
    print(json.dumps({"began": began, "ready": ready, "steps": steps}))


if __name__ == "__main__":
    main()

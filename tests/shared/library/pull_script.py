"""What tests run in a process of its own: huggingface_hub reads its environment once, when it is imported."""

import json
import sys

from layermesh.shared.errors import LayermeshError
from layermesh.shared.library import resolve


class Recorder:
    def __init__(self) -> None:
        self.events: list[list[object]] = []

    def start(self, what: str, total_bytes: int | None) -> None:
        self.events.append(["start", what, total_bytes])

    def advance(self, num_bytes: int) -> None:
        self.events.append(["advance", num_bytes])

    def finish(self) -> None:
        self.events.append(["finish"])


def main() -> int:
    recorder = Recorder()
    try:
        model = resolve(sys.argv[1], **json.loads(sys.argv[2]), progress=recorder)
    except LayermeshError as error:
        print(json.dumps({"error": type(error).__name__, "message": str(error), "events": recorder.events}))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(json.dumps({"path": str(model.path), "notices": model.notices, "events": recorder.events}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

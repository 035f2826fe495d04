"""Opens the models of a list, one after the other, as a user's command would, and tells what came of each and what it took.

Reads the folder in which they are made, and their names, from its arguments; writes a line of JSON for each, begun and ended.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = frozenset(
    {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate", "shutil.rmtree"}
)
STARTS = frozenset({"os.system", "os.exec", "os.posix_spawn", "os.fork", "pty.spawn"})
changed: list[str] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: note what is written or removed, and programs of others that are started."""
    if event == "open" and isinstance(arguments[0], str) and (arguments[2] or 0) & WRITES:
        changed.append(arguments[0])
    elif event in CHANGES:  # a name without its folder is one in a folder that is being removed, of which there was word
        changed.extend(argument for argument in arguments if isinstance(argument, str) and "/" in argument)
    elif event in STARTS or (event == "subprocess.Popen" and not str(arguments[0]).startswith(sys.prefix)):
        changed.append(f"{event} {str(arguments[0])[:80]}")


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) << 10


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def attempt(path: Path, prompt: Any) -> dict[str, Any]:
    """Answer two tokens, and tell how that went."""
    from layermesh import LayerMesh
    from layermesh.shared.errors import LayermeshError

    Path("/proc/self/clear_refs").write_text("5")
    before, began, kind, said, code = rss_bytes(), time.monotonic(), "answer", "", 0
    changed.clear()
    try:
        with LayerMesh(str(path), offline=True, device="cpu", alone=True) as mesh:
            mesh.generate(prompt, max_new_tokens=2)
    except LayermeshError as error:
        kind, said, code = type(error).__name__, str(error), error.exit_code
    except BaseException as error:
        kind, said, code = f"not ours: {type(error).__name__}", str(error)[:300], -1
    return {
        "kind": kind, "said": said, "code": code, "seconds": time.monotonic() - began,
        "grown_bytes": peak_bytes() - before, "changed": sorted(set(changed)),
    }  # fmt: skip


def main(names: list[str]) -> None:
    import warnings

    warnings.simplefilter("ignore")
    import torch

    from layermesh import LayerMesh
    from tests.hostile.models import MODELS, Bases

    torch.set_num_threads(1)
    bases = Bases(Path(os.environ["LAYERMESH_HOSTILE_FOLDER"]))
    for _ in range(2):  # what libraries load and build once
        with LayerMesh(str(bases.whole), offline=True, device="cpu", alone=True) as mesh:
            mesh.generate("hello", max_new_tokens=2)
    sys.addaudithook(watch)
    for name in names:
        print(json.dumps({"begun": name}), flush=True)
        path = MODELS[name].make(bases.copy())
        print(json.dumps({"ended": name} | attempt(path, MODELS[name].prompt)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

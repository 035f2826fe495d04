"""`resolve` in a process of its own, as a person would run it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import layermesh.shared.library

ROOT = Path(layermesh.shared.library.__file__).parents[3]
SCRIPT = Path(__file__).with_name("pull_script.py")


@dataclass
class Puller:
    """Runs `resolve` in a process of its own, against the test's hub and with the test's folders."""

    folder: Path
    url: str

    @property
    def cache(self) -> Path:
        return self.folder / "hf" / "hub"

    def environ(self, **more: str) -> dict[str, str]:
        ours = ("HF_", "HUGGING", "TRANSFORMERS_", "LAYERMESH_", "XDG_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        folders = {"HF_HOME": str(self.folder / "hf"), "LAYERMESH_HOME": str(self.folder / "home")}
        hub = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        return kept | folders | hub | {"PYTHONPATH": str(ROOT)} | more

    def start(self, name: str, *, environ: dict[str, str] | None = None, **options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", str(SCRIPT), name, json.dumps(options)]
        return subprocess.Popen(
            command, env=self.environ(**environ or {}), cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __call__(self, name: str, *, environ: dict[str, str] | None = None, **options: object) -> dict[str, Any]:
        return answer(self.start(name, environ=environ, **options))


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return json.loads(out) | {"code": process.returncode, "stderr": err}

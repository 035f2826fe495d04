"""Published holes in what layermesh is tested with, if the database of them can be reached: `python -m tests.gates.audit`.

Exit code 1 where there is one, 0 where there is none, and where nobody can be asked, which is said.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parent.parent.parent / "deploy" / "constraints.txt"
SECONDS = 120


def verdict(output: str) -> tuple[str, int]:
    """Return what to say of pip-audit's output in JSON, and the exit code."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, LookupError, TypeError):
        return "pip-audit: the database of published holes cannot be reached; nothing was looked up.", 0
    known = [package for package in packages if "vulns" in package]
    holes = [(package, hole) for package in known for hole in package["vulns"]]
    if not known:
        return f"pip-audit: the database knows none of these {len(packages)} packages from here; nothing was looked up.", 0
    lines = [_line(package, hole) for package, hole in holes]
    lines.append(f"pip-audit: {len(holes)} published holes in {len(known)} of {len(packages)} packages that it knows.")
    return "\n".join(lines), 1 if holes else 0


def _line(package: dict[str, Any], hole: dict[str, Any]) -> str:
    mended = ", ".join(hole.get("fix_versions", ())) or "no version yet"
    return f"{package['name']} {package['version']}: {hole['id']}, mended in {mended}"


def ask() -> str:
    """Return what pip-audit says of the exact versions that layermesh is tested with; nothing where it says nothing in time."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False).stdout
    except subprocess.TimeoutExpired:
        return ""


def main() -> int:
    """Say what is known, and return the exit code."""
    said, code = verdict(ask())
    print(said)
    return code


if __name__ == "__main__":
    sys.exit(main())

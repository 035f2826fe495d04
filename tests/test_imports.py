import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("shared", "protos", "worker", "coordinator")
FORBIDDEN = {
    "shared": ("worker", "coordinator"),
    "protos": ("worker", "coordinator", "shared"),
    "worker": ("coordinator",),
    "coordinator": ("worker",),
}
ON_TOP = (
    *("ask", "batch", "batch_input", "batch_output", "berths", "checking", "cli", "cli_batch", "cli_bench", "cli_generate"),
    *("cli_invite", "cli_nodes", "pairing"),
    *("cli_list", "cli_options", "cli_plan", "cli_quantize", "interrupts", "local", "many", "mesh", "meter", "packs", "reply"),
    *("reporting", "request", "settings", "terminal", "LayerMesh"),
)
HEAVY = (
    *("torch", "transformers", "grpc", "fastapi", "numpy", "gguf", "safetensors", "huggingface_hub", "tokenizers"),
    *("cryptography", "zeroconf"),
)


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).glob("**/*.py") if not path.is_symlink())


SOURCES = {str(path.relative_to(ROOT)): path for path in sources(*ROOMS) + sorted((ROOT / "layermesh").glob("*.py"))}
IN_ROOMS = [name for name in SOURCES if not name.startswith("layermesh/")]


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in `tree`, in functions and by name as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "importlib.import_module", "__import__"):
            yield from (value.value for value in node.args if isinstance(value, ast.Constant) and isinstance(value.value, str))


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def inside(module: str, packages: Iterator[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_there_are_sources_to_look_at():
    assert {name.partition("/")[0] for name in SOURCES} == {*ROOMS, "layermesh"}
    assert len(SOURCES) > 50


@pytest.mark.parametrize("name", IN_ROOMS)
def test_imports_point_one_way(name):
    room = name.partition("/")[0]
    forbidden = [f"layermesh.{other}" for other in (*FORBIDDEN[room], *ON_TOP)] + list(ROOMS)
    modules = set(imported(ast.parse(SOURCES[name].read_text())))
    assert [module for module in modules if module == "layermesh" or inside(module, forbidden)] == []


CALLS = frozenset(
    {"eval", "exec", "compile", "__import__", "torch.load", "yaml.load", "yaml.unsafe_load", "os.system", "os.popen"}
)
MODULES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml")


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_that_runs_foreign_code_is_used(name):
    tree = ast.parse(SOURCES[name].read_text())
    found = [module for module in imported(tree) if inside(module, MODULES)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += [called(node)] if called(node) in CALLS else []
            found += [f"{word.arg}=…" for word in node.keywords if is_risk(word)]
    assert found == []


def is_risk(word: ast.keyword) -> bool:
    """Whether an argument trusts remote code, runs a shell, or loads more than weights."""
    risky = {"trust_remote_code": True, "shell": True, "weights_only": False, "allow_pickle": True}
    if word.arg not in risky:
        return False
    return not isinstance(word.value, ast.Constant) or word.value.value == risky[word.arg]


@pytest.mark.parametrize(
    "source",
    ["import pickle", "def f():\n    from pickle import loads", "importlib.import_module('dill')"],
    ids=["plain", "in a function", "by name"],
)
def test_the_gate_sees_imports_wherever_they_are(source):
    assert [module for module in imported(ast.parse(source)) if inside(module, MODULES)]


def test_the_command_line_imports_nothing_heavy():
    script = f"import layermesh.cli, sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.split() == []


def test_the_package_imports_nothing_heavy():
    script = f"import layermesh, sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.split() == []

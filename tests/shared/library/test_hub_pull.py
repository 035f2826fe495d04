import os
import random
import signal
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer, Repo
from pulling import Puller, answer

from tests.running import wait_until

WEIGHTS = random.Random(7).randbytes(3_000_000)
CONFIG = {"config.json": b"{}", "generation_config.json": b"{}"}
TOKENIZER = {"tokenizer.json": b"{...}", "tokenizer.model": b"sp" * 10_000, "merges.txt": b"a b", "vocab.json": b"{}"}
INDEX = b'{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'
UNWANTED = {
    "consolidated.safetensors": WEIGHTS, "original/consolidated.00.pth": b"x", "pytorch_model.bin": b"x",
    "onnx/model.onnx": b"x", "README.md": b"# x", "model.Q4_0.gguf": b"GGUF",
}  # fmt: skip
WHOLE = Repo({**CONFIG, **TOKENIZER, "model.safetensors": WEIGHTS, **UNWANTED})


def advanced(result: dict) -> int:
    return sum(event[1] for event in result["events"] if event[0] == "advance")


def blobs(pull: Puller) -> list[str]:
    return sorted(path.name for path in pull.cache.glob("models--*/blobs/*"))


def partials(pull: Puller) -> list[int]:
    return [path.stat().st_size for path in pull.cache.glob("models--*/blobs/*.incomplete")]


def test_a_model_comes_whole_and_without_the_rest(hub: HubServer, pull: Puller) -> None:
    hub.repos["o/n"] = WHOLE
    result = pull("o/n")
    folder = pull.cache / "models--o--n" / "snapshots" / COMMIT
    assert (result["code"], result["path"], result["notices"]) == (0, str(folder), [])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        **CONFIG, **TOKENIZER, "model.safetensors": WEIGHTS,
    }  # fmt: skip
    assert result["events"][0] == ["start", "fetching o/n (7 files)", advanced(result)]
    assert result["events"][-1] == ["finish"]
    assert result["stderr"] == ""


def test_what_is_here_is_not_fetched_again(hub: HubServer, pull: Puller) -> None:
    hub.repos["o/n"] = WHOLE
    path = pull("o/n")["path"]
    hub.log.clear()
    assert pull("o/n")["path"] == path
    assert {method for method, where, _ in hub.log if "/resolve/" in where} <= {"HEAD"}
    hub.log.clear()
    assert pull("o/n", offline=True)["path"] == path
    assert pull("o/n", environ={"HF_HUB_OFFLINE": "1"})["path"] == path
    assert pull("o/n", revision=COMMIT)["path"] == path
    assert hub.log == []


def test_an_unreachable_hub_leaves_the_copy_that_is_here(hub: HubServer, pull: Puller) -> None:
    hub.repos["o/n"] = WHOLE
    path = pull("o/n")["path"]
    result = pull("o/n", environ={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert result["path"] == path
    assert "the copy of o/n that is here" in result["notices"][0]


def test_shards_are_those_of_the_index(hub: HubServer, pull: Puller) -> None:
    shards = {"model-1.safetensors": WEIGHTS, "model-2.safetensors": b"two", "model-3.safetensors": b"nobody's"}
    hub.repos["o/n"] = Repo({**CONFIG, "model.safetensors.index.json": INDEX, **shards})
    folder = pull.cache / "models--o--n" / "snapshots" / COMMIT
    pull("o/n")
    names = {*CONFIG, "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"}
    assert {path.name for path in folder.iterdir()} == names


def test_a_cut_connection_goes_on_where_it_broke(hub: HubServer, pull: Puller) -> None:
    hub.repos["o/n"] = WHOLE
    hub.cuts["model.safetensors"] = 1_200_000
    result = pull("o/n")
    assert result["code"] == 0
    first, second = hub.gets("model.safetensors")
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 1_200_000
    assert advanced(result) == result["events"][0][2]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_a_broken_pull_is_resumed_by_the_next(hub: HubServer, pull: Puller, how: signal.Signals) -> None:
    hub.repos["o/n"] = WHOLE
    hub.stalls["model.safetensors"] = 2_500_000
    process = pull.start("o/n")
    assert hub.stalled.wait(20)
    wait_until(lambda: sum(partials(pull)) >= 2 << 20)
    os.kill(process.pid, how)
    _, err = process.communicate(timeout=20)
    assert process.returncode == (130 if how == signal.SIGINT else -9), err
    (kept,) = partials(pull)
    assert pull("o/n", offline=True)["error"] == "ModelNotFoundError"
    result = pull("o/n")
    assert hub.gets("model.safetensors") == [None, f"bytes={kept}-"]
    assert (Path(result["path"]) / "model.safetensors").read_bytes() == WEIGHTS
    assert partials(pull) == []


def test_a_server_without_ranges_sends_all_again(hub: HubServer, pull: Puller) -> None:
    hub.repos["o/n"] = WHOLE
    hub.ranges = False
    hub.cuts["model.safetensors"] = 1_200_000
    result = pull("o/n")
    assert (result["code"], len(hub.gets("model.safetensors"))) == (0, 2)
    assert advanced(result) == result["events"][0][2]


def test_other_bytes_than_listed_are_not_kept(hub: HubServer, pull: Puller) -> None:
    flipped = WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])
    hub.repos["o/n"] = Repo({**CONFIG, "model.safetensors": WEIGHTS}, sent={"model.safetensors": flipped})
    result = pull("o/n")
    assert (result["code"], result["error"]) == (3, "CheckpointError")
    assert [name for name in blobs(pull) if len(name) >= 64] == []


def test_two_at_once_fetch_it_once(hub: HubServer, pull: Puller) -> None:
    hub.repos["o/n"] = Repo({**CONFIG, "model.safetensors": WEIGHTS})
    first, second = [answer(process) for process in [pull.start("o/n"), pull.start("o/n")]]
    assert first["path"] == second["path"]
    assert len(hub.gets("model.safetensors")) == 1


@pytest.mark.parametrize("wanted", ["Q4_K_M", "sub/tiny.Q4_K_M.gguf", "tiny.Q4_K_M.gguf"])
def test_one_gguf_of_a_repository(hub: HubServer, pull: Puller, wanted: str) -> None:
    hub.repos["o/n"] = Repo({"sub/tiny.Q4_K_M.gguf": WEIGHTS, "sub/tiny.Q8_0.gguf": b"no", "mmproj.Q4_K_M.gguf": b"no"})
    path = pull.cache / "models--o--n" / "snapshots" / COMMIT / "sub" / "tiny.Q4_K_M.gguf"
    assert pull(f"o/n:{wanted}")["path"] == str(path)
    assert path.read_bytes() == WEIGHTS
    assert pull(f"o/n:{wanted}", offline=True)["path"] == str(path)


PIECES = {f"q/m-Q4_K_M-0000{number}-of-00003.gguf": WEIGHTS[number:] for number in (1, 2, 3)}


@pytest.mark.parametrize("wanted", ["q4_k_m", "m-Q4_K_M-00002-of-00003.gguf"])
def test_a_gguf_in_several_files(hub: HubServer, pull: Puller, wanted: str) -> None:
    hub.repos["o/n"] = Repo({**PIECES, "m-Q8_0.gguf": b"no"})
    folder = pull.cache / "models--o--n" / "snapshots" / COMMIT
    hub.cuts["m-Q4_K_M-00003-of-00003.gguf"] = 1_200_000
    result = pull(f"o/n:{wanted}")
    assert result["path"] == str(folder / "q/m-Q4_K_M-00001-of-00003.gguf")
    assert result["events"][0] == ["start", f"fetching o/n:{wanted} (3 files)", sum(map(len, PIECES.values()))]
    assert {name: (folder / name).read_bytes() for name in PIECES} == PIECES
    assert pull(f"o/n:{wanted}", offline=True)["path"] == result["path"]
    (folder / "q/m-Q4_K_M-00003-of-00003.gguf").unlink()
    assert pull(f"o/n:{wanted}", offline=True)["error"] == "ModelNotFoundError"


@pytest.mark.parametrize(
    ("repo", "name", "error", "says"),
    [
        (None, "o/n", "ModelNotFoundError", "no model o/n"),
        (Repo({**CONFIG, "model.safetensors": b"x"}, gated=True), "o/n", "ModelError", "HF_TOKEN"),
        (Repo({**CONFIG, "pytorch_model.bin": b"x"}), "o/n", "UnsupportedModelError", "pytorch_model.bin"),
        (Repo({"a.Q4_0.gguf": b"", "a.Q8_0.gguf": b""}), "o/n", "UnsupportedModelError", "o/n:a.Q4_0.gguf, o/n:a.Q8_0"),
        (Repo({"a.Q4_0.gguf": b""}), "o/n:Q5_K", "ModelNotFoundError", "a.Q4_0.gguf"),
        (Repo({**CONFIG, "../../x.safetensors": b"x"}), "o/n", "CheckpointError", "../../x.safetensors"),
        (
            Repo({**CONFIG, "model.safetensors": WEIGHTS}, listed_bytes={"model.safetensors": 10**18}),
            "o/n", "DiskFullError", "HF_HOME",
        ),
        (Repo(PIECES, listed_bytes=dict.fromkeys(PIECES, 10**18)), "o/n:Q4_K_M", "DiskFullError", "3000000TB"),
        (Repo(dict(list(PIECES.items())[1:])), "o/n:Q4_K_M", "CheckpointError", "00001-of-00003"),
    ],
    ids=["missing", "gated", "pickle", "gguf", "no-such-gguf", "escape", "full-disk", "full-disk-pieces", "lost-piece"],
)  # fmt: skip
def test_refusals(hub: HubServer, pull: Puller, repo: Repo | None, name: str, error: str, says: str) -> None:
    if repo is not None:
        hub.repos["o/n"] = repo
    result = pull(name)
    assert (result["error"], result["code"]) == (error, 6 if error == "DiskFullError" else 3)
    assert says in result["message"]
    assert not [path for _, path, _ in hub.log if path.endswith(("model.safetensors", ".bin", ".gguf")) and "GET" in path]


def test_an_unknown_revision_is_named(hub: HubServer, pull: Puller) -> None:
    hub.repos["o/n"] = WHOLE
    result = pull("o/n", revision="v9")
    assert (result["error"], "v9" in result["message"]) == ("ModelNotFoundError", True)


def test_without_hub_and_copy_the_catalog_is_named(pull: Puller) -> None:
    result = pull("o/n", environ={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert (result["error"], result["code"]) == ("HubUnreachableError", 3)
    assert "layermesh pull smollm2-135m" in result["message"]


def test_offline_without_a_copy(hub: HubServer, pull: Puller) -> None:
    assert "offline" in pull("o/n", offline=True)["message"]
    assert hub.log == []

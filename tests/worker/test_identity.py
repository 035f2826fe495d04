import subprocess
import sys
from pathlib import Path

import pytest

from layermesh.shared.errors import ResourceError
from layermesh.worker import identity
from layermesh.worker.identity import worker_id

ROOT = Path(__file__).parents[2]


def test_the_id_lasts(tmp_path):
    with worker_id(tmp_path / "store") as first:
        assert len(first) == 32
    with worker_id(tmp_path / "store") as second:
        assert second == first


def test_workers_on_one_machine_have_ids_of_their_own_which_come_back(tmp_path):
    with worker_id(tmp_path) as first, worker_id(tmp_path) as second:
        assert first != second
    with worker_id(tmp_path) as again, worker_id(tmp_path) as other:
        assert (again, other) == (first, second)


def test_the_id_of_a_program_that_was_killed_is_free_again(tmp_path):
    script = "import os, sys; from pathlib import Path; from layermesh.worker.identity import worker_id\n"
    script += "with worker_id(Path(sys.argv[1])) as known: print(known, flush=True); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == -9
    with worker_id(tmp_path) as known:
        assert known == done.stdout.strip()


@pytest.mark.parametrize("content", [b"", b"x", b"0" * 31, b"\xff" * 32, b"../" * 20], ids=repr)
def test_a_damaged_id_is_made_anew(tmp_path, content):
    (tmp_path / "worker-0.id").write_bytes(content)
    with worker_id(tmp_path) as made:
        assert len(made) == 32
    with worker_id(tmp_path) as again:
        assert again == made


def test_more_workers_than_make_sense_are_told_to_go_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "MOST_WORKERS", 1)
    with worker_id(tmp_path), pytest.raises(ResourceError, match="another --store"), worker_id(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file"), worker_id(tmp_path / "file"):
        pass

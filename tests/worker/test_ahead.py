import threading

import pytest

from layermesh.shared.errors import CheckpointError
from layermesh.shared.model.recipes import Copy
from layermesh.worker.ahead import BLOCKS_AHEAD, AheadChecker


class Block:
    def __init__(self, number, folder):
        self.name = f"layer {number}"
        source = type("Source", (), {"path": folder / f"{number}.safetensors"})()
        self.recipes = [Copy(source, "weight"), Copy(source, "bias")]


class Files:
    """Notes what is checked; the file of layer 1 is damaged."""

    def __init__(self):
        self.checked = []
        self.go_on = threading.Event()

    def check(self, path):
        self.go_on.wait(10)
        self.checked.append(path.stem)
        if path.stem == "1":
            raise CheckpointError("damaged")


@pytest.fixture
def files():
    return Files()


def test_files_are_checked_once_and_no_further_ahead_than_they_should(files, tmp_path):
    blocks = [Block(number, tmp_path) for number in range(9)]
    ahead = AheadChecker(files)
    files.go_on.set()
    ahead.follow(blocks)
    ahead.reach(blocks[0])
    ahead.reach(blocks[1])
    ahead._checkers.shutdown(wait=True)
    assert sorted(files.checked) == [str(number) for number in range(BLOCKS_AHEAD + 2)]


def test_the_end_waits_for_what_is_under_way_and_drops_the_rest(files, tmp_path):
    blocks = [Block(number, tmp_path) for number in range(9)]
    ahead = AheadChecker(files)
    ahead.expect(path for block in blocks for path in {recipe.source.path for recipe in block.recipes})
    threading.Timer(0.1, files.go_on.set).start()
    ahead.close()
    assert len(files.checked) < len(blocks)
    ahead.expect(blocks[0].recipes[0].source.path for _ in range(2))  # known already: nothing is begun any more

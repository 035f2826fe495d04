"""Models that this machine has by itself: in the user's folders, or fetched before."""

from layermesh.shared.checkpoints import Checkpoint, open_checkpoint
from layermesh.shared.errors import LayermeshError
from layermesh.shared.fingerprint import fingerprint_of
from layermesh.shared.library import resolve
from layermesh.shared.library.home import unpacked_folder


def find_own(name: str, revision: str | None, fingerprint: str) -> Checkpoint | None:
    """Return the checkpoint called `name` here if it is, tensor for tensor, the model with that `fingerprint`.

    None for any other, for one that cannot be read, and where there is none; nothing is ever fetched.
    """
    try:
        checkpoint = open_checkpoint(resolve(name, revision=revision, offline=True).path, unpacked_folder())
        return checkpoint if fingerprint_of(checkpoint) == fingerprint else None
    except (LayermeshError, OSError, ValueError):
        return None

"""The command line. Heavy imports happen inside the command that needs them."""

import gc
import os
import signal
import sys
import warnings

from layermesh.commands import bench, generate, membership, mesh, models, plan  # noqa: F401 - each adds its commands to the app
from layermesh.commands.app import app
from layermesh.interrupts import INTERRUPTED, catch_interrupts, end_interrupted, was_interrupted
from layermesh.reporting import prepare_streams
from layermesh.shared.light_imports import lighten_imports
from layermesh.shared.tls_floor import refuse_old_tls


def main() -> None:
    """Run the command line."""
    catch_interrupts()
    prepare_streams()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # remarks of one library about another are not for the user's eyes
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    refuse_old_tls()
    lighten_imports()
    try:
        app()
    except SystemExit as end:
        if was_interrupted():
            end_interrupted(said=end.code == INTERRUPTED)
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback from the interpreter's own end
        gc.freeze()  # nor a second spent on looking for garbage in torch and transformers
        gc.disable()

"""`layermesh generate --resume`: go on with an answer that was interrupted."""

from typing import cast

from layermesh.commands.opening import open_mesh
from layermesh.journals import old_journal
from layermesh.settings import RESULT_OPTIONS, OpeningOptions
from layermesh.shared.errors import UsageError


def resume_answer(answer_id: str | None, model: str | None, options: OpeningOptions, *, as_json: bool, quiet: bool) -> None:
    """Give out an answer from its beginning: what there was of it, then the rest.

    The model is opened as it was; `options` say where it may run. Raises UsageError where there is no such answer.
    """
    with old_journal(answer_id) as journal:
        from layermesh.coordinator.journal import read_journal
        from layermesh.shared.library.names import asked

        beginning, _ = read_journal(journal)
        if model is not None and asked(model) != beginning.model:
            raise UsageError(f"this answer is made by {beginning.model}, not by {model}. Leave out --model.")
        as_before = {name: value for name, value in beginning.options.items() if name in RESULT_OPTIONS}
        opening = cast("OpeningOptions", {**options, **as_before})
        with open_mesh(beginning.model, opening, quiet=quiet) as mesh:
            from layermesh.cli_generate import print_answer

            print_answer(mesh, None, {}, journal, as_json=as_json, quiet=quiet)

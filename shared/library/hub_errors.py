"""What huggingface_hub raises, said in our words."""

from collections.abc import Iterator
from contextlib import contextmanager

from layermesh.shared.errors import ModelError, ModelNotFoundError
from layermesh.shared.library.names import HubName


class HubUnreachableError(ModelError):
    """The hub did not answer, or not in a way that says anything about the model."""


def http_error() -> type[Exception]:
    """Return the root of the HTTP client's errors: httpx' or httpx2's, by the release of huggingface_hub."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__bases__ if base is not OSError)


def may_pass(error: Exception) -> bool:
    """Return whether trying again can help: the connection broke, or the server has too much to do."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in {408, 429}
    return isinstance(error, http_error())


@contextmanager
def hub_errors(name: HubName, revision: str | None) -> Iterator[None]:
    """Turn the hub's errors about `name` into ModelNotFoundError, HubUnreachableError or ModelError."""
    from huggingface_hub import errors as hub

    try:
        yield
    except hub.GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: its owner wants to be asked first. Ask for access on the model's page, then set "
            "HF_TOKEN to a token of that account (or run `hf auth login`)."
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"the hub has no model {name.repo_id}, or not for you. Check the spelling; if it is private, set HF_TOKEN."
        ) from error
    except hub.RevisionNotFoundError as error:
        raise ModelNotFoundError(f"{name.repo_id} has no revision {revision!r}. Check --revision.") from error
    except hub.OfflineModeIsEnabled as error:
        raise HubUnreachableError(f"{name} is not asked for on the hub: HF_HUB_OFFLINE is set.") from error
    except hub.HFValidationError as error:
        raise ModelNotFoundError(f"{name.repo_id} cannot be the name of a model on the hub: {error}") from error
    except (hub.LocalEntryNotFoundError, hub.FileMetadataError, http_error()) as error:
        raise _unanswered(name, error) from error
    except ValueError as error:  # JSON that is none: a portal's page, or HF_ENDPOINT is something else
        raise ModelError(f"what the hub answered about {name} cannot be read ({error}). Check HF_ENDPOINT.") from error
    except OSError as error:
        if error.errno is not None:  # the disk's
            raise
        raise _unanswered(name, error) from error


def _unanswered(name: HubName, error: Exception) -> ModelError:
    from huggingface_hub.errors import HfHubHTTPError

    cause = error.__cause__ if isinstance(error.__cause__, Exception) and not may_pass(error) else error
    if isinstance(cause, HfHubHTTPError) and not may_pass(cause):
        status = cause.response.status_code
        advice = "Check HF_TOKEN" if status in {401, 403} else "Look at the model's page"
        return ModelError(f"the hub refused {name} with status {status}. {advice}.")
    return HubUnreachableError(
        f"cannot reach the hub for {name} ({_first_line(cause)}). Check the network and HF_ENDPOINT and try again: "
        "what is here already is kept. `layermesh pull smollm2-135m` works without the hub."
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__

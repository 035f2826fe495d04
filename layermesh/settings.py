"""What a user may say about a model and an answer, and what of it can be refused before anything heavy is imported."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeGuard

from layermesh.shared.addresses import parse_address
from layermesh.shared.errors import UsageError
from layermesh.shared.quant.sizes import DEFAULT_GROUP, GROUP_SIZES, KINDS
from layermesh.shared.units import parse_bytes

if TYPE_CHECKING:
    from layermesh.shared.library import Progress

DTYPES: Final = ("float32", "bfloat16", "float16")
MAX_CONTEXT: Final = 2**31 - 1
MAX_SESSIONS: Final = 32  # aboard at once, unless somebody says otherwise
RESULT_OPTIONS: Final = ("dtype", "fast_path", "quantize", "group_size", "revision")  # those that change what is computed
_OF_TEMPLATES: Final = ("chat_template", "chat_template_kwargs", "tools", "documents")
_SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")

Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]


class OpeningOptions(TypedDict, total=False):
    """How a model is opened.

    `device` is "cpu", "cuda" or "cuda:N" (None: the best there is), budgets are bytes or text such as "4GB" (None: most of
    what is free), `dtype` is "float32", "bfloat16" or "float16" (None: the checkpoint's own where the device does it
    well). `fast_path` False runs transformers' own layers where layermesh has leaner ones. `quantize` "int4" or "int8" packs
    the model once and runs it so, `group_size` weights (32, 64 or 128) to a scale. `context` is the most tokens of a prompt and
    its answer (None: what the model states). `revision` is the branch, tag or commit of
    a hub model; `offline` fetches nothing; `progress` watches downloads and packing.

    `workers` are addresses (HOST:PORT) of machines that run a part; others are found where `discover` is not False. `spread`
    gives every one of them a part, even where fewer would be faster. `alone` True looks for nobody; left out, it is what
    LAYERMESH_ALONE says. `tell` is given what a user should know meanwhile, one line at a time.
    """

    device: str | None
    device_memory: int | str | None
    host_memory: int | str | None
    dtype: str | None
    fast_path: bool
    quantize: str | None
    group_size: int | None
    context: int | None
    revision: str | None
    offline: bool
    progress: "Progress | None"
    workers: Sequence[str]
    discover: bool
    spread: bool
    alone: bool | None
    tell: Callable[[str], None]


class GenerationSettings(TypedDict, total=False):
    """How an answer is made; what is left out or None comes from the model's generation_config.json.

    `max_new_tokens` is the most tokens of the answer (512 unless given). `temperature` 0 takes the likeliest token, else one
    is drawn: among the `top_k` likeliest, among the likeliest that make up the share `top_p`, among those at least `min_p`
    times as likely as the likeliest; the same `seed` draws the same. `repetition_penalty` above 1 repeats less. `stop` is a
    text, or several, before which the answer ends. `system` tells the model its role, `raw` leaves the chat template out,
    and `ignore_eos` goes on past the model's own end.

    `chat_template` is the name of one of the model's templates, or a template itself. `tools` and `documents` are lists of
    JSON objects for the template, and `chat_template_kwargs` are more variables of it, such as {"enable_thinking": False}.
    """

    max_new_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | None
    stop: str | Sequence[str]
    system: str | None
    raw: bool
    ignore_eos: bool
    chat_template: str | None
    chat_template_kwargs: Mapping[str, Any] | None
    tools: Sequence[Mapping[str, Any]] | None
    documents: Sequence[Mapping[str, Any]] | None


def check_names(given: Mapping[str, object], known: type, what: str) -> None:
    """Raise TypeError for names that the TypedDict `known` has not."""
    unknown = given.keys() - known.__annotations__.keys()
    if unknown:
        raise TypeError(f"{what} takes no {', '.join(sorted(unknown))}; it takes {', '.join(known.__annotations__)}")


def check_opening(options: OpeningOptions) -> None:
    """Raise UsageError for options that no model could be opened with."""
    device_budget(options)
    host_budget(options)
    dtype = options.get("dtype")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"no dtype {dtype!r}; say {', '.join(DTYPES)}.")
    packed_form(options)
    context = options.get("context")
    if context is not None and not (is_whole(context) and 1 <= context <= MAX_CONTEXT):
        raise UsageError(f"a context is a whole number of tokens, 1 to {MAX_CONTEXT}, not {context!r}. Set --context 8192.")
    for address in options.get("workers", ()):
        parse_address(address)
    if options.get("alone") and (options.get("workers") or options.get("spread")):
        raise UsageError("--alone looks for no other machines. Leave it out, or --worker and --spread.")


def is_alone(options: OpeningOptions) -> bool:
    """Whether no other machine is to be looked for."""
    alone = options.get("alone")
    if alone is None:
        alone = os.environ.get("LAYERMESH_ALONE", "").lower() not in ("", "0", "false", "no")
    return alone or not (options.get("workers") or options.get("discover", True))


def packed_form(options: OpeningOptions) -> tuple[int, int] | None:
    """Return the bits and the group size to pack to; None: nobody asked. Raises UsageError."""
    kind, group_size = options.get("quantize"), options.get("group_size")
    if kind is None and group_size is None:
        return None
    if kind is None:
        raise UsageError("a group size goes with --quantize. Say --quantize int4 as well.")
    return check_packing(kind, group_size)


def check_packing(kind: str, group_size: int | None) -> tuple[int, int]:
    """Return the bits and the group size that these say; raises UsageError."""
    if kind not in KINDS:
        raise UsageError(f"nothing is packed to {kind!r}; say {' or '.join(KINDS)}.")
    if group_size is not None and group_size not in GROUP_SIZES:
        raise UsageError(f"weights share a scale in groups of {', '.join(map(str, GROUP_SIZES))}, not {group_size}.")
    return KINDS[kind], group_size or DEFAULT_GROUP


def device_budget(options: OpeningOptions) -> int | None:
    """Return the bytes to use on the device; None: nobody said. Raises UsageError."""
    return _budget(options.get("device_memory"), "--device-memory")


def host_budget(options: OpeningOptions) -> int | None:
    """Return the bytes to use on the host; None: nobody said. Raises UsageError."""
    return _budget(options.get("host_memory"), "--host-memory")


def check_prompt(prompt: Prompt, *, raw: bool) -> None:
    """Raise UsageError for a prompt in which nothing is said."""
    if not (prompt.strip() if isinstance(prompt, str) and not raw else prompt):
        raise UsageError("the prompt is empty. Say something to the model.")


def check_length(max_new_tokens: int | None) -> None:
    """Raise UsageError for a number of tokens that no answer can have."""
    if max_new_tokens is not None and not (is_whole(max_new_tokens) and max_new_tokens >= 1):
        raise UsageError(f"an answer has a whole number of tokens and at least one, not {max_new_tokens!r}.")


def check_sessions(max_sessions: int) -> None:
    """Raise UsageError for a number of sessions that cannot share a sweep."""
    if not (is_whole(max_sessions) and max_sessions >= 1):
        raise UsageError(f"at least one session is aboard of a sweep, and a whole number of them, not {max_sessions!r}.")


def check_batch(input_path: str | None, output_path: str | None, sessions: int | None, prompt: str | None) -> None:
    """Raise UsageError for flags that do not go together with --input, or without it."""
    if input_path is not None and prompt is not None:
        raise UsageError("give a prompt or --input, not both.")
    if input_path is None and (output_path is not None or sessions is not None):
        raise UsageError("--output and --sessions are for many prompts. Give these with --input prompts.jsonl.")
    if sessions is not None:
        check_sessions(sessions)


def check_resuming(settings: GenerationSettings, input_path: str | None, prompt_ids: str | None) -> None:
    """Raise UsageError for what does not go with an answer that has begun."""
    if input_path is not None or prompt_ids is not None or any(value not in (None, False, ()) for value in settings.values()):
        raise UsageError("an answer goes on with the prompt and the settings that it began with. Say --resume without others.")


def check_sampling(settings: GenerationSettings) -> None:
    """Raise UsageError for values that no token can be chosen with. Imports torch if there are any."""
    if all(value is None for value in sampling(settings).values()):
        return
    from layermesh.coordinator.sampling import SamplingParams

    try:
        SamplingParams.resolve({}, **sampling(settings))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{error}.") from error


def chat_options(settings: GenerationSettings) -> dict[str, Any]:
    """Return those of the settings that a chat template is rendered with."""
    return {name: value for name, value in settings.items() if name in _OF_TEMPLATES and value is not None}


def sampling(settings: GenerationSettings) -> dict[str, Any]:
    """Return those of the settings that decide which token follows."""
    return {name: value for name, value in settings.items() if name in _SAMPLING}


def is_whole(value: object) -> TypeGuard[int]:
    """Whether `value` is a whole number, and not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def _budget(size: int | str | None, flag: str) -> int | None:
    try:
        num_bytes = None if size is None else parse_bytes(size)
    except (ValueError, ArithmeticError) as error:
        raise UsageError(f"{flag}: {error}.") from error
    if num_bytes is not None and num_bytes > sys.maxsize:
        raise UsageError(f"{flag}: no machine has {str(size)[:40]} of memory. Write it like 512MB, 4GB or 1.5GiB.")
    return num_bytes

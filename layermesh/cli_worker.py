"""`layermesh worker`: run layers for whoever coordinates."""

import asyncio
import signal
import socket
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from layermesh.interrupts import INTERRUPTED
from layermesh.pairing import JoinOptions, pair
from layermesh.settings import OpeningOptions, device_budget, host_budget
from layermesh.shared.addresses import format_address, is_unspecified
from layermesh.shared.errors import UsageError
from layermesh.shared.interfaces import machine_addresses
from layermesh.shared.library.home import home
from layermesh.shared.machine_profile import MachineProfile
from layermesh.shared.tested_versions import newer_than_tested
from layermesh.shared.units import format_bytes, format_seconds, parse_bytes
from layermesh.terminal import StatusLine, harmless, note
from layermesh.worker.card_memory import CardMemory
from layermesh.worker.host import LiveStage
from layermesh.worker.identity import worker_place
from layermesh.worker.kept import kept_bytes
from layermesh.worker.listening import check_host
from layermesh.worker.machine import pick_device, return_memory_promptly
from layermesh.worker.measuring import profile_machine
from layermesh.worker.opening import StageBudget, choose_budget
from layermesh.worker.profile_cache import ProfileCache
from layermesh.worker.server import Settings, WorkerServer
from layermesh.worker.store import Store

LOOK_SECONDS = 0.5  # between two drawings of the status line
MAX_NAME = 63
LEAST_BUDGET_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What was said on the command line."""

    name: str | None
    host: str | None
    port: int | None
    announce: bool
    store: Path | None
    store_limit: str | None
    quiet: bool
    joining: JoinOptions = field(default_factory=JoinOptions)


def run_worker(options: OpeningOptions, worker: WorkerOptions) -> int:
    """Serve until a signal comes, and return the exit code.

    Raises UsageError for a port that is taken or a name that nobody could write, ResourceError for a device that is not here,
    AuthenticationError for an invitation that does not hold.
    """
    return_memory_promptly()
    name = _name(worker.name)
    device = pick_device(options.get("device"))
    budget, kept = _budget(options, device)
    limit_bytes = None if worker.store_limit is None else _bytes(worker.store_limit, "--store-limit")
    folder = worker.store or home() / "store"
    with ExitStack() as held:
        place = held.enter_context(worker_place(folder))
        membership = pair(place, name, worker.joining)
        check_host(worker.host, is_paired=membership.credentials() is not None)
        if device.type != "cpu":
            held.callback(CardMemory(device, budget.device_bytes).close)
        store = Store(folder, limit_bytes)
        for known in (budget.notice, None if budget.limit is None else f"memory is within a limit: {budget.limit}"):
            if known is not None and not worker.quiet:
                note(f"note: {known}")
        if not worker.quiet:
            for notice in newer_than_tested():
                note(f"note: {notice}")
            note("measuring this machine …")
        cache = ProfileCache()
        profile = profile_machine(device, folder, budget.device_bytes, budget.host_bytes, cache)
        settings = Settings(
            place.read_id(), name, device, budget, worker.host, worker.port, worker.announce, kept, membership=membership
        )
        return asyncio.run(_serve(WorkerServer(settings, profile, store, cache), settings, profile, quiet=worker.quiet))


async def _serve(server: WorkerServer, settings: Settings, profile: MachineProfile, *, quiet: bool) -> int:
    stopped: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, INTERRUPTED)):
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, _stop, stopped, code)
    line = StatusLine()
    async with server:
        note(_introduction(settings, profile, server))
        while not stopped.done():
            await asyncio.wait([stopped], timeout=LOOK_SECONDS)
            if not quiet:
                line.show("; ".join(map(_describe, server.stages)) or "waiting for work")
        line.clear()
        if not quiet:
            note("leaving …")
    return stopped.result()


def _stop(stopped: "asyncio.Future[int]", code: int) -> None:
    if not stopped.done():
        stopped.set_result(code)


def _introduction(settings: Settings, profile: MachineProfile, server: WorkerServer) -> str:
    rates = [f"disk {format_bytes(profile.disk_rate)}/s"]
    if profile.weight_rates:
        form, rate = max(profile.weight_rates.items(), key=lambda item: item[1])
        rates.append(f"{form} weights {format_bytes(rate)}/s")
    own = next(iter(machine_addresses()), socket.gethostname()) if settings.mesh else "127.0.0.1"
    address = format_address(own if settings.host is None or is_unspecified(settings.host) else settings.host, server.port)
    paired = "" if settings.mesh else " Not paired: only this machine uses it. For others, say `layermesh invite` on theirs."
    return (
        f"worker {settings.name} at {address}: {settings.device}, {format_bytes(profile.device_bytes)} of memory, "
        f"{', '.join(rates)}. Ctrl-C ends it.{paired}"
    )


def _describe(live: LiveStage) -> str:
    span = live.key.span
    text = f"{harmless(live.model)[:40]} layers {span.start}–{span.end - 1}, {len(live.sessions)} sessions"
    if live.runner.seconds_per_token:
        text += f", {format_seconds(live.runner.seconds_per_token)}/token"
    streamed = live.residency.streamed_bytes
    return text + (f", {format_bytes(streamed)} from disk each" if streamed else "")


def _name(name: str | None) -> str:
    chosen = name or socket.gethostname().partition(".")[0] or "worker"
    if len(chosen) > MAX_NAME or not chosen.isprintable() or not chosen.strip():
        raise UsageError(f"a worker's name is a short line of text, not {chosen[:80]!r}. Say another --name.")
    return chosen


def _budget(options: OpeningOptions, device: torch.device) -> tuple[StageBudget, int]:
    """Return what stages may take, and what is set aside of the memory allowed for what they have made."""
    budget = choose_budget(device, device_budget(options), host_budget(options))
    if budget.device_bytes < LEAST_BUDGET_BYTES:
        raise UsageError(
            f"{format_bytes(budget.device_bytes)} of memory hold no layer of any model. Give it more: {budget.flag} 1GB."
        )
    if device.type == "cpu":
        kept = kept_bytes(budget.device_bytes)
        return replace(budget, device_bytes=budget.device_bytes - kept), kept
    kept = kept_bytes(budget.host_bytes or 0)
    return replace(budget, host_bytes=None if budget.host_bytes is None else budget.host_bytes - kept), kept


def _bytes(text: str, flag: str) -> int:
    try:
        return parse_bytes(text)
    except (ValueError, ArithmeticError) as error:
        raise UsageError(f"{flag}: {error}.") from error

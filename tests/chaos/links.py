"""A way to a worker that can be cut, slow or narrow: a TCP proxy, one in a thread for all links of a test."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil

PIECE_BYTES = 16 << 10


class Link:
    """The way to a port of this machine. What is on it while it is cut comes later, as TCP would send it once more.

    `there` and `back` are whether the two directions are open, `delay` seconds of each, `rate` bytes a second of each.
    Processes whose ids are in `closed_to` get nothing through at all.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.there = self.back = True
        self.delay = 0.0
        self.rate = 0.0
        self.closed_to: set[int] = set()
        self._target = target

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def open(self) -> asyncio.Server:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # nobody listens, as the caller will see
            writer.close()
            return
        caller = _process_at(writer.get_extra_info("peername")[1])
        ways = [
            asyncio.create_task(self._pass(reader, there_writer, lambda: self.there and caller not in self.closed_to)),
            asyncio.create_task(self._pass(there_reader, writer, lambda: self.back and caller not in self.closed_to)),
        ]
        with suppress(asyncio.CancelledError):  # which the server would take for a fault
            await asyncio.wait(ways)
        for way in ways:
            way.cancel()
        for end in (writer, there_writer):
            end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_open: Callable[[], bool]) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)
        reading = asyncio.create_task(self._read(reader, pieces))
        with suppress(OSError), ending(reading):
            while (piece := await pieces.get())[1]:
                at, data = piece
                await asyncio.sleep(max(0.0, at + self.delay - time.monotonic()) + (len(data) / self.rate if self.rate else 0))
                while not is_open():
                    await asyncio.sleep(0.01)
                writer.write(data)
                await writer.drain()
        while not is_open():  # nor does the end of a connection get through
            await asyncio.sleep(0.01)
        writer.close()

    @staticmethod
    async def _read(reader: asyncio.StreamReader, pieces: "asyncio.Queue[tuple[float, bytes]]") -> None:
        data = b" "
        while data:
            try:
                data = await reader.read(PIECE_BYTES)
            except OSError:
                data = b""
            await pieces.put((time.monotonic(), data))


def _process_at(port: int) -> int | None:
    """Whose end of a connection within this machine has this port."""
    ends = psutil.net_connections("tcp")  # those of gRPC are of the sixth version, mapped
    return next((end.pid for end in ends if end.laddr.port == port), None)


@contextmanager
def ending(task: "asyncio.Task[None]") -> Iterator[None]:
    try:
        yield
    finally:
        task.cancel()


@contextmanager
def links(ports: Sequence[int]) -> Iterator[list[Link]]:
    """A link to each of these ports."""
    made = [Link(port) for port in ports]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def close() -> None:
        for server in servers:
            server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # for transports that were aborted to close their sockets

    servers = [asyncio.run_coroutine_threadsafe(link.open(), loop).result(10) for link in made]
    try:
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

"""How long another machine may say nothing in the middle of something."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import Final, TypeVar

from layermesh.shared.errors import MeshError

T = TypeVar("T")
PATIENCE_SECONDS: Final = 120.0  # a slow disk has gigabytes to hash before the first byte of a part that is gone on with


async def without_silence(items: AsyncIterable[T], who: str, seconds: float = PATIENCE_SECONDS) -> AsyncIterator[T]:
    """Yield `items` as they come; raises MeshError where `who` sends none for `seconds`."""
    iterator = aiter(items)
    while True:
        try:
            async with asyncio.timeout(seconds):
                item = await anext(iterator)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise MeshError(f"{who} sent nothing for {seconds:.0f} s. Is it asleep, or cut off?") from error
        yield item

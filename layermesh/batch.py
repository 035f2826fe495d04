"""Many prompts from a file, and where their answers go."""

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from layermesh.ask import Ask
from layermesh.batch_input import read_asks
from layermesh.batch_output import AnswerFile
from layermesh.settings import GenerationSettings
from layermesh.terminal import print_json_line

STDOUT: Final = "-"


@dataclass(frozen=True, slots=True)
class Batch:
    """The prompts of a file; `output` is None where the answers go to standard output."""

    asks: list[Ask]
    output: AnswerFile | None

    @classmethod
    def open(cls, input_path: str, output_path: str | None, settings: GenerationSettings) -> Self:
        """Read the prompts and what an earlier run left of their answers. Raises UsageError."""
        asks = read_asks(input_path, settings)
        return cls(asks, None if output_path in (None, STDOUT) else AnswerFile(str(output_path), asks))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.output is not None:
            self.output.close()

    @property
    def waiting(self) -> list[Ask]:
        """Those that have no answer yet."""
        finished = self.output.finished if self.output is not None else frozenset[int]()
        return [ask for ask in self.asks if ask.index not in finished]

    def begin(self, model: str) -> None:
        """Make ready to write answers of `model`. Raises UsageError where another one's are there."""
        if self.output is not None:
            self.output.begin(model)

    def write(self, line: dict[str, Any]) -> None:
        """Give out one answer."""
        if self.output is not None:
            self.output.append(line)
        else:
            print_json_line(line)

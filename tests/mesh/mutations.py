"""Messages that nobody would send, made of valid ones: fields changed to what hurts, or bytes that were damaged."""

import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

WORDS = (
    *("", "\0", "../" * 20 + "etc/passwd", "/etc/passwd", "..", "x" * 10_000, "\u202e\x1b[2J", "manifest", "rest", "layer 0"),
    *("layer -1", "unix:/tmp/x", "127.0.0.1:1", "[::1]:0", "0" * 64, "f" * 64, "float32", "load", "{}%s%n"),
)
NUMBERS = (0, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
RATES = (0.0, -1.0, 1e308, float("inf"), float("-inf"), float("nan"), 5e-324)
MOST_BYTES = 3 << 20  # of a message, below what a receiver takes


def mutated(message: Message, rng: random.Random) -> bytes:
    """Return `message` with some of its fields changed, or with its bytes damaged."""
    changed = type(message)()
    changed.CopyFrom(message)
    for _ in range(rng.randint(1, 3)):
        _change(changed, rng)
    data = changed.SerializeToString()
    return damaged(data, rng) if rng.random() < 0.4 else data[:MOST_BYTES]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return `data` with bits flipped, a piece cut out, doubled or put in, or random bytes of no origin."""
    start = rng.randrange(len(data) + 1)
    end = min(start + rng.choice([1, 2, 9, 200]), len(data))
    match rng.randrange(5):
        case 0:
            flipped = bytearray(data or b"\0")
            for _ in range(rng.randint(1, 8)):
                flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case 1:
            return data[:start] + data[end:]
        case 2:
            return (data[:end] + data[start:])[:MOST_BYTES]
        case 3:
            return data[:start] + rng.randbytes(rng.choice([1, 5, 300])) + data[start:]
        case _:
            return rng.randbytes(rng.randrange(64))


def _change(message: Message, rng: random.Random) -> None:
    """Set a field, here or further inside, to something that hurts, or take it away."""
    field = rng.choice(message.DESCRIPTOR.fields)
    if rng.random() < 0.1:
        message.ClearField(field.name)
    elif _is_map(field):
        getattr(message, field.name)[rng.choice(WORDS)] = rng.choice(RATES)
    elif field.is_repeated:
        _change_list(message, field, rng)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        inner = getattr(message, field.name)
        inner.SetInParent()
        _change(inner, rng)
    else:
        setattr(message, field.name, _value(field, rng))


def _change_list(message: Message, field: FieldDescriptor, rng: random.Random) -> None:
    values: Any = getattr(message, field.name)
    number = rng.choice([1, 1, 2, 17, 1100])
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        if values and rng.random() < 0.7:
            _change(rng.choice(values), rng)
        else:
            values.extend(type(values.add())() for _ in range(number))
    else:
        values.extend(_value(field, rng) for _ in range(number))


def _value(field: FieldDescriptor, rng: random.Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            word = rng.choice(WORDS)
            if field.type == FieldDescriptor.TYPE_BYTES:
                return rng.choice([b"", word.encode(), bytes(rng.choice([1, 1000, 1 << 20])), rng.randbytes(40)])
            return word
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return rng.choice(RATES)
        case FieldDescriptor.CPPTYPE_UINT32:
            return rng.choice(NUMBERS) % 2**32
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice([0, 1, 2, 7, 8, 2**31 - 1, -1])
        case _:
            return rng.choice(NUMBERS)


def _is_map(field: FieldDescriptor) -> bool:
    return field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry

"""Multicast what no worker would say, as fast as it goes for a moment: random bytes, cut packets, services with odd records."""

import random
import socket
import sys

from zeroconf import ServiceInfo
from zeroconf._protocol.outgoing import DNSOutgoing  # what lies behind the public face lets us say anything
from zeroconf.const import _FLAGS_AA, _FLAGS_QR_RESPONSE

from layermesh.shared.announcement import SERVICE_TYPE

GROUP = ("224.0.0.251", 5353)
TEXTS = [
    b"", b"\x00", b"\xff" * 300, b"\x03id", b"\x05id=\xff\xfe", b"\x08id=evil", b"\x07id=evil\x0aversion=-1",
    b"\x07id=evil\x09name=\x1b[2J\x09version=1", b"\x07id=evil\x0bversion=999\x05name=", b"\x07id=evil" + b"\x40" + b"x" * 64,
    b"\x07id=evil" + b"".join(b"\xc8" + bytes(200) for _ in range(12)) + b"\x06name=x\x09version=1",
]  # fmt: skip


def packets(rng: random.Random) -> list[bytes]:
    made = [rng.randbytes(rng.randrange(1, 1400)) for _ in range(300)]
    for number in range(300):
        text = rng.choice([*TEXTS, rng.randbytes(rng.randrange(60))])
        label = rng.choice(["evil", "a.b", "x" * 63, f"evil{number}", "\u202eevil", "den"])
        info = ServiceInfo(
            SERVICE_TYPE, f"{label}.{SERVICE_TYPE}", port=rng.choice([0, 1, 65535]), properties=text,
            server=rng.choice(["evil.local.", f"layermesh-{label[:40]}.local."]),
            addresses=[rng.randbytes(rng.choice([4, 16])) for _ in range(rng.randrange(20))],
        )  # fmt: skip
        out = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
        for record in (info.dns_pointer(), info.dns_service(), info.dns_text(), *info.dns_addresses()):
            if rng.random() < 0.8:
                out.add_answer_at_time(record, 0)
        made += [packet[: rng.randrange(12, len(packet) + 1)] if rng.random() < 0.3 else packet for packet in out.packets()]
    return made


def main(seed: int, address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sender.bind((address, 5353))
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        for packet in packets(random.Random(seed)):
            sender.sendto(packet, GROUP)
    print(f"sent with seed {seed}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

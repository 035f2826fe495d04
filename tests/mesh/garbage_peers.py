"""Peers that say nonsense, or nothing: `garbage_peers.py HOST PORT COUNT SEED` holds all of them open until stdin ends."""

import random
import socket
import sys

GREETINGS = (
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01",
    b"SSH-2.0-x\r\n",
    b"\x00" * 4096,
)

host, port, count, seed = sys.argv[1], *map(int, sys.argv[2:])
chance = random.Random(seed)
peers = []
for number in range(count):
    peer = socket.create_connection((host, port), timeout=10)
    greeting = GREETINGS[number % len(GREETINGS)]
    peer.sendall(greeting + (chance.randbytes(chance.randrange(2000)) if number % 2 else b""))
    peers.append(peer)
print(len(peers), flush=True)
sys.stdin.read()

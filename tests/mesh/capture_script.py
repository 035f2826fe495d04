"""Keep every packet that passes the interfaces of this network namespace: `capture_script.py FILE`, until stdin ends."""

import select
import socket
import sys
from pathlib import Path

EVERYTHING = 3  # ETH_P_ALL

with (
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING)) as packets,
    Path(sys.argv[1]).open("wb") as file,
):
    packets.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE: nothing may be missed
    print("ready", flush=True)
    while True:
        readable, _, _ = select.select([packets, sys.stdin], [], [])
        if packets in readable:
            file.write(packets.recv(1 << 17))
        elif not sys.stdin.read(1):
            break

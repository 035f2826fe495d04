"""Announce a worker until stdin ends: `announce_script.py ID NAME PORT`; says when it began, by the clock of all hosts."""

import logging
import sys
import time

from layermesh.shared.announcement import Announcement
from layermesh.worker.announcing import Announcer

logging.basicConfig(format="%(levelname)s %(message)s")
worker_id, name, port = sys.argv[1:]
began = time.monotonic()
with Announcer(Announcement(worker_id, name, 1, int(port)), poll_seconds=0.2):
    print(began, flush=True)
    sys.stdin.read()

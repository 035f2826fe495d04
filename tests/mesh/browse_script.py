"""Browse until stdin ends, and say in a line of JSON what is found whenever that changes, and since when."""

import json
import threading
import time
from dataclasses import asdict

from layermesh.coordinator.browsing import Browser, Found


def follow(browser: Browser) -> None:
    seen: Found | None = None
    problem = None
    while True:
        if (browser.found(), browser.problem) != (seen, problem):
            seen, problem = browser.found(), browser.problem
            print(json.dumps([time.monotonic(), [asdict(each) for each in seen], problem]), flush=True)
        browser.wait(0.05, lambda found: found != seen)  # noqa: B023


with Browser(poll_seconds=0.2) as browsing:
    threading.Thread(target=follow, args=[browsing], daemon=True).start()
    input()

"""R11: sixteen answers at a time, and a worker killed again and again meanwhile."""

import random
import threading
import time

from tests.architectures.tiny import build
from tests.chaos.meshes import open_mesh, wait_for_all
from tests.mesh.meshes import answer_alone

NUM_SESSIONS = 16
NUM_TOKENS = 24
HANGING_SECONDS = 60.0  # without any answer


class Killer(threading.Thread):
    """Kills a worker every `period` seconds and starts it again a little later, until it is told to stop."""

    def __init__(self, workers, period, chance):
        super().__init__(daemon=True)
        self._workers, self._period, self._chance = workers, period, chance
        self._stop_it = threading.Event()
        self.num_kills = 0

    def run(self):
        while not self._stop_it.wait(self._period * 0.75):
            victim = self._chance.choice(self._workers)
            victim.end()
            self.num_kills += 1
            self._stop_it.wait(self._period * 0.25)
            victim.start()

    def stop(self):
        self._stop_it.set()
        self.join(120)


def test_sixteen_sessions_lose_nothing(tmp_path, all_there, report):
    seconds, period = (120.0, 20.0) if report.full else (12.0, 4.0)
    model = build("llama", tmp_path / "model")
    prompts = [[5 + number, 6, 7] for number in range(NUM_SESSIONS)]
    expected = [answer_alone(model, prompt, NUM_TOKENS) for prompt in prompts]
    assert len({tuple(one) for one in expected}) == NUM_SESSIONS
    settings = {"max_new_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
    outcomes = report.series("R11 sixteen sessions").outcomes
    heard = [time.monotonic()]

    def answer():
        while time.monotonic() < deadline:
            for finished in mesh.stream_many(prompts * 4, max_sessions=NUM_SESSIONS, **settings):
                heard.append(time.monotonic())
                if finished.error is not None:
                    outcomes.append(f"lost ({finished.error})")
                else:
                    right = finished.answer.token_ids == expected[finished.index % NUM_SESSIONS]
                    outcomes.append("right" if right else "mixed")

    with open_mesh(model, [worker.address for worker in all_there]) as mesh:
        wait_for_all(mesh, 3)
        deadline = time.monotonic() + seconds
        answering = threading.Thread(target=answer, daemon=True)
        killer = Killer(all_there, period, random.Random(report.seed))
        answering.start()
        killer.start()
        while answering.is_alive():
            answering.join(1)
            assert time.monotonic() - heard[-1] < HANGING_SECONDS, f"hung after {len(outcomes)} answers"
        killer.stop()
    report.series("R11 kills meanwhile").outcomes += ["kill -9"] * killer.num_kills
    assert killer.num_kills >= (5 if report.full else 2)
    assert set(outcomes) == {"right"}
    assert len(outcomes) >= 4 * NUM_SESSIONS

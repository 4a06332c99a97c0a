"""The agent of clock.rs in Python: tells when it began, and when each turn reached it."""

import time

BEGAN = time.monotonic_ns()

import json
import os
import sys


def say(frame):
    sys.stdout.write(json.dumps(frame) + "\n")
    sys.stdout.flush()


say({"ready": True})
for line in sys.stdin:
    read = time.monotonic_ns()
    turn = json.loads(line)
    say({"turn": turn["turn"], "delta": f"{os.getpid()} {BEGAN} {read}"})
    if not (turn["text"].startswith("hang") and turn["attempt"] == 1):
        say({"turn": turn["turn"], "done": ""})

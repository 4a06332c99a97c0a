"""An agent that does what each message says. Speaks Dormouse's `jsonl` adapter.

    count               turn N of life GENERATION            (proves that an instance is still warm)
    stream N MS         N pieces "0 1 2 …", one each MS; done with the pieces joined
    stream-until PATH   a numbered piece each 10 ms until the file is there; then done
    wait PATH           silent until the file is there; then "waited"
    quiet MS            silent for MS; then "quiet"
    silent              never answers
    hold SPAN MS        asks to stay awake for SPAN, is silent for MS; then "held"
    keep SPAN           asks to stay awake for SPAN and answers "kept" at once
    crash CODE          exits with CODE, each time; crash-once CODE: at the first attempt only
    half CODE           says half of a reply, then exits with CODE at the first attempt
    signal N            ends itself with the signal, each time
    fail TEXT           says that the turn failed; fail-once TEXT: with a retry at the first attempt
    daemonize           leaves a process in a session of its own; replies with its number
    eat MIB             takes that much memory, touches it, and answers "ate"
    eat-twice MIB       the same, gives it back, and takes as much again; answers "ate twice"
    eat-child MIB CODE  a child takes that much; exits with CODE, or goes on if that is "on"
    segv                reads where there is no memory
    spawn N             starts so many children that stay; "spawned", if all could be started
    port-taken          listens on a port that is in use, and does not expect that
    no-space            writes to a disk that is full, and does not expect that
    garbage             writes lines that are no frames, then "tidy"
    big BYTES           replies with that many bytes
    pid, environ NAME   replies with its process number, or a variable's value
    anything else       replies with the text itself

Options: --no-ready, --ready-when PATH, --ready-after MS, --die-at-start CODE, --ignore-sigterm,
--slow-exit MS, --crash-on WORD. With AGENT_LOG in the environment each turn is written there as one
line of JSON before the first byte of its reply, and so are starts, ends of turns and SIGTERM.
"""

import argparse
import ctypes
import json
import os
import signal
import socket
import sys
import time

LOG = None
INSTANCE, _, GENERATION = os.environ.get("DORMOUSE_INSTANCE", "?#0").rpartition("#")


def log(what, **facts):
    """One write with O_APPEND: lines of several agents never mix."""
    if LOG is not None:
        line = {"what": what, "session": INSTANCE, "generation": int(GENERATION),
                "pid": os.getpid(), "at_ms": time.time_ns() // 1_000_000, **facts}
        os.write(LOG, (json.dumps(line) + "\n").encode())


def say(**frame):
    os.write(1, (json.dumps(frame) + "\n").encode())


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.005)


def end_by(number):
    signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
    os.kill(os.getpid(), number)
    signal.pause()


def leave_a_daemon():
    """A grandchild in a session of its own, as a careless program makes them."""
    read_fd, write_fd = os.pipe()
    if os.fork() == 0:
        os.setsid()
        pid = os.fork()
        if pid != 0:
            os.write(write_fd, str(pid).encode())
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for descriptor in range(64):
            try:
                os.close(descriptor)
            except OSError:
                pass
        while True:
            time.sleep(3600)
    os.wait()
    return os.read(read_fd, 20).decode()


def touch(mib):
    eaten = bytearray(mib << 20)
    for place in range(0, len(eaten), 4096):
        eaten[place] = 1


def in_child(act):
    """Does it in a child, and gives the child's wait status."""
    pid = os.fork()
    if pid == 0:
        act()
        os._exit(0)
    return os.waitpid(pid, 0)[1]


class Turns:
    def __init__(self, options):
        self.options = options
        self.count = 0

    def take(self, frame):
        self.count += 1
        turn, text, attempt = frame["turn"], frame["text"], frame["attempt"]
        log("turn", turn=turn, attempt=attempt, text=text[:200])
        if self.options.crash_on and self.options.crash_on in text:
            os._exit(9)
        word, _, rest = text.partition(" ")
        act = getattr(self, "do_" + word.replace("-", "_"), None)
        try:
            reply = text if act is None else act(rest, turn, attempt)
        except (ValueError, IndexError):
            reply = text
        if reply is not None:
            say(turn=turn, done=reply)
        log("done", turn=turn, attempt=attempt)

    def do_count(self, _rest, _turn, _attempt):
        return "turn %d of life %s" % (self.count, GENERATION)

    def do_stream(self, rest, turn, _attempt):
        number, pause_ms = map(int, rest.split())
        pieces = ["%d " % place for place in range(number)]
        for piece in pieces:
            time.sleep(pause_ms / 1000)
            say(turn=turn, delta=piece)
        return "".join(pieces)

    def do_stream_until(self, path, turn, _attempt):
        pieces = []
        while not os.path.exists(path):
            pieces.append("%d " % len(pieces))
            say(turn=turn, delta=pieces[-1])
            time.sleep(0.01)
        return "".join(pieces)

    def do_wait(self, path, _turn, _attempt):
        wait_for(path)
        return "waited"

    def do_quiet(self, rest, _turn, _attempt):
        time.sleep(int(rest) / 1000)
        return "quiet"

    def do_silent(self, _rest, _turn, _attempt):
        while True:
            signal.pause()

    def do_hold(self, rest, _turn, _attempt):
        span, pause_ms = rest.split()
        say(**{"hold": "a test", "for": span})
        time.sleep(int(pause_ms) / 1000)
        return "held"

    def do_keep(self, span, _turn, _attempt):
        say(**{"hold": "a test", "for": span})
        return "kept"

    def do_crash(self, code, _turn, _attempt):
        os._exit(int(code))

    def do_crash_once(self, code, _turn, attempt):
        if attempt == 1:
            os._exit(int(code))
        return "recovered"

    def do_half(self, code, turn, attempt):
        say(turn=turn, delta="half of attempt %d, " % attempt)
        if attempt == 1:
            # The piece must be out before the end is.
            time.sleep(0.2)
            os._exit(int(code))
        return "half of attempt %d, and the rest" % attempt

    def do_signal(self, number, _turn, _attempt):
        end_by(int(number))

    def do_fail(self, words, turn, _attempt):
        say(turn=turn, error=words)

    def do_fail_once(self, words, turn, attempt):
        if attempt > 1:
            return "recovered"
        say(turn=turn, error=words, retryable=True)

    def do_daemonize(self, _rest, _turn, _attempt):
        return leave_a_daemon()

    def do_eat(self, mib, _turn, _attempt):
        touch(int(mib))
        return "ate"

    def do_eat_twice(self, mib, _turn, _attempt):
        touch(int(mib))
        touch(int(mib))
        return "ate twice"

    def do_eat_child(self, rest, _turn, _attempt):
        mib, then = rest.split()
        status = in_child(lambda: touch(int(mib)))
        if then != "on":
            os._exit(int(then))
        ended = "by signal %d" % os.WTERMSIG(status) if os.WIFSIGNALED(status) else "well"
        return "the child ended " + ended

    def do_segv(self, _rest, _turn, _attempt):
        ctypes.string_at(0)

    def do_spawn(self, number, _turn, _attempt):
        for _ in range(int(number)):
            if os.fork() == 0:
                while True:
                    time.sleep(3600)
        return "spawned"

    def do_port_taken(self, _rest, _turn, _attempt):
        first = socket.create_server(("127.0.0.1", 0))
        # Without SO_REUSEADDR, as a server that forgot it.
        socket.socket().bind(first.getsockname())

    def do_no_space(self, _rest, _turn, _attempt):
        with open("/dev/full", "w") as disk:
            disk.write("results")

    def do_garbage(self, _rest, _turn, _attempt):
        os.write(1, b"no json\n{\"turn\": 5}\n\xff\xfe\x00\n{\"turn\": \"other\", \"done\": \"x\"}\n")
        return "tidy"

    def do_big(self, number, _turn, _attempt):
        return "x" * int(number)

    def do_pid(self, _rest, _turn, _attempt):
        return str(os.getpid())

    def do_environ(self, name, _turn, _attempt):
        return os.environ.get(name, "(not set)")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-ready", action="store_true")
    parser.add_argument("--ready-when")
    parser.add_argument("--ready-after", type=int, default=0)
    parser.add_argument("--die-at-start", type=int)
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--slow-exit", type=int, default=0)
    parser.add_argument("--crash-on")
    return parser.parse_args()


def main():
    global LOG
    options = parse_options()
    path = os.environ.get("AGENT_LOG")
    if path:
        LOG = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def terminated(*_):
        log("sigterm")
        if not options.ignore_sigterm:
            time.sleep(options.slow_exit / 1000)
            os._exit(0)

    signal.signal(signal.SIGTERM, terminated)
    log("started")
    if options.die_at_start is not None:
        os._exit(options.die_at_start)
    time.sleep(options.ready_after / 1000)
    if options.ready_when:
        wait_for(options.ready_when)
    if options.no_ready:
        while True:
            signal.pause()
    say(ready=True)
    turns = Turns(options)
    for line in sys.stdin:
        turns.take(json.loads(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A Python executor as an agent: runs the code in each message and streams what it prints.

Speaks Dormouse's `jsonl` adapter on stdin and stdout. Variables stay from one message to the next
for as long as the instance lives.

    front   owns the protocol. Reads turns, reads the worker's output, writes frames. Runs no user
      |     code. When the worker is gone it goes the same way: same exit status, same signal.
      | fork
    worker  owns the user's variables. Has no descriptor of the protocol: its stdin is /dev/null,
            its stdout and stderr are one pipe to the front.

Invariants: nothing that user code prints can become a frame; a turn's `done` is the concatenation
of its deltas, and its `exit` the status that a script would have had; what a reply has no room for
is in a file in the folder that the agent was started in; exit() ends the turn and not the agent,
os._exit() and signals end both.
Absent: a sandbox (the driver's memory limit and user are that), a time limit (the control plane
watches the clock), and every import that the first turn does not need.
"""

import os
import sys

if sys.version_info < (3, 9):
    sys.exit("executor.py needs Python 3.9 or newer, this is " + sys.version.split()[0])

# Of more output than this and the tail, the whole is in a file, up to the bound of that.
OUTPUT_BYTES_MAX = 1 << 20
TAIL_BYTES_MAX = 4 << 10
FILE_BYTES_MAX = 1 << 30
# A byte that is no UTF-8 becomes three, and a delta must stay below 64 KiB.
READ_BYTES_MAX = 16 << 10
# Not reading the pipe more often than this makes one delta of many small prints.
OUTPUT_PAUSE_S = 0.02
# Sources are kept so that a traceback can show lines of earlier messages.
SOURCES_KEPT_MAX = 100
HOLD_WHY_BYTES_MAX = 128

EXPLANATION = (
    "I run Python. Send me code, or a message with a ```python block in it, and I answer with what "
    "it prints. Your variables are kept for the next message, until I go to sleep."
)
PYTHON_MARKS = ("python", "py", "python3")


def main():
    # Descriptors made here are not inherited by what user code starts.
    turn_fd, frame_fd, log_fd = os.dup(0), os.dup(1), os.dup(2)
    command_read_fd, command_write_fd = os.pipe()
    output_read_fd, output_write_fd = os.pipe()
    control_read_fd, control_write_fd = os.pipe()
    lifeline_read_fd, lifeline_write_fd = os.pipe()
    worker_pid = os.fork()
    if worker_pid == 0:
        for fd in (turn_fd, frame_fd, command_write_fd, output_read_fd, control_read_fd,
                   lifeline_write_fd):
            os.close(fd)
        end_with_the_other_side_of(lifeline_read_fd)
        worker = Worker(command_read_fd, control_write_fd, output_write_fd)
        # The first thing that worker does is to replace the descriptors 0, 1 and 2.
        worker.renew_streams()
        show_crashes_in(log_fd)
        return worker.serve()
    for fd in (command_read_fd, output_write_fd, control_write_fd, lifeline_read_fd):
        os.close(fd)
    front = Front(worker_pid, turn_fd, frame_fd, log_fd)
    front.connect(command_write_fd, output_read_fd, control_read_fd)
    try:
        front.serve()
    except BrokenPipeError:
        return 1  # nobody reads the frames; the worker follows, by its lifeline


# The worker: user code


class Worker:
    """Runs messages one after the other in one namespace, and tells the front when each ended."""

    def __init__(self, command_fd, control_fd, output_fd):
        self.command_fd = command_fd
        self.control_fd = control_fd
        self.output_fd = output_fd
        self.pid = os.getpid()
        self.turns_started = 0
        self.sources = {}
        self.streams = None
        # A real module, so that pickle, dataclasses and multiprocessing find what is defined here.
        self.module = type(sys)("__main__")
        self.namespace = self.module.__dict__
        self.namespace["__builtins__"] = __builtins__
        self.namespace["hold"] = self.hold
        self.replaced_module = sys.modules["__main__"]
        sys.modules["__main__"] = self.module
        sys.argv = [""]
        sys.path[0] = ""

    def serve(self):
        while True:
            text = self.read_command()
            if text is None:
                return 0
            self.turns_started += 1
            self.renew_streams()
            try:
                status = self.run_message(text)
            except BaseException as error:  # whatever user code raises ends its turn only
                self.flush_streams()
                self.renew_streams()
                status = self.report(error)
            self.flush_streams()
            if os.getpid() != self.pid:
                os._exit(status)  # user code forked, and the child came back here: not its loop
            write_all(self.control_fd, b"end %d %d\n" % (self.turns_started, status))

    def read_command(self):
        """The next message's text, or None when the front closed its end."""
        size = read_exactly(self.command_fd, 8)
        if size is None:
            return None
        payload = read_exactly(self.command_fd, int.from_bytes(size, "big"))
        return None if payload is None else payload.decode("utf-8", "surrogatepass")

    def renew_streams(self):
        """Undoes what the last message did to the standard descriptors and streams."""
        null_fd = os.open(os.devnull, os.O_RDONLY)
        if null_fd != 0:  # it is 0 when user code closed that
            os.dup2(null_fd, 0)
            os.close(null_fd)
        os.dup2(self.output_fd, 1)
        os.dup2(self.output_fd, 2)
        ours = self.streams == (sys.stdin, sys.stdout, sys.stderr)
        if ours and not any(stream.closed for stream in self.streams):
            return
        sys.stdin = open(0, encoding="utf-8", closefd=False)
        # Line by line, as at a terminal: each print is on its way before the next one.
        how = {"buffering": 1, "encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
        sys.stdout = open(1, "w", **how)
        sys.stderr = open(2, "w", **how)
        self.streams = (sys.stdin, sys.stdout, sys.stderr)

    def flush_streams(self):
        for stream in (sys.stdout, sys.stderr, *self.streams[1:]):
            try:
                stream.flush()
            except Exception:  # closed or replaced by user code; what it held is user code's loss
                continue

    def run_message(self, text):
        """The exit status, which is not 0 if there was nothing to run."""
        name = "<message %d>" % self.turns_started
        try:
            source, tree, codes = compile_message(text, name)
        except NotPython as refusal:
            print(refusal)
            return 1
        self.sources[name] = source
        if len(self.sources) > SOURCES_KEPT_MAX:
            del self.sources[next(iter(self.sources))]
        missing = self.missing_bare_name(tree)
        if missing is not None:
            print("Nothing here is called %s.\n\n%s" % (missing, EXPLANATION))
            return 1
        for code in codes:
            exec(code, self.namespace)
        return 0

    def missing_bare_name(self, tree):
        """A greeting such as `hello` is valid Python; it deserves better than a NameError."""
        import builtins

        value = getattr(tree.body[0], "value", None) if len(tree.body) == 1 else None
        name = getattr(value, "id", None)
        if name is None or name in self.namespace or hasattr(builtins, name):
            return None
        return name

    def report(self, error):
        """Shows what user code raised; gives the exit status that a script would have had."""
        if isinstance(error, SystemExit):
            if error.code is None or error.code == 0:
                return 0
            if isinstance(error.code, int):
                print("(exit status %d)" % error.code, file=sys.stderr)
                return error.code & 0xFF
            print(error.code, file=sys.stderr)
            return 1
        try:
            shown = self.format_traceback(error)
        except BaseException:  # user code can break even this, for example through __str__
            shown = "%s (its traceback cannot be shown)\n" % type(error).__name__
        print(shown, end="", file=sys.stderr)
        return 1

    def format_traceback(self, error):
        import linecache
        import traceback

        for name, source in self.sources.items():
            linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        executor_file = main.__code__.co_filename
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == executor_file:
            trace = trace.tb_next
        shown = "".join(traceback.format_exception(type(error), error, trace))
        if isinstance(error, EOFError) and "reading a line" in str(error):
            shown += "(nobody is at a keyboard here: put the input into the message)\n"
        return shown

    def hold(self, why, span="5m"):
        """hold("training", "30m"): keep this agent awake although no message is being answered."""
        why = " ".join(str(why).split())
        if not why or len(why.encode("utf-8", "replace")) > HOLD_WHY_BYTES_MAX:
            raise ValueError("hold() wants a reason of 1 to %d bytes" % HOLD_WHY_BYTES_MAX)
        if not (isinstance(span, str) and span[:-1].isdecimal() and span[-1:] in ("s", "m", "h")):
            raise ValueError('hold() wants a time such as "90s", "5m" or "1h"')
        write_all(self.control_fd, ("hold %s %s\n" % (span, why)).encode("utf-8", "replace"))


class NotPython(Exception):
    """The message holds nothing that can be run. Its text is the answer."""


def compile_message(text, name):
    """Source, tree and code objects of the whole message, or of its first Python block."""
    first_error = None
    for source in candidate_sources(text):
        try:
            return (source, *compile_source(source, name))
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            first_error = error
    where = getattr(first_error, "msg", None) or str(first_error) or type(first_error).__name__
    if getattr(first_error, "lineno", None):
        where = "line %d: %s" % (first_error.lineno, where)
    raise NotPython("This is not Python that I can run (%s).\n\n%s" % (where, EXPLANATION))


def compile_source(source, name):
    """As a REPL does: statements, and then the value of a last expression is shown."""
    from _ast import Expr, Interactive, PyCF_ONLY_AST  # these alone, `ast` takes longer to import

    tree = compile(source, name, "exec", PyCF_ONLY_AST, dont_inherit=True)
    codes = [compile(tree, name, "exec", dont_inherit=True)]
    if tree.body and isinstance(tree.body[-1], Expr):
        shown = Interactive(body=[tree.body[-1]])
        before = compile(source, name, "exec", PyCF_ONLY_AST, dont_inherit=True)
        del before.body[-1]
        codes = [
            compile(before, name, "exec", dont_inherit=True),
            compile(shown, name, "single", dont_inherit=True),
        ]
    return tree, codes


def candidate_sources(text):
    yield text
    if text[:1] in (" ", "\t"):
        import textwrap

        yield textwrap.dedent(text)
    block = fenced_block(text)
    if block is not None:
        yield block


def fenced_block(text):
    """The first block marked as Python, else the first one without a mark, else None."""
    unmarked = None
    lines = None
    for line in text.splitlines():
        bare = line.strip()
        if lines is None:
            if bare.startswith("```"):
                mark = bare[3:].strip().lower()
                indent = len(line) - len(line.lstrip())
                lines = []
        elif bare == "```":
            if mark in PYTHON_MARKS:
                break
            if mark == "" and unmarked is None:
                unmarked = lines
            lines = None
        else:
            lines.append(line if line[:indent].strip() else line[indent:])
    if lines is None or mark not in PYTHON_MARKS:  # a Python block may lack its closing fence
        lines = unmarked
    return None if lines is None else "\n".join(lines) + "\n"


def end_with_the_other_side_of(lifeline_read_fd):
    """The kernel sends SIGIO, which ends a process, when the last writer of the lifeline dies."""
    import fcntl

    fcntl.fcntl(lifeline_read_fd, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(lifeline_read_fd, fcntl.F_GETFL)
    fcntl.fcntl(lifeline_read_fd, fcntl.F_SETFL, flags | os.O_ASYNC)


def show_crashes_in(log_fd):
    """A segmentation fault leaves the Python stack in the agent's log."""
    import faulthandler

    faulthandler.enable(file=log_fd, all_threads=False)


# The front: the protocol


class Turn:
    """One turn in progress: what was said so far, bounded, and beyond that in a file."""

    def __init__(self, turn_id, number, decoder):
        self.id = turn_id
        self.number = number
        self.decoder = decoder
        self.said = []
        # The bytes behind `said`, and after them those that wait for more to come, or for the end.
        self.head = bytearray()
        self.tail = bytearray()
        self.file = None

    def take(self, chunk):
        """Text to send for `chunk`, which may be empty."""
        room = OUTPUT_BYTES_MAX - len(self.head)
        kept, rest = chunk[:room], chunk[room:]
        self.head += kept
        if self.file is not None:
            self.file.write(chunk)
        elif len(self.tail) + len(rest) > TAIL_BYTES_MAX:
            self.file = OutputFile(self.id, self.number)
            for part in (self.head, self.tail, rest):
                self.file.write(part)
        self.tail += rest
        if self.file is not None:
            del self.tail[:-TAIL_BYTES_MAX]
        return self.decoder.decode(kept)

    def finish(self):
        """Text that is still owed when the turn ends."""
        if self.file is None:
            text = self.decoder.decode(bytes(self.tail), True)
            return text if text or self.said else "(no output)"
        text = self.decoder.decode(b"", True)
        tail = bytes(self.tail)
        for _ in range(3):
            if tail[0] & 0xC0 == 0x80:  # not from within a character
                tail = tail[1:]
        line_end = b"" if self.head.endswith(b"\n") else b"\n"
        marker = b"%s[output truncated: %s; its last %d bytes follow]\n" % (
            line_end, self.file.close().encode(), len(tail)
        )
        return text + (marker + tail).decode("utf-8", "replace")


class OutputFile:
    """A turn's whole output. Whatever goes wrong with it is a matter of words, not of the turn."""

    def __init__(self, turn_id, number):
        is_plain = isinstance(turn_id, str) and all(
            char.isascii() and (char.isalnum() or char in "_-.") for char in turn_id
        )
        self.name = "output-%s.txt" % (turn_id[:200] if is_plain else number)
        self.bytes_offered = 0
        self.bytes_kept = 0
        self.trouble = None
        self.fd = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self.fd = os.open(self.name, flags, 0o644)
        except OSError as error:
            self.trouble = error.strerror

    def write(self, data):
        self.bytes_offered += len(data)
        if self.trouble is not None:
            return
        data = data[: FILE_BYTES_MAX - self.bytes_kept]
        try:
            write_all(self.fd, data)
        except OSError as error:
            self.trouble = error.strerror
            self.give_room_back()
        else:
            self.bytes_kept += len(data)

    def give_room_back(self):
        """A disk that is full is full for everybody."""
        for give_back in (lambda: os.ftruncate(self.fd, 0), lambda: os.unlink(self.name)):
            try:
                give_back()
            except OSError:
                continue  # it is not called kept in either case

    def close(self):
        """Says how much there is in all, and where it is."""
        if self.fd is not None:
            os.close(self.fd)
        said = "%d bytes in all, " % self.bytes_offered
        if self.trouble is not None:
            return said + "which %s could not keep: %s" % (self.name, self.trouble)
        if self.bytes_kept < self.bytes_offered:
            return said + "the first %d are in %s" % (self.bytes_kept, self.name)
        return said + "the whole is in %s" % self.name


class Front:
    """Moves turns in and frames out, and watches the worker."""

    def __init__(self, worker_pid, turn_fd, frame_fd, log_fd):
        import signal

        self.worker_pid = worker_pid
        self.turn_fd = turn_fd
        self.frame_fd = frame_fd
        self.log_fd = log_fd
        self.turn = None
        self.turns_started = 0
        self.input = bytearray()
        self.input_ended = False
        self.control = b""
        self.control_ended = False
        self.output_pause_until = 0.0
        # Signals become bytes of a pipe, so that one select() sees everything.
        self.signal = signal
        self.signal_fd, self.signal_write_fd = os.pipe()
        os.set_blocking(self.signal_write_fd, False)
        signal.set_wakeup_fd(self.signal_write_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def connect(self, command_fd, output_fd, control_fd):
        import codecs
        import fcntl
        import json
        import select
        import termios
        import time

        self.command_fd = command_fd
        self.output_fd = output_fd
        self.control_fd = control_fd
        self.new_decoder = codecs.getincrementaldecoder("utf-8")
        self.dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        self.loads = json.loads
        self.select = select.select
        self.monotonic = time.monotonic
        self.count_waiting = lambda: int.from_bytes(
            fcntl.ioctl(output_fd, termios.FIONREAD, bytes(4)), sys.byteorder
        )

    def serve(self):
        self.exit_as_the_worker_did()  # in case it was quicker than the signal handler
        self.send({"ready": True})
        while True:
            self.start_next_turn()
            watched = [self.signal_fd]
            if not self.control_ended:
                watched.append(self.control_fd)
            if self.turn is None and not self.input_ended:
                watched.append(self.turn_fd)
            pause = self.output_pause_until - self.monotonic()
            if pause <= 0:
                watched.append(self.output_fd)
            ready = self.select(watched, (), (), pause if pause > 0 else None)[0]
            if self.signal_fd in ready:
                self.take_signals()
            if self.turn_fd in ready:
                self.read_input()
            if self.control_fd in ready:
                self.read_control()
            if self.output_fd in ready:
                self.read_output()
                self.output_pause_until = self.monotonic() + OUTPUT_PAUSE_S

    def read_input(self):
        chunk = os.read(self.turn_fd, 1 << 16)
        self.input_ended = not chunk
        self.input += chunk or b"\n"

    def start_next_turn(self):
        while self.turn is None:
            line, newline, self.input = self.input.partition(b"\n")
            if not newline:
                self.input = line
                break
            if line.strip():
                self.start_turn(line)
        if self.turn is None and self.input_ended and self.command_fd is not None:
            os.close(self.command_fd)  # no more turns: the worker ends by itself, and then we do
            self.command_fd = None

    def start_turn(self, line):
        try:
            request = self.loads(line)
            turn_id = request["turn"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self.log("ignored a line that is no turn: %s: %s" % (type(error).__name__, error))
            return
        text = request.get("text")
        if not isinstance(text, str):
            self.send({"turn": turn_id, "error": "the turn has no text"})
            return
        self.read_output()  # what came since the last turn is not of this one: to the log
        self.turns_started += 1
        self.turn = Turn(turn_id, self.turns_started, self.new_decoder(errors="replace"))
        payload = text.encode("utf-8", "surrogatepass")
        try:
            write_all(self.command_fd, len(payload).to_bytes(8, "big") + payload)
        except BrokenPipeError:
            return  # the worker is gone, the signal that says so is on its way

    def read_control(self):
        chunk = os.read(self.control_fd, 1 << 16)
        self.control_ended = not chunk
        *lines, self.control = (self.control + chunk).split(b"\n")
        for line in lines:
            word, _, value = line.decode("utf-8", "replace").partition(" ")
            if word == "hold":
                span, _, why = value.partition(" ")
                self.send({"hold": why, "for": span})
            elif word == "end" and self.turn is not None:
                number, _, status = value.partition(" ")
                if number == str(self.turn.number):
                    self.read_output()
                    self.end_turn(int(status))

    def end_turn(self, status):
        self.say(self.turn.finish())
        self.send({"turn": self.turn.id, "done": "".join(self.turn.said), "exit": status})
        self.turn = None

    def read_output(self):
        """Takes what is in the pipe at this moment, and not what comes while it is being read."""
        waiting = self.count_waiting()
        while waiting > 0:
            chunk = os.read(self.output_fd, min(waiting, READ_BYTES_MAX))
            waiting -= len(chunk)
            if self.turn is None:
                write_all(self.log_fd, chunk)
            else:
                self.say(self.turn.take(chunk))

    def say(self, text):
        if text:
            self.turn.said.append(text)
            self.send({"turn": self.turn.id, "delta": text})

    def send(self, frame):
        write_all(self.frame_fd, (self.dumps(frame) + "\n").encode("utf-8", "replace"))

    def log(self, text):
        write_all(self.log_fd, ("executor: %s\n" % text).encode("utf-8", "replace"))

    def take_signals(self):
        if self.signal.SIGTERM in os.read(self.signal_fd, 1 << 10):
            os.kill(self.worker_pid, self.signal.SIGTERM)
        self.exit_as_the_worker_did()

    def exit_as_the_worker_did(self):
        """Returns if the worker lives. Else its last words go out, and this process follows."""
        pid, status = os.waitpid(self.worker_pid, os.WNOHANG)
        if pid == 0:
            return
        self.read_output()
        if os.WIFEXITED(status):
            code = os.WEXITSTATUS(status)
            if self.turn is not None:
                self.log("user code ended the Python process with exit status %d" % code)
            os._exit(code)
        number = os.WTERMSIG(status)
        self.log("signal %d ended the Python process" % number)
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the worker's dump is the one to keep
        if number != self.signal.SIGKILL:
            self.signal.signal(number, self.signal.SIG_DFL)
        os.kill(os.getpid(), number)
        os._exit(128 + number)  # PID 1 of a container outlives the signals it sends to itself


def write_all(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def read_exactly(fd, size):
    """`size` bytes, or None at the end of the stream."""
    parts = []
    while size > 0:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


if __name__ == "__main__":
    sys.exit(main())

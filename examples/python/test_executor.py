"""What executor.py promises, checked from outside: a process, its pipes, its exit status.

Run: python3 -m unittest test_executor -v   (in this folder)
Absent: imports of executor.py's insides, and sleeps; a blocked agent is ended by a watchdog, and
then the test that waited for it fails.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import unittest

EXECUTOR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "executor.py")
WATCHDOG_S = 60


class Agent:
    """One running executor.py, with the protocol's other side."""

    def __init__(self):
        pipe = subprocess.PIPE
        self.folder = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [sys.executable, EXECUTOR], stdin=pipe, stdout=pipe, stderr=pipe, cwd=self.folder.name
        )
        self.watchdog = threading.Timer(WATCHDOG_S, self.process.kill)
        self.watchdog.start()
        self.turns = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.watchdog.cancel()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()
        self.folder.cleanup()

    def frame(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def write(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def start(self, text):
        self.turns += 1
        turn = "turn-%d" % self.turns
        self.write(json.dumps({"turn": turn, "session": "py/a", "text": text, "attempt": 1}))
        return turn

    def frames_until_end(self, turn):
        frames = []
        while not frames or not ("done" in frames[-1] or "error" in frames[-1]):
            frame = self.frame()
            if frame is None:
                raise AssertionError("the agent died in %s; so far: %r" % (turn, frames))
            if "ready" not in frame:
                frames.append(frame)
        return frames

    def ask(self, text):
        """One whole turn's text, after checking that its deltas add up to it."""
        turn = self.start(text)
        frames = [frame for frame in self.frames_until_end(turn) if "hold" not in frame]
        assert all(frame["turn"] == turn for frame in frames), frames
        done = frames[-1]["done"]
        assert "".join(frame["delta"] for frame in frames[:-1]) == done, frames
        self.exit = frames[-1]["exit"]
        return done

    def file(self, name):
        with open(os.path.join(self.folder.name, name), "rb") as file:
            return file.read()

    def status_after_the_end(self):
        """The exit status, the frames that were left, and the log."""
        self.process.stdin.close()
        rest = [json.loads(line) for line in self.process.stdout]
        log = self.process.stderr.read().decode()
        return self.process.wait(), rest, log


class Talk(unittest.TestCase):
    def test_ready_comes_first_and_once(self):
        with Agent() as agent:
            self.assertEqual(agent.frame(), {"ready": True})
            turn = agent.start("1")
            frames = [agent.frame(), agent.frame()]
            done = [{"turn": turn, "delta": "1\n"}, {"turn": turn, "done": "1\n", "exit": 0}]
            self.assertEqual(frames, done)

    def test_the_last_expression_is_shown_as_a_repl_does(self):
        with Agent() as agent:
            self.assertEqual(agent.ask("x = 20\nprint('sum')\nx + 1"), "sum\n21\n")
            self.assertEqual(agent.ask("'text'"), "'text'\n")
            self.assertEqual(agent.ask("_ * 2"), "'texttext'\n")
            self.assertEqual(agent.ask("1\n2"), "2\n")

    def test_nothing_printed_is_said_so(self):
        with Agent() as agent:
            for silent in ("x = 1", "None", "", "# a comment", "exit()"):
                self.assertEqual(agent.ask(silent), "(no output)")

    def test_variables_functions_and_the_folder_stay_between_turns(self):
        with Agent() as agent:
            agent.ask("import os\ntotal = 1\nos.mkdir('sub')\nos.chdir('sub')")
            agent.ask("def grow():\n    global total\n    total += 1\n    return total")
            self.assertEqual(agent.ask("grow(), os.path.basename(os.getcwd())"), "(2, 'sub')\n")

    def test_definitions_behave_as_in_a_script(self):
        with Agent() as agent:
            code = "import pickle, dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\n"
            code += "pickle.loads(pickle.dumps(P(3))), __name__"
            self.assertEqual(agent.ask(code), "(P(x=3), '__main__')\n")
            self.assertIn("No module named 'executor'", agent.ask("import executor"))

    def test_output_streams_while_the_code_runs(self):
        with Agent() as agent:
            os.mkfifo(os.path.join(agent.folder.name, "gate"))
            turn = agent.start("print('first')\nprint(open('gate').read())")
            self.assertEqual(agent.frame(), {"ready": True})
            self.assertEqual(agent.frame(), {"turn": turn, "delta": "first\n"})
            with open(os.path.join(agent.folder.name, "gate"), "w") as gate:
                gate.write("second")
            frames = agent.frames_until_end(turn)
            self.assertEqual(frames[-1], {"turn": turn, "done": "first\nsecond\n", "exit": 0})

    def test_turns_sent_at_once_are_answered_in_order_and_end_of_input_is_a_clean_end(self):
        with Agent() as agent:
            turns = [agent.start(str(number)) for number in range(5)]
            status, frames, log = agent.status_after_the_end()
            answers = [(frame["turn"], frame["done"]) for frame in frames if "done" in frame]
            self.assertEqual(answers, [(turns[n], "%d\n" % n) for n in range(5)])
            self.assertEqual((status, log), (0, ""))

    def test_a_last_line_without_its_newline_is_a_turn_too(self):
        with Agent() as agent:
            agent.process.stdin.write(b'{"turn":"t","text":"5"}')
            status, frames, _ = agent.status_after_the_end()
            done = {"turn": "t", "done": "5\n", "exit": 0}
            self.assertEqual((status, frames[-1]), (0, done))

    def test_a_line_that_is_no_turn_is_logged_and_skipped(self):
        with Agent() as agent:
            for line in ("not json", "[]", '{"text": "1"}', "17", ""):
                agent.write(line)
            self.assertEqual(agent.ask("3"), "3\n")
            status, _, log = agent.status_after_the_end()
            self.assertEqual((status, log.count("ignored a line that is no turn")), (0, 4))

    def test_a_turn_without_text_is_an_error_of_that_turn(self):
        with Agent() as agent:
            agent.write('{"turn": "bad", "text": 5}')
            error = agent.frames_until_end("bad")[-1]
            self.assertEqual(error, {"turn": "bad", "error": "the turn has no text"})
            self.assertEqual(agent.ask("3"), "3\n")

    def test_text_that_is_not_ascii_survives_both_ways(self):
        with Agent() as agent:
            self.assertEqual(agent.ask("s = 'é😀'\nprint(s, len(s))"), "é😀 2\n")
            self.assertEqual(agent.ask("print('\\ud800')"), "\\ud800\n")
            self.assertIn("not Python", agent.ask("'\ud800'"))
            shown = agent.ask("import os\nn = os.write(1, b'a\\xff')\nn = os.write(1, b'\\xc3')")
            self.assertEqual(shown, "a\ufffd\ufffd")

    def test_a_message_of_a_mebibyte_runs(self):
        with Agent() as agent:
            self.assertEqual(agent.ask("s = '%s'\nlen(s)" % ("a" * (1 << 20))), "1048576\n")


class Messages(unittest.TestCase):
    def test_a_chat_message_gets_an_explanation_and_no_exception(self):
        with Agent() as agent:
            for text in ("hello there!", "What can you do?", "def f(:", "return 5", "x = 1 +"):
                answer = agent.ask(text)
                self.assertTrue(answer.startswith("This is not Python that I can run"), answer)
                self.assertIn("I run Python. Send me code", answer)
                self.assertNotIn("Traceback", answer)

    def test_a_greeting_that_happens_to_be_a_name_is_explained_too(self):
        with Agent() as agent:
            self.assertTrue(agent.ask("hello").startswith("Nothing here is called hello."))
            agent.ask("hello = 5")
            self.assertEqual(agent.ask("hello"), "5\n")

    def test_the_first_python_block_of_a_chat_message_runs(self):
        text = "Sure:\n```\nnot this\n```\n```python\nprint(1)\n```\nor\n```python\nprint(2)\n```"
        with Agent() as agent:
            self.assertEqual(agent.ask(text), "1\n")
            listed = "please\n- so:\n  ```py\n  if 1:\n    print(3)\n  ```"
            self.assertEqual(agent.ask(listed), "3\n")
            self.assertEqual(agent.ask("unmarked:\n```\n4\n```\nthanks"), "4\n")
            self.assertEqual(agent.ask("cut off:\n```python\n5\n"), "5\n")

    def test_a_broken_block_names_its_line(self):
        with Agent() as agent:
            answer = agent.ask("try this one\n```python\nx = 1\ny = = 2\n```")
            self.assertTrue(answer.startswith("This is not Python that I can run (line 2"), answer)

    def test_code_that_holds_a_fence_in_a_string_is_code(self):
        with Agent() as agent:
            code = "s = '''\n```python\nprint('wrong')\n```\n'''\nlen(s)"
            self.assertEqual(agent.ask(code), "30\n")

    def test_indented_code_runs(self):
        with Agent() as agent:
            self.assertEqual(agent.ask("    x = 2\n    x"), "2\n")


class Errors(unittest.TestCase):
    def test_a_traceback_shows_user_code_only(self):
        with Agent() as agent:
            agent.ask("def divide(n):\n    return 1 / n")
            shown = agent.ask("print('before')\ndivide(0)")
            self.assertTrue(shown.startswith("before\nTraceback (most recent call last):"), shown)
            self.assertIn('File "<message 1>", line 2, in divide\n    return 1 / n', shown)
            self.assertIn('File "<message 2>", line 2, in <module>\n    divide(0)', shown)
            self.assertTrue(shown.endswith("ZeroDivisionError: division by zero\n"), shown)
            self.assertNotIn("executor.py", shown)

    def test_an_exception_that_cannot_be_shown_does_not_end_the_agent(self):
        with Agent() as agent:
            agent.ask("class Bad(Exception):\n    def __str__(self):\n        raise SystemExit(9)")
            self.assertIn("Bad", agent.ask("raise Bad()"))
            self.assertIn("RecursionError", agent.ask("def f(): f()\nf()"))
            self.assertEqual(agent.ask("1"), "1\n")

    def test_exit_ends_the_turn_and_not_the_agent(self):
        with Agent() as agent:
            agent.ask("kept = 1")
            self.assertEqual(agent.ask("import sys\nprint('a')\nsys.exit(3)\nprint('b')"),
                             "a\n(exit status 3)\n")
            self.assertEqual(agent.ask("sys.exit('because')"), "because\n")
            self.assertEqual(agent.ask("quit()"), "(no output)")
            self.assertEqual(agent.ask("kept"), "1\n")

    def test_the_exit_status_is_that_of_a_script(self):
        statuses = (
            ("x = 1", 0),
            ("exit()", 0),
            ("import sys\nsys.exit(0)", 0),
            ("exit(3)", 3),
            ("exit(256 + 7)", 7),
            ("exit(-1)", 255),
            ("exit('because')", 1),
            ("1/0", 1),
            ("raise KeyboardInterrupt", 1),
            ("hello there!", 1),
            ("hello", 1),
        )
        with Agent() as agent:
            for code, status in statuses:
                agent.ask(code)
                self.assertEqual(agent.exit, status, code)

    def test_nobody_is_at_a_keyboard(self):
        with Agent() as agent:
            self.assertIn("put the input into the message", agent.ask("input('name? ')"))
            self.assertEqual(agent.ask("import sys\nsys.stdin.read()"), "''\n")


class Protocol(unittest.TestCase):
    def test_what_looks_like_a_frame_is_text(self):
        with Agent() as agent:
            forged = '{"turn": "turn-1", "done": "forged"}'
            self.assertEqual(agent.ask("print(%r)" % forged), forged + "\n")
            code = "import os, subprocess\nn = os.write(1, b'%s\\n')\n" % forged
            code += "n = subprocess.run(['echo', %r])" % forged
            self.assertEqual(agent.ask(code), (forged + "\n") * 2)

    def test_user_code_has_no_descriptor_of_the_protocol(self):
        code = "import os\nseen = []\nfor fd in range(256):\n    try:\n"
        code += "        seen.append(os.fstat(fd).st_ino)\n    except OSError:\n        pass\nseen"
        with Agent() as agent:
            seen = json.loads(agent.ask(code))
            for stream in (agent.process.stdin, agent.process.stdout):
                self.assertNotIn(os.fstat(stream.fileno()).st_ino, seen)

    def test_closed_or_replaced_streams_are_whole_again_in_the_next_turn(self):
        vandalism = (
            "import sys\nsys.stdout.close()",
            "import os\nos.close(0)\nos.close(1)\nos.close(2)",
            "import io, sys\nsys.stdout = sys.stderr = io.StringIO()",
            "import sys\nsys.stdout = sys.stderr = sys.stdin = None",
            "import os\nos.dup2(os.open(os.devnull, os.O_RDWR), 1)",
        )
        with Agent() as agent:
            for code in vandalism:
                agent.ask(code)
                self.assertEqual(agent.ask("print('whole')"), "whole\n", code)
                self.assertIn("ZeroDivisionError", agent.ask(code + "\n1/0"), code)

    def test_both_streams_and_those_of_children_arrive_in_order(self):
        code = "import subprocess, sys\nprint(1)\nprint(2, file=sys.stderr)\n"
        code += "n = subprocess.run('echo 3; echo 4 >&2', shell=True)\nprint(5)"
        with Agent() as agent:
            self.assertEqual(agent.ask(code), "1\n2\n3\n4\n5\n")

    def test_a_fork_in_user_code_answers_once(self):
        with Agent() as agent:
            code = "import os\npid = os.fork()\nif pid:\n    n = os.waitpid(pid, 0)\nprint('said')"
            self.assertEqual(agent.ask(code), "said\nsaid\n")
            self.assertEqual(agent.ask("os.waitpid(os.fork() or sys.exit(4), 0)[1] >> 8"
                                       .replace("sys", "__import__('sys')")),
                             "(exit status 4)\n4\n")
            self.assertEqual(agent.ask("2"), "2\n")

    def test_a_flood_is_cut_and_its_end_is_shown(self):
        with Agent() as agent:
            turn = agent.start("for n in range(400_000):\n    print('line %d é' % n)\n1/0")
            frames = agent.frames_until_end(turn)
            done = frames[-1]["done"]
            self.assertEqual("".join(frame["delta"] for frame in frames[:-1]), done)
            self.assertTrue(done.startswith("line 0 é\nline 1 é\n"))
            self.assertTrue(done.endswith("ZeroDivisionError: division by zero\n"), done[-200:])
            self.assertLess(len(done.encode()), (1 << 20) + (8 << 10))
            longest = max(len(frame["delta"].encode()) for frame in frames[:-1])
            self.assertLessEqual(longest, 64 << 10)
            whole = agent.file("output-turn-1.txt")
            self.assertEqual(frames[-1]["exit"], 1)
            marker = "\n[output truncated: %d bytes in all, " % len(whole)
            marker += "the whole is in output-turn-1.txt; its last "
            head, _, tail = done.partition(marker)
            tail_bytes, _, tail = tail.partition(" bytes follow]\n")
            self.assertEqual(len(tail.encode()), int(tail_bytes))
            self.assertTrue(whole.startswith(head.rstrip("\ufffd").encode()))
            self.assertTrue(whole.endswith(tail.encode()))
            self.assertIn(b"line 399999 \xc3\xa9\nTraceback", whole)
            self.assertEqual(agent.ask("3"), "3\n")
            self.assertEqual(agent.ask("len(open('output-turn-1.txt').read())"),
                             "%d\n" % len(whole.decode()))

    def test_output_that_fits_is_whole_and_makes_no_file(self):
        with Agent() as agent:
            size = (1 << 20) + (4 << 10)
            self.assertEqual(agent.ask("n = print('x' * %d)" % (size - 1)), "x" * (size - 1) + "\n")
            self.assertEqual(agent.ask("import os\nos.listdir()"), "[]\n")
            shown = agent.ask("print('x' * %d)" % size)
            self.assertEqual(shown.count("[output truncated: %d bytes in all" % (size + 1)), 1)
            self.assertEqual(agent.file("output-turn-3.txt"), b"x" * size + b"\n")

    def test_every_byte_of_a_flood_is_in_its_file_wherever_user_code_went(self):
        with Agent() as agent:
            agent.ask("import os\nos.mkdir('sub')\nos.chdir('sub')")
            code = "for n in range(300): n = os.write(1, bytes(range(256)) * 32)"
            shown = agent.ask(code)
            self.assertEqual(agent.file("output-turn-2.txt"), bytes(range(256)) * 32 * 300)
            self.assertIn("the whole is in output-turn-2.txt", shown)

    def test_a_link_where_the_file_should_be_is_not_followed_and_the_reply_is_there(self):
        with Agent() as agent:
            agent.ask("import os\nos.symlink('elsewhere', 'output-turn-2.txt')")
            shown = agent.ask("print('x' * 2_000_000)\nprint('end')")
            self.assertIn("2000005 bytes in all, which output-turn-2.txt could not keep: File ex",
                          shown)
            self.assertTrue(shown.endswith("xxx\nend\n"), shown[-100:])
            self.assertEqual(agent.ask("os.path.exists('elsewhere')"), "False\n")

    @unittest.skipUnless(sys.platform == "linux", "needs prlimit")
    def test_a_disk_that_is_full_loses_no_reply(self):
        with Agent() as agent:
            agent.ask("import os, resource\nlimit = (1 << 20, 1 << 20)\n"
                      "resource.prlimit(os.getppid(), resource.RLIMIT_FSIZE, limit)")
            shown = agent.ask("print('x' * 2_000_000)\nprint('end')")
            self.assertIn("which output-turn-2.txt could not keep: File too large", shown)
            self.assertTrue(shown.endswith("xxx\nend\n"), shown[-100:])
            self.assertEqual(agent.ask("os.listdir()"), "[]\n")

    def test_a_flood_of_broken_bytes_keeps_deltas_small(self):
        with Agent() as agent:
            turn = agent.start("import os\nfor n in range(8): n = os.write(1, b'\\xff' * 65536)")
            frames = agent.frames_until_end(turn)
            self.assertEqual(frames[-1]["done"], "\ufffd" * (8 * 65536))
            longest = max(len(frame["delta"].encode()) for frame in frames[:-1])
            self.assertLessEqual(longest, 64 << 10)

    def test_many_small_prints_become_few_deltas(self):
        with Agent() as agent:
            turn = agent.start("for n in range(5000):\n    print(n)")
            self.assertLess(len(agent.frames_until_end(turn)), 500)

    def test_what_a_background_process_prints_later_is_in_the_log_and_in_no_turn(self):
        with Agent() as agent:
            os.mkfifo(os.path.join(agent.folder.name, "gate"))
            agent.ask("import subprocess\np = subprocess.Popen('read x < gate; echo late $x',"
                      " shell=True)")
            with open(os.path.join(agent.folder.name, "gate"), "w") as gate:
                gate.write("reply\n")
            self.assertEqual(agent.process.stderr.readline(), b"late reply\n")
            self.assertEqual(agent.ask("p.wait()"), "0\n")

    def test_hold_becomes_a_frame(self):
        with Agent() as agent:
            turn = agent.start("hold('training\\nrun', '30m')\nhold('short')")
            frames = agent.frames_until_end(turn)
            holds = [frame for frame in frames if "hold" in frame]
            self.assertEqual(holds, [{"hold": "training run", "for": "30m"},
                                     {"hold": "short", "for": "5m"}])
            for wrong in ("hold('')", "hold('x' * 200)", "hold('x', 'long')", "hold('x', 5)"):
                self.assertIn("ValueError: hold() wants", agent.ask(wrong))


class Deaths(unittest.TestCase):
    def dies_by(self, code, status, said="", log=""):
        with Agent() as agent:
            turn = agent.start("print('last words')\n" + code)
            actual, frames, actual_log = agent.status_after_the_end()
            self.assertEqual(actual, status)
            deltas = "".join(frame.get("delta", "") for frame in frames)
            self.assertEqual(deltas, "last words\n" + said)
            self.assertFalse([frame for frame in frames if "done" in frame or "error" in frame])
            self.assertTrue(all(frame.get("turn", turn) == turn for frame in frames))
            self.assertIn(log, actual_log)

    def test_os_exit_ends_the_agent_with_that_status(self):
        self.dies_by("import os\nos._exit(7)", 7, log="exit status 7")
        self.dies_by("import os\nos._exit(0)", 0, log="exit status 0")

    def test_a_kill_ends_the_agent_by_that_signal(self):
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGABRT):
            code = "import os\nos.kill(os.getpid(), %d)" % number
            self.dies_by(code, -number, log="signal %d ended" % number)

    def test_a_crash_leaves_its_stack_in_the_log(self):
        self.dies_by("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
                     -signal.SIGSEGV, log='File "<message 1>", line 3 in <module>')

    def test_sigterm_ends_an_idle_agent(self):
        with Agent() as agent:
            agent.ask("1")
            agent.process.send_signal(signal.SIGTERM)
            self.assertEqual(agent.status_after_the_end()[0], -signal.SIGTERM)

    def test_sigterm_ends_an_agent_in_a_turn(self):
        with Agent() as agent:
            agent.start("print('in it', flush=True)\nimport signal\nsignal.pause()")
            self.assertEqual(agent.frame(), {"ready": True})
            self.assertEqual(agent.frame()["delta"], "in it\n")
            agent.process.send_signal(signal.SIGTERM)
            self.assertEqual(agent.status_after_the_end()[0], -signal.SIGTERM)

    @unittest.skipUnless(hasattr(os, "pidfd_open"), "needs Linux and its pidfd_open")
    def test_a_busy_worker_does_not_outlive_a_killed_front(self):
        with Agent() as agent:
            worker = os.pidfd_open(int(agent.ask("import os, signal\nos.getpid()")))
            turn = agent.start("print('busy')\nsignal.pause()")
            self.assertEqual(agent.frame(), {"turn": turn, "delta": "busy\n"})
            agent.process.kill()
            ended, _, _ = select.select([worker], [], [], WATCHDOG_S)
            os.close(worker)
            self.assertTrue(ended)


if __name__ == "__main__":
    unittest.main()

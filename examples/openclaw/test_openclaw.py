"""What gateway.mjs and scripted_model.py promise, without OpenClaw.

A stand-in for the package says how it was started.

Run: python3 -m unittest test_openclaw -v   (in this folder; the launcher's tests need node)
Absent: the real gateway, which the end-to-end tests start.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
import urllib.error
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
NODE = shutil.which("node")
STAND_IN = """
const names = ["HOME", "OPENCLAW_STATE_DIR", "OPENCLAW_CONFIG_PATH", "OPENCLAW_GATEWAY_PORT",
  "TMPDIR"];
const env = Object.fromEntries(names.map((name) => [name, process.env[name]]));
console.log(JSON.stringify({ arguments: process.argv.slice(1), folder: process.cwd(), env }));
process.exitCode = 7;
"""


@unittest.skipUnless(NODE, "there is no node in PATH")
class Gateway(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.base = os.path.realpath(scratch.name)
        self.workspace = os.path.join(self.base, "workspace")
        self.package = os.path.join(self.base, "package")
        self.template = os.path.join(self.base, "template.json")
        self.config = os.path.join(self.workspace, ".openclaw", "openclaw.json")
        for folder in (self.workspace, self.package):
            os.mkdir(folder)
        self.write(os.path.join(self.package, "openclaw.mjs"), STAND_IN)
        self.write(self.template, '{"model": "one"}')

    def write(self, path, text):
        with open(path, "w") as file:
            file.write(text)

    def read_config(self):
        with open(self.config) as file:
            return json.load(file)

    def start(self, *more, status=7, env=()):
        command = [NODE, os.path.join(HERE, "gateway.mjs"), "--port", "4242", *more]
        ended = subprocess.run(
            command, cwd=self.workspace, capture_output=True, text=True, timeout=60,
            env={"PATH": os.environ["PATH"], **dict(env)},
        )
        self.assertEqual(ended.returncode, status, ended.stderr)
        return ended

    def launch(self, *more, **others):
        chosen = ("--openclaw", self.package, "--config", self.template)
        return self.start(*chosen, *more, **others)

    def test_it_becomes_the_gateway_with_everything_in_the_workspace(self):
        said = json.loads(self.launch().stdout)
        entry = os.path.join(self.package, "openclaw.mjs")
        self.assertEqual(said["arguments"], [entry, "gateway", "run", "--port", "4242"])
        self.assertEqual(said["folder"], self.workspace)
        state = os.path.join(self.workspace, ".openclaw")
        temporary = os.path.join(self.workspace, ".tmp")
        expected = {"HOME": self.workspace, "OPENCLAW_STATE_DIR": state, "TMPDIR": temporary,
                    "OPENCLAW_CONFIG_PATH": self.config, "OPENCLAW_GATEWAY_PORT": "4242"}
        self.assertEqual(said["env"], expected)
        self.assertTrue(os.path.isdir(temporary))

    def test_what_the_environment_says_is_kept(self):
        said = json.loads(self.launch(env={"HOME": "/elsewhere"}).stdout)
        self.assertEqual(said["env"]["HOME"], "/elsewhere")

    def test_the_package_under_its_old_name_is_started_with_its_old_variables(self):
        os.remove(os.path.join(self.package, "openclaw.mjs"))
        entry = os.path.join(self.package, "dist", "entry.js")
        os.mkdir(os.path.dirname(entry))
        self.write(os.path.join(self.package, "package.json"), '{"type": "module"}')
        self.write(entry, STAND_IN.replace("OPENCLAW_", "CLAWDBOT_"))
        said = json.loads(self.launch(env={"OPENCLAW_STATE_DIR": "/elsewhere"}).stdout)
        self.assertEqual(said["arguments"][0], entry)
        self.assertEqual(said["env"]["CLAWDBOT_STATE_DIR"], "/elsewhere")
        self.assertEqual(said["env"]["CLAWDBOT_CONFIG_PATH"], self.config)
        self.assertEqual(said["env"]["CLAWDBOT_GATEWAY_PORT"], "4242")

    def test_the_package_behind_the_command_in_the_path_is_found(self):
        folder = os.path.join(self.base, "bin")
        os.mkdir(folder)
        os.symlink("../package/openclaw.mjs", os.path.join(folder, "openclaw"))
        ended = self.start("--config", self.template, env={"PATH": folder})
        entry = os.path.join(self.package, "openclaw.mjs")
        self.assertEqual(json.loads(ended.stdout)["arguments"][0], entry)

    def test_what_the_agent_changed_stays_until_the_template_changes(self):
        self.launch()
        self.assertEqual(self.read_config(), {"model": "one"})
        self.write(self.config, '{"model": "its own", "meta": {"version": 1}}')
        self.launch()
        self.assertEqual(self.read_config()["model"], "its own")
        self.write(self.template, '{"model": "two"}')
        self.launch()
        self.assertEqual(self.read_config(), {"model": "two", "meta": {"version": 1}})

    def test_a_broken_copy_is_replaced(self):
        self.launch()
        for broken in ("{", "", "[]", "null"):
            self.write(self.config, broken)
            self.launch()
            self.assertEqual(self.read_config(), {"model": "one"})

    def test_a_start_that_cannot_work_ends_with_78_and_says_why(self):
        self.write(self.template, '{"token": "${TOKEN}", "not": "$${THIS}"}')
        self.assertIn("needs TOKEN:", self.launch(status=78).stderr)
        self.assertFalse(os.path.exists(self.config))
        self.launch(env={"TOKEN": "secret"})
        self.assertEqual(self.read_config()["token"], "${TOKEN}")
        self.write(self.template, "{")
        self.assertIn("is not a JSON object", self.launch(status=78).stderr)
        self.assertIn("ENOENT", self.launch("--config", "/none", status=78).stderr)
        self.assertIn("--port wants a number", self.launch("--port", "x", status=78).stderr)
        self.assertIn("--bogus", self.launch("--bogus", status=78).stderr)
        self.write(self.template, "{}")
        self.assertIn("there is no /none/", self.launch("--openclaw", "/none", status=78).stderr)

    def test_the_template_that_comes_with_it_names_what_it_needs(self):
        ended = self.start("--openclaw", self.package, status=78)
        self.assertIn("needs OPENCLAW_GATEWAY_TOKEN, MODEL_URL:", ended.stderr)


class Model(unittest.TestCase):
    def setUp(self):
        self.server = subprocess.Popen(
            [sys.executable, os.path.join(HERE, "scripted_model.py")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        self.addCleanup(self.end)
        port = json.loads(self.server.stdout.readline())["port"]
        self.url = "http://127.0.0.1:%d/v1" % port

    def end(self):
        self.server.kill()
        self.server.communicate()

    def post(self, value):
        body = json.dumps(value).encode()
        request = urllib.request.Request(self.url + "/chat/completions", data=body)
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.read().decode()

    def ask(self, *said):
        messages = [{"role": "user", "content": text} for text in said]
        answer = json.loads(self.post({"model": "scripted", "messages": messages}))
        return answer["choices"][0]["message"]["content"]

    def test_it_knows_only_what_is_in_the_request(self):
        self.assertEqual(self.ask("please remember the word ivy"), "Noted: ivy")
        self.assertEqual(self.ask("which word?"), "I was told no word.")
        told = ("remember the word ivy", "remember the word fern", "What was the word?")
        self.assertEqual(self.ask(*told), "The word is fern.")
        self.assertEqual(self.ask("a", "b", "how many messages?"), "This is user message 3.")
        self.assertEqual(self.ask("[Mon 12:00 UTC] hello"), "You said: hello")
        self.assertEqual(self.ask([{"type": "text", "text": "parts"}]), "You said: parts")

    def test_what_openclaw_says_in_the_users_name_is_not_the_users(self):
        own = "<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>\nstate\n<<<END_OPENCLAW_INTERNAL_CONTEXT>>>"
        said = "[Mon 12:00 UTC] remember the word ivy\n\nRuntime: agent=main | os=Linux"
        self.assertEqual(self.ask(said, own), "Noted: ivy")
        self.assertEqual(self.ask(said, own, "how many messages?", own), "This is user message 2.")
        self.assertEqual(self.ask("hello\n\nRuntime: agent=main", own), "You said: hello")
        self.assertEqual(self.ask(""), "You said: ")

    def test_a_stream_adds_up_to_the_answer_and_says_that_it_is_done(self):
        messages = [{"role": "user", "content": "one  two\nthree"}]
        lines = self.post({"messages": messages, "stream": True}).split("\n\n")
        self.assertEqual(lines[-2:], ["data: [DONE]", ""])
        choices = [json.loads(line[len("data: "):])["choices"][0] for line in lines[:-2]]
        pieces = [choice["delta"].get("content", "") for choice in choices]
        self.assertEqual("".join(pieces), "You said: one  two\nthree")
        self.assertGreater(len(pieces), 4)
        self.assertEqual(choices[-1]["finish_reason"], "stop")

    def test_a_request_that_is_none_is_refused(self):
        for wrong in ({}, [], {"messages": "hi"}, {"messages": ["hi"]}):
            with self.assertRaises(urllib.error.HTTPError) as caught:
                self.post(wrong)
            with caught.exception as error:
                self.assertEqual(error.code, 400)
                self.assertIn("messages", json.load(error)["error"]["message"])


if __name__ == "__main__":
    unittest.main()

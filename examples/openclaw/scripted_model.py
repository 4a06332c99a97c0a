"""A model server for tests: speaks OpenAI's chat completions on loopback, and follows a script.

It remembers nothing. What it knows of a conversation is in the `messages` of each request, so an
answer that needs an earlier message proves that the agent in front of it has kept the conversation.

    remember the word X         Noted: X
    which word?                 The word is X.       (the latest of the earlier user messages)
                                I was told no word.
    how many messages?          This is user message N.
    anything else               You said: TEXT

Run: python3 scripted_model.py [--port 0] [--delay-ms 0] [--first-delay-ms 0]
Prints {"port": N} on stdout when it listens, and one line for each request on stderr.
Absent: tools, tokens that mean anything, and addresses other than loopback.
"""

import argparse
import json
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "scripted"
REMEMBER = re.compile(r"remember the word\W+(\w+)", re.IGNORECASE)
RECALL = re.compile(r"(which|what) (is|was )?(the )?word", re.IGNORECASE)
COUNT = re.compile(r"how many messages", re.IGNORECASE)
# Some agents put a bracketed date or sender in front of what the user wrote.
PREFIX = re.compile(r"^\s*\[[^\]\n]*\]\s*")
# OpenClaw 2026.9 tells the model of its own state in the user's name. It cuts this off the answer
# again, so that an answer that repeats it ends as an error.
NOT_THE_USERS = re.compile(
    r"<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>.*?<<<END_OPENCLAW_INTERNAL_CONTEXT>>>"
    r"|\n\nRuntime: agent=[^\n]*", re.DOTALL)


def text_of(message):
    """A message's content is a string, or a list of parts of which some are text."""
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def answer_to(messages):
    texts = [text_of(message) for message in messages if message.get("role") == "user"]
    rests = [(text, NOT_THE_USERS.sub("", text)) for text in texts]
    said = [PREFIX.sub("", rest) for text, rest in rests if rest.strip() or rest == text]
    last = said[-1].strip() if said else ""
    told = REMEMBER.search(last)
    if told:
        return "Noted: " + told.group(1)
    if RECALL.search(last):
        words = [found.group(1) for found in map(REMEMBER.search, said) if found]
        return "The word is %s." % words[-1] if words else "I was told no word."
    if COUNT.search(last):
        return "This is user message %d." % len(said)
    return "You said: " + last


def chunks_of(text):
    """Pieces that end in a space, as a tokenizer's would; joined they are the text."""
    return re.findall(r"\S+\s*|\s+", text)


class Refused(Exception):
    """A request that is not one. Its text says what is wrong."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "scripted-model"

    def do_GET(self):
        if self.path == "/v1/models":
            self.reply(200, {"object": "list", "data": [
                {"id": MODEL, "object": "model", "created": 0, "owned_by": "dormouse"}]})
        elif self.path == "/healthz":
            self.reply(200, {"ok": True})
        else:
            self.refuse(404, "there is no " + self.path)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path != "/v1/chat/completions":
            return self.refuse(404, "there is no " + self.path)
        try:
            request = self.parse(body)
        except Refused as error:
            return self.refuse(400, str(error))
        answer = answer_to(request["messages"])
        self.log("model=%s messages=%d tools=%d stream=%s bytes=%d answer=%s" % (
            request.get("model"), len(request["messages"]), len(request.get("tools") or ()),
            bool(request.get("stream")), len(body), json.dumps(answer[:80])))
        time.sleep(self.server.first_delay_s)
        completion = {"id": "chatcmpl-%d" % self.server.next_id(), "created": int(time.time()),
                      "model": request.get("model") or MODEL}
        usage = {"prompt_tokens": len(body) // 4, "completion_tokens": len(chunks_of(answer))}
        usage["total_tokens"] = sum(usage.values())
        if request.get("stream"):
            options = request.get("stream_options") or {}
            self.stream(completion, answer, usage if options.get("include_usage") else None)
        else:
            time.sleep(self.server.delay_s * len(chunks_of(answer)))
            message = {"role": "assistant", "content": answer}
            self.reply(200, {**completion, "object": "chat.completion", "usage": usage, "choices": [
                {"index": 0, "message": message, "finish_reason": "stop"}]})

    def parse(self, body):
        try:
            request = json.loads(body)
        except ValueError as error:
            raise Refused("the body is not JSON: %s" % error) from error
        messages = request.get("messages") if isinstance(request, dict) else None
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise Refused("`messages` must be a list of objects")
        return request

    def stream(self, completion, answer, usage):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("cache-control", "no-cache")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        completion["object"] = "chat.completion.chunk"
        sent = 0
        try:
            self.event(completion, {"role": "assistant", "content": ""})
            for piece in chunks_of(answer):
                time.sleep(self.server.delay_s)
                self.event(completion, {"content": piece})
                sent += 1
            self.event(completion, {}, "stop")
            if usage is not None:
                self.write_event(json.dumps({**completion, "choices": [], "usage": usage}))
            self.write_event("[DONE]")
        except (BrokenPipeError, ConnectionResetError):
            self.log("the client went away after %d chunks" % sent)

    def event(self, completion, delta, finish_reason=None):
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        self.write_event(json.dumps({**completion, "choices": [choice]}))

    def write_event(self, data):
        self.wfile.write(("data: %s\n\n" % data).encode())
        self.wfile.flush()

    def reply(self, status, value):
        payload = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def refuse(self, status, why):
        self.log("refused with %d: %s" % (status, why))
        self.reply(status, {"error": {"message": why, "type": "invalid_request_error"}})

    def log(self, text):
        print("%s %s %s" % (self.command, self.path, text), file=sys.stderr, flush=True)

    def log_message(self, *_):
        """The one line for each request is written by log()."""


class ModelServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port, delay_ms, first_delay_ms):
        super().__init__(("127.0.0.1", port), Handler)
        self.delay_s = delay_ms / 1000
        self.first_delay_s = first_delay_ms / 1000
        self.completions = iter(range(1, sys.maxsize))

    def next_id(self):
        return next(self.completions)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--delay-ms", type=int, default=0, help="before each chunk")
    parser.add_argument("--first-delay-ms", type=int, default=0, help="before the answer begins")
    options = parser.parse_args()
    server = ModelServer(options.port, options.delay_ms, options.first_delay_ms)
    print(json.dumps({"port": server.server_address[1]}), flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())

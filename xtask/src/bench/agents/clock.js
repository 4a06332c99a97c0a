// The agent of clock.rs in JavaScript: tells when it began, and when each turn reached it.
"use strict";

const began = process.hrtime.bigint();

const say = (frame) => process.stdout.write(JSON.stringify(frame) + "\n");

say({ ready: true });
let rest = "";
process.stdin.setEncoding("utf8");
process.stdin.on("data", (text) => {
  const read = process.hrtime.bigint();
  const lines = (rest + text).split("\n");
  rest = lines.pop();
  for (const line of lines) {
    const { turn, text: asked, attempt } = JSON.parse(line);
    say({ turn, delta: `${process.pid} ${began} ${read}` });
    if (!(asked.startsWith("hang") && attempt === 1)) say({ turn, done: "" });
  }
});

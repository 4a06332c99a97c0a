//! A small agent that tells when it began, and when each turn reached it.
//!
//! Owner: `cargo xtask bench` compiles it with rustc alone, linked statically. Speaks `jsonl`:
//! ready at once; to each turn it answers "PID BEGAN READ", the times in nanoseconds of
//! `CLOCK_MONOTONIC`. To the first attempt of a text that begins with "hang" it never gets done.
//! Absent: a JSON parser; what it is sent was written by the benchmark.

use std::io::{BufRead, Write};

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanos: i64,
}

const CLOCK_MONOTONIC: i32 = 1;

unsafe extern "C" {
    fn clock_gettime(clock: i32, now: *mut Timespec) -> i32;
}

fn now() -> i64 {
    let mut now = Timespec { seconds: 0, nanos: 0 };
    // SAFETY: the pointer is to a value of the C type's layout, which outlives the call.
    let refused = unsafe { clock_gettime(CLOCK_MONOTONIC, &mut now) };
    assert_eq!(refused, 0, "every Linux has this clock");
    now.seconds * 1_000_000_000 + now.nanos
}

fn main() {
    let began = now();
    let process = std::process::id();
    let mut output = std::io::stdout().lock();
    let mut say = |line: String| {
        output.write_all(line.as_bytes()).and_then(|()| output.flush()).is_ok()
    };
    if !say("{\"ready\":true}\n".to_string()) {
        return;
    }
    let mut line = String::new();
    let mut input = std::io::stdin().lock();
    while matches!(input.read_line(&mut line), Ok(1..)) {
        let read = now();
        let turn = field(&line, "\"turn\":\"").to_string();
        let hangs = field(&line, "\"text\":\"").starts_with("hang");
        let is_first = ["}", ","].iter().any(|end| line.contains(&format!("\"attempt\":1{end}")));
        let times = format!("{process} {began} {read}");
        if !say(format!("{{\"turn\":\"{turn}\",\"delta\":\"{times}\"}}\n")) {
            return;
        }
        let goes_on = hangs && is_first;
        if !goes_on && !say(format!("{{\"turn\":\"{turn}\",\"done\":\"\"}}\n")) {
            return;
        }
        line.clear();
    }
}

/// From after `name` to the next quote.
fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let after = line.split_once(name).map_or("", |(_, after)| after);
    after.split('"').next().unwrap_or_default()
}

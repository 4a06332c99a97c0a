//! Stories: what is said to the machine, and everything that it does, in plain words.
//!
//! A story is steps, one a line or separated by `·`. Its snapshot repeats each step with the time
//! since the story's begin, and below it what followed: what the journal says, what the asker is
//! answered, what the sender of a message hears, what is ordered of drivers and bridges. What
//! cannot be seen from outside is not printed. The last lines say where everything stands.
//!
//! ```text
//! agent a: idle 30m, ready 2m, stuck 10m, turn 6h, attempts 3, retry ask, drain 5m
//! agent b: grace 10s, reattach 1m
//! node: starts at once 1, queue 3 messages, queue 100 bytes
//! send m1 to a/k · send m1 to a/k by bob, key K, saying "text", as operator
//! wake a/k · stop a/k · restart a/k · redrive m1 as m2 · drop m1
//! driver starts · driver cannot start "why" · ready
//! bridge attaches · bridge attaches ready, boot 2, holding m1.1
//! bridge detaches · bridge detaches boot 2
//! agent says "par" of m1 · agent says "par" of m1 at 0 · agent holds "tool" for 5m
//! agent answers m1 "text" · agent fails m1 "why", retryable
//! agent exits with 1 · agent dies of signal 9, oom 1, asked by daemon, grace ran out
//! agent cannot be executed "why" · never launched · bridge is lost
//! agent c: files kept · agent d: files inputs
//! put a.csv into d/k · delete a.csv of d/k · restore d/k to 1
//! inputs are january · inputs lack "*.csv" · inputs cannot be listed "why"
//! files come 1 of 2 · files synced january+1 · sync january+1 fails "why", retryable
//! checkpoint offered lineage 0 uploads 1
//! config a revision 2 · config a revision 2 canary pong · rollout a pauses
//! config without a · config with a
//! +5m · nothing runs for 5m · wall clock +1h · wall clock -1h
//! the daemon dies and comes back · the daemon dies and comes back without agent a
//! ```
//!
//! A line that begins with `given` is played and not printed: what other stories tell already.
//! An instance is the newest of the session that was named last; `from a/k#1` names another one.
//!
//! Owner: the tests of `core`. Invariants: time passes only where a story says so; the core is
//! called at every deadline on the way, exactly when it asked for it. Absent: any other world.

#[path = "../model/mod.rs"]
mod model;

mod print;
mod steps;
mod words;
mod world;

mod bridge;
mod clock;
mod daemon;
mod files;
mod idle;
mod line;
mod memory;
mod operator;
mod poison;
mod queue;
mod revisions;
mod start;
mod stuck;

use expect_test::Expect;

fn check(story: &str, expect: Expect) {
    expect.assert_eq(&tell(story));
}

fn tell(story: &str) -> String {
    let mut world = world::World::new(story);
    for line in story.lines().map(str::trim) {
        let given = line.strip_prefix("given ");
        world.is_printed = given.is_none();
        for step in given.unwrap_or(line).split('·').map(str::trim) {
            if !step.is_empty() {
                steps::run(&mut world, step);
            }
        }
    }
    world.end()
}

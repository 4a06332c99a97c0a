//! Turns without progress, turns without end, and the three limits, each with an effect of its own.
//!
//! Owner: SCENARIOS S3, FAULTS F16 and F17.

use expect_test::expect;

use crate::check;

#[test]
fn a_stuck_turn_is_told_as_slow_then_ended_and_the_instance_replaced() {
    check(
        r#"agent a: stuck 10m, grace 10s
           given send m1 to a/k · bridge attaches · ready
           +4m59s999ms
           +1ms
           +4m59s999ms
           +1ms
           agent dies of signal 9, asked by daemon, grace ran out
           bridge attaches · ready · agent answers m1 "1""#,
        expect![[r#"
            0s          +4m59s999ms
            4m59s999ms  +1ms
            5m          …
                m1 hears: no progress for 5 min
            5m          +4m59s999ms
            9m59s999ms  +1ms
            10m         …
                journal: awake → stopping: m1 showed no progress for 10 min
                command: stop a/k#1, grace 10 s
            10m         agent dies of signal 9, asked by daemon, grace ran out
                journal: stopping: m1 was cut short; attempt 1 is counted
                journal: stopping → asleep: the agent was ended by signal 9, as asked (turn
                    stuck), killed when its grace ran out [turn_stuck]
                journal: asleep → starting: 1 message to answer
                m1 hears: the agent showed no sign of progress for too long; attempt 2 is due
                    now [turn_stuck]
                m1 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            10m         bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            10m         ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 2
                m1 hears: delivered, attempt 2
                command: deliver m1.2 to a/k#2
            10m         agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                m1 hears: the answer of 2, "1"
                command: acknowledge m1.2 to a/k#2
            a/k awake, generation 2
              m1 answered "1", attempts 2
        "#]],
    );
}

#[test]
fn progress_restarts_the_clock_and_slow_is_told_anew() {
    check(
        r#"agent a: stuck 10m
           given send m1 to a/k · bridge attaches · ready
           +6m · agent says "." of m1
           +4m59s999ms
           +1ms
           +4m59s999ms
           +1ms"#,
        expect![[r#"
            0s          +6m
            5m          …
                m1 hears: no progress for 5 min
            6m          agent says "." of m1
                m1 hears: "." at 0 of 1
            6m          +4m59s999ms
            10m59s999ms +1ms
            11m         …
                m1 hears: no progress for 5 min
            11m         +4m59s999ms
            15m59s999ms +1ms
            16m         …
                journal: awake → stopping: m1 showed no progress for 10 min
                command: stop a/k#1, grace 10 s
            a/k stopping, generation 1
              m1 with the agent
        "#]],
    );
}

#[test]
fn a_hold_keeps_a_silent_turn_and_its_end_is_the_end_of_the_patience() {
    check(
        r#"agent a: stuck 10m
           given send m1 to a/k · bridge attaches · ready
           agent holds "compile" for 27m
           +26m59s999ms
           +1ms"#,
        expect![[r#"
            0s          agent holds "compile" for 27m
                journal: awake: the agent asked to stay awake for 27 min (compile)
            0s          +26m59s999ms
            26m59s999ms +1ms
            27m         …
                journal: awake → stopping: m1 showed no progress for 27 min
                command: stop a/k#1, grace 10 s
            a/k stopping, generation 1
              m1 with the agent
        "#]],
    );
}

#[test]
fn a_renewed_hold_keeps_the_turn_until_it_answers() {
    check(
        r#"agent a: stuck 10m
           given send m1 to a/k · bridge attaches · ready
           agent holds "compile" for 15m · +14m
           agent holds "compile" for 15m · +14m
           agent answers m1 "1""#,
        expect![[r#"
            0s          agent holds "compile" for 15m
                journal: awake: the agent asked to stay awake for 15 min (compile)
            0s          +14m
            14m         agent holds "compile" for 15m
            14m         +14m
            28m         agent answers m1 "1"
                journal: awake: m1 was answered in 28 min (1 byte)
                m1 hears: the answer of 1, "1"
                command: acknowledge m1.1 to a/k#1
            a/k awake, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn endless_heartbeats_end_at_the_limit_of_the_turn() {
    check(
        r#"agent a: stuck 10m, turn 1h
           given send m1 to a/k · bridge attaches · ready
           +9m · agent says "." of m1 · agent holds "busy" for 1h
           +40m · agent says "." of m1 · agent holds "busy" for 1h
           +10m59s999ms
           +1ms
           agent dies of signal 15, asked by daemon"#,
        expect![[r#"
            0s          +9m
            5m          …
                m1 hears: no progress for 5 min
            9m          agent says "." of m1
                m1 hears: "." at 0 of 1
            9m          agent holds "busy" for 1h
                journal: awake: the agent asked to stay awake for 1 h (busy)
            9m          +40m
            49m         agent says "." of m1
                m1 hears: "." at 1 of 1
            49m         agent holds "busy" for 1h
            49m         +10m59s999ms
            59m59s999ms +1ms
            1h          …
                journal: awake → stopping: m1 took longer than 1 h
                command: stop a/k#1, grace 10 s
            1h          agent dies of signal 15, asked by daemon
                journal: stopping: m1 was cut short; attempt 1 is counted
                journal: stopping → asleep: the agent was ended by signal 15, as asked (turn
                    too long) [turn_too_long]
                journal: asleep → starting: 1 message to answer
                m1 hears: the agent worked on this longer than is allowed; attempt 2 is due
                    now [turn_too_long]
                m1 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            a/k starting, generation 2, failures 1
              m1 pending
        "#]],
    );
}

#[test]
fn an_answer_that_crosses_the_stop_counts() {
    check(
        r#"agent a: stuck 10m
           given send m1 to a/k · bridge attaches · ready
           +10m
           agent answers m1 "just in time"
           agent dies of signal 15, asked by daemon"#,
        expect![[r#"
            0s          +10m
            5m          …
                m1 hears: no progress for 5 min
            10m         …
                journal: awake → stopping: m1 showed no progress for 10 min
                command: stop a/k#1, grace 10 s
            10m         agent answers m1 "just in time"
                journal: stopping: m1 was answered in 10 min (12 bytes)
                m1 hears: the answer of 1, "just in time"
                command: acknowledge m1.1 to a/k#1
            10m         agent dies of signal 15, asked by daemon
                journal: stopping → asleep: the agent was ended by signal 15, as asked (turn
                    stuck) [turn_stuck]
                command: release a/k#1
            a/k asleep, generation 1, failures 1
              m1 answered "just in time"
        "#]],
    );
}

#[test]
fn a_message_that_always_gets_stuck_is_dead_lettered_and_the_next_one_answered() {
    check(
        r#"agent a: stuck 10m, attempts 2
           given send m1 to a/k · send m2 to a/k · bridge attaches · ready
           given +10m · agent dies of signal 15, asked by daemon · bridge attaches · ready
           +10m · agent dies of signal 15, asked by daemon
           +2s · bridge attaches · ready
           agent answers m2 "2""#,
        expect![[r#"
            10m         +10m
            15m         …
                m1 hears: no progress for 5 min
            20m         …
                journal: awake → stopping: m1 showed no progress for 10 min
                command: stop a/k#2, grace 10 s
            20m         agent dies of signal 15, asked by daemon
                journal: stopping: m1 was cut short; attempt 2 is counted
                journal: stopping: m1 was dead-lettered after 2 attempts [attempts_exhausted]
                journal: stopping → asleep: the agent was ended by signal 15, as asked (turn
                    stuck) [turn_stuck]
                journal: asleep → starting: 1 message to answer
                m1 hears: given up, after 2 attempts; the last: the agent showed no sign of
                    progress for too long [attempts_exhausted]
                m2 hears: waking, about 0 ms
                command: release a/k#2
                command: start a/k#3
            20m         +2s
            20m2s       bridge attaches
                command: admit a/k#3, boot 1, execute the agent
            20m2s       ready
                journal: starting → awake: the agent was ready after 2 s
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/k#3
            20m2s       agent answers m2 "2"
                journal: awake: m2 was answered in 0 ms (1 byte)
                m2 hears: the answer of 1, "2"
                command: acknowledge m2.1 to a/k#3
            a/k awake, generation 3
              m1 dead [attempts_exhausted], attempts 2
              m2 answered "2"
        "#]],
    );
}

#[test]
fn a_stuck_turn_that_must_not_be_repeated_is_ambiguous() {
    check(
        r#"agent a: stuck 10m, retry ask
           given send m1 to a/k · bridge attaches · ready
           +10m · agent dies of signal 15, asked by daemon"#,
        expect![[r#"
            0s          +10m
            5m          …
                m1 hears: no progress for 5 min
            10m         …
                journal: awake → stopping: m1 showed no progress for 10 min
                command: stop a/k#1, grace 10 s
            10m         agent dies of signal 15, asked by daemon
                journal: stopping: m1 was cut short; attempt 1 is counted
                journal: stopping: m1 was dead-lettered after 1 attempt [ambiguous]
                journal: stopping → asleep: the agent was ended by signal 15, as asked (turn
                    stuck) [turn_stuck]
                m1 hears: given up, the turn was interrupted: the agent showed no sign of
                    progress for too long [ambiguous]
                command: release a/k#1
            a/k asleep, generation 1, failures 1
              m1 dead [ambiguous]
        "#]],
    );
}

#[test]
fn each_of_the_three_limits_has_its_own_effect() {
    check(
        r#"agent a: idle 7m, ready 3m, stuck 5m
           given send m1 to a/k · bridge attaches
           +3m
           given agent dies of signal 15, asked by daemon · bridge attaches · ready
           +5m
           given agent dies of signal 15, asked by daemon · +2s · bridge attaches · ready
           agent answers m1 "1"
           +7m"#,
        expect![[r#"
            0s          +3m
            3m          …
                journal: starting → stopping: it was not ready within 3 min
                command: stop a/k#1, grace 10 s
            3m          +5m
            5m30s       …
                m1 hears: no progress for 2 min 30 s
            8m          …
                journal: awake → stopping: m1 showed no progress for 5 min
                command: stop a/k#2, grace 10 s
            8m2s        agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                m1 hears: the answer of 2, "1"
                command: acknowledge m1.2 to a/k#3
            8m2s        +7m
            15m2s       …
                journal: awake → stopping: nothing happened for 7 min, and nothing needs it
                command: stop a/k#3, grace 10 s
            a/k stopping, generation 3
              m1 answered "1", attempts 2
        "#]],
    );
}

#[test]
fn pieces_of_another_turn_are_no_progress() {
    check(
        r#"agent a: stuck 10m
           given send m1 to a/k · send m2 to a/k · bridge attaches · ready
           agent answers m1 "1"
           +9m59s999ms
           agent says "late" of m1
           agent answers m1 "again"
           +1ms"#,
        expect![[r#"
            0s          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                journal: awake: m2 was handed to the agent, attempt 1
                m1 hears: the answer of 1, "1"
                m2 hears: delivered, attempt 1
                command: acknowledge m1.1 to a/k#1
                command: deliver m2.1 to a/k#1
            0s          +9m59s999ms
            5m          …
                m2 hears: no progress for 5 min
            9m59s999ms  agent says "late" of m1
                counted as stale: 1
            9m59s999ms  agent answers m1 "again"
                command: acknowledge m1.1 to a/k#1
                counted as stale: 1
            9m59s999ms  +1ms
            10m         …
                journal: awake → stopping: m2 showed no progress for 10 min
                command: stop a/k#1, grace 10 s
            a/k stopping, generation 1
              m1 answered "1"
              m2 with the agent
        "#]],
    );
}

/// Only its bridge could tell that it works, or what holds it; that it is away has its own limit.
#[test]
fn a_turn_is_not_called_stuck_while_its_bridge_is_away() {
    check(
        r#"agent a: stuck 20s, reattach 1m
           given send m1 to a/k · bridge attaches · ready · agent holds "tool" for 5m
           the daemon dies and comes back
           +50s
           bridge attaches ready, holding m1.1
           agent holds "tool" for 4m
           +3m
           agent answers m1 "1""#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: awake: the daemon came back and found 1 message waiting
            0s          +50s
            50s         bridge attaches ready, holding m1.1
                command: admit a/k#1, boot 1
            50s         agent holds "tool" for 4m
                journal: awake: the agent asked to stay awake for 4 min (tool)
            50s         +3m
            3m50s       agent answers m1 "1"
                journal: awake: m1 was answered in 3 min 50 s (1 byte)
                m1 hears: the answer of 1, "1"
                command: acknowledge m1.1 to a/k#1
            a/k awake, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_silent_turn_is_called_stuck_soon_after_its_bridge_came_back() {
    check(
        r#"agent a: stuck 20s, reattach 1m
           given send m1 to a/k · bridge attaches · ready
           bridge detaches
           +50s
           bridge attaches ready, holding m1.1
           +9s999ms
           +1ms"#,
        expect![[r#"
            0s          bridge detaches
            0s          +50s
            50s         bridge attaches ready, holding m1.1
                command: admit a/k#1, boot 1
            50s         +9s999ms
            59s999ms    +1ms
            1m          …
                journal: awake → stopping: m1 showed no progress for 1 min
                command: stop a/k#1, grace 10 s
            a/k stopping, generation 1
              m1 with the agent
        "#]],
    );
}

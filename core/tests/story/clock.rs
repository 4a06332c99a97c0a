//! Clocks that jump, machines that were suspended.
//!
//! Owner: FAULTS I17, F11, F12.

use expect_test::expect;

use crate::check;

#[test]
fn a_jump_of_the_wall_clock_changes_no_limit() {
    check(
        r#"agent a: idle 30m
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           +20m
           wall clock +365d
           +9m59s999ms
           wall clock -400d
           +1ms"#,
        expect![[r#"
            0s          +20m
            20m         wall clock +365d
            20m         +9m59s999ms
            29m59s999ms wall clock -400d
            29m59s999ms +1ms
            30m         …
                journal: awake → stopping: nothing happened for 30 min, and nothing needs it
                command: stop a/k#1, grace 10 s
            a/k stopping, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_jump_of_the_wall_clock_changes_no_pause() {
    check(
        r#"given send m1 to a/k · bridge attaches · agent exits with 1
           given bridge attaches
           agent exits with 1
           wall clock +365d
           +1s99ms
           +1ms
           agent exits with 1
           wall clock -365d
           +4s79ms
           +1ms"#,
        expect![[r#"
            0s          agent exits with 1
                journal: starting → backoff: the agent ended with exit code 1 [app_exit];
                    failure 2 in a row, so the next start has to wait
                m1 hears: the agent's program ended by itself; the next start is due in
                    1s100ms [app_exit]
                command: release a/k#2
            0s          wall clock +365d
            0s          +1s99ms
            1s99ms      +1ms
            1s100ms     …
                journal: backoff → asleep: the pause before the next start is over
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: start a/k#3
            1s100ms     agent exits with 1
                journal: starting → backoff: the agent ended with exit code 1 [app_exit];
                    failure 3 in a row, so the next start has to wait
                m1 hears: the agent's program ended by itself; the next start is due in
                    4s80ms [app_exit]
                command: release a/k#3
            1s100ms     wall clock -365d
            1s100ms     +4s79ms
            5s179ms     +1ms
            5s180ms     …
                journal: backoff → asleep: the pause before the next start is over
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: start a/k#4
            a/k starting, generation 4, failures 3
              m1 pending
        "#]],
    );
}

#[test]
fn a_wall_clock_that_went_back_while_the_daemon_was_down_cannot_stretch_the_pause_for_ever() {
    check(
        r#"given send m1 to a/k · bridge attaches · agent exits with 1
           given bridge attaches · agent exits with 1
           wall clock -365d
           the daemon dies and comes back
           +4m59s999ms
           +1ms"#,
        expect![[r#"
            0s          wall clock -365d
            0s          the daemon dies and comes back
            0s          +4m59s999ms
            4m59s999ms  +1ms
            5m          …
                journal: backoff → asleep: the pause before the next start is over
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: start a/k#3
            a/k starting, generation 3, failures 2
              m1 pending
        "#]],
    );
}

#[test]
fn a_wall_clock_that_went_ahead_while_the_daemon_was_down_ends_the_pause_early() {
    check(
        r#"given send m1 to a/k · bridge attaches · agent exits with 1
           given bridge attaches · agent exits with 1
           wall clock +1h
           the daemon dies and comes back"#,
        expect![[r#"
            0s          wall clock +1h
            0s          the daemon dies and comes back
                journal: backoff → asleep: the pause before the next start is over
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: start a/k#3
            a/k starting, generation 3, failures 2
              m1 pending
        "#]],
    );
}

#[test]
fn a_machine_that_was_suspended_ends_what_was_due_meanwhile() {
    check(
        r#"agent a: idle 30m, stuck 10m
           given send m1 to a/one · bridge attaches · ready · agent answers m1 "1"
           given send m2 to a/two · bridge attaches · ready
           nothing runs for 2h"#,
        expect![[r#"
            0s          nothing runs for 2h
                journal: a/one awake → stopping: nothing happened for 2 h, and nothing needs
                    it
                journal: a/two awake → stopping: m2 showed no progress for 2 h
                command: stop a/one#1, grace 10 s
                command: stop a/two#1, grace 10 s
            a/one stopping, generation 1
              m1 answered "1"
            a/two stopping, generation 1
              m2 with the agent
        "#]],
    );
}

//! When an agent is stopped because nothing needs it, and what keeps it.
//!
//! Owner: SCENARIOS S3. Both sides of each limit are told.

use expect_test::expect;

use crate::check;

#[test]
fn a_turn_longer_than_the_idle_limit_lives() {
    check(
        r#"agent a: idle 30m, stuck 10m
           given send m1 to a/k · bridge attaches · ready
           +9m · agent says "." of m1 · +9m · agent says "." of m1 · +9m · agent says "." of m1
           +3m
           agent answers m1 "..."
           +29m59s999ms
           +1ms"#,
        expect![[r#"
            0s          +9m
            5m          …
                m1 hears: no progress for 5 min
            9m          agent says "." of m1
                m1 hears: "." at 0 of 1
            9m          +9m
            14m         …
                m1 hears: no progress for 5 min
            18m         agent says "." of m1
                m1 hears: "." at 1 of 1
            18m         +9m
            23m         …
                m1 hears: no progress for 5 min
            27m         agent says "." of m1
                m1 hears: "." at 2 of 1
            27m         +3m
            30m         agent answers m1 "..."
                journal: awake: m1 was answered in 30 min (3 bytes)
                m1 hears: the answer of 1, "..."
                command: acknowledge m1.1 to a/k#1
            30m         +29m59s999ms
            59m59s999ms +1ms
            1h          …
                journal: awake → stopping: nothing happened for 30 min, and nothing needs it
                command: stop a/k#1, grace 10 s
            a/k stopping, generation 1
              m1 answered "..."
        "#]],
    );
}

#[test]
fn traffic_keeps_a_session_and_the_stop_is_one_limit_after_the_last_of_it() {
    check(
        r#"agent a: idle 30m
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           given +20m · send m2 to a/k · agent answers m2 "2"
           given +20m · send m3 to a/k · agent answers m3 "3"
           +29m59s999ms
           +1ms"#,
        expect![[r#"
            40m         +29m59s999ms
            1h9m59s999ms +1ms
            1h10m       …
                journal: awake → stopping: nothing happened for 30 min, and nothing needs it
                command: stop a/k#1, grace 10 s
            a/k stopping, generation 1
              m1 answered "1"
              m2 answered "2"
              m3 answered "3"
        "#]],
    );
}

#[test]
fn a_message_just_before_the_stop_wins() {
    check(
        r#"agent a: idle 30m
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           +29m59s999ms
           send m2 to a/k
           +1ms
           agent answers m2 "2""#,
        expect![[r#"
            0s          +29m59s999ms
            29m59s999ms send m2 to a/k
                journal: awake: m2 was handed to the agent, attempt 1
                answer: accepted m2, next
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/k#1
            29m59s999ms +1ms
            30m         agent answers m2 "2"
                journal: awake: m2 was answered in 1 ms (1 byte)
                m2 hears: the answer of 1, "2"
                command: acknowledge m2.1 to a/k#1
            a/k awake, generation 1
              m1 answered "1"
              m2 answered "2"
        "#]],
    );
}

#[test]
fn a_message_just_after_the_stop_wakes_a_new_instance() {
    check(
        r#"agent a: idle 30m
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           +30m
           send m2 to a/k
           agent dies of signal 15, asked by daemon
           bridge attaches · ready · agent answers m2 "2""#,
        expect![[r#"
            0s          +30m
            30m         …
                journal: awake → stopping: nothing happened for 30 min, and nothing needs it
                command: stop a/k#1, grace 10 s
            30m         send m2 to a/k
                answer: accepted m2, next
                m2 hears: queued behind 0
            30m         agent dies of signal 15, asked by daemon
                journal: stopping → asleep: the agent was ended by signal 15, as asked (idle)
                journal: asleep → starting: 1 message to answer
                m2 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            30m         bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            30m         ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/k#2
            30m         agent answers m2 "2"
                journal: awake: m2 was answered in 0 ms (1 byte)
                m2 hears: the answer of 1, "2"
                command: acknowledge m2.1 to a/k#2
            a/k awake, generation 2
              m1 answered "1"
              m2 answered "2"
        "#]],
    );
}

#[test]
fn late_activity_of_a_vanished_instance_changes_nothing() {
    check(
        r#"agent a: idle 30m
           given send m1 to a/k · bridge attaches · ready
           given agent exits with 1 · bridge attaches boot 2 · ready · agent answers m1 "1"
           +29m59s999ms
           agent says "late" of m1 from a/k#1
           agent holds "tool" for 5m from a/k#1
           agent answers m1.1 "late" from a/k#1
           bridge attaches boot 1 from a/k#1
           bridge detaches boot 1 from a/k#1
           ready from a/k#1
           driver starts from a/k#1
           driver cannot start "late" from a/k#1
           agent exits with 7 from a/k#1
           +1ms
           agent exits with 0, asked by daemon
           agent holds "tool" for 5m from a/k#2
           agent exits with 0, asked by daemon from a/k#2"#,
        expect![[r#"
            0s          +29m59s999ms
            29m59s999ms agent says "late" of m1 from a/k#1
                counted as stale: 1
            29m59s999ms agent holds "tool" for 5m from a/k#1
                counted as stale: 1
            29m59s999ms agent answers m1.1 "late" from a/k#1
                command: acknowledge m1.1 to a/k#1
                counted as stale: 1
            29m59s999ms bridge attaches boot 1 from a/k#1
                command: refuse a/k#1, boot 1, this start of the session is over
                counted as stale: 1
            29m59s999ms bridge detaches boot 1 from a/k#1
                counted as stale: 1
            29m59s999ms ready from a/k#1
                counted as stale: 1
            29m59s999ms driver starts from a/k#1
                counted as stale: 1
            29m59s999ms driver cannot start "late" from a/k#1
                counted as stale: 1
            29m59s999ms agent exits with 7 from a/k#1
                command: release a/k#1
                counted as stale: 1
            29m59s999ms +1ms
            30m         …
                journal: awake → stopping: nothing happened for 30 min, and nothing needs it
                command: stop a/k#2, grace 10 s
            30m         agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked (idle)
                command: release a/k#2
            30m         agent holds "tool" for 5m from a/k#2
                counted as stale: 1
            30m         agent exits with 0, asked by daemon from a/k#2
                command: release a/k#2
                counted as stale: 1
            a/k asleep, generation 2
              m1 answered "1", attempts 2
        "#]],
    );
}

#[test]
fn an_instance_that_was_never_started_cannot_speak() {
    check(
        r#"agent answers m1.1 "forged" from a/k#1
           send m1 to a/k
           agent answers m1.1 "forged" from a/k#2
           bridge attaches ready from a/k#2"#,
        expect![[r#"
            0s          agent answers m1.1 "forged" from a/k#1
                command: acknowledge m1.1 to a/k#1
                counted as stale: 1
            0s          send m1 to a/k
                journal: asleep → starting: 1 message to answer
                answer: accepted m1, next
                m1 hears: waking
                command: start a/k#1
            0s          agent answers m1.1 "forged" from a/k#2
                command: acknowledge m1.1 to a/k#2
                counted as stale: 1
            0s          bridge attaches ready from a/k#2
                command: refuse a/k#2, boot 1, this start of the session is over
                counted as stale: 1
            a/k starting, generation 1
              m1 pending
        "#]],
    );
}

#[test]
fn a_hold_keeps_an_idle_session_until_it_expires() {
    check(
        r#"agent a: idle 30m
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           +20m · agent holds "tool" for 40m
           +39m59s999ms
           +1ms"#,
        expect![[r#"
            0s          +20m
            20m         agent holds "tool" for 40m
                journal: awake: the agent asked to stay awake for 40 min (tool)
            20m         +39m59s999ms
            59m59s999ms +1ms
            1h          …
                journal: awake → stopping: nothing happened for 40 min, and nothing needs it
                command: stop a/k#1, grace 10 s
            a/k stopping, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_hold_shorter_than_the_idle_limit_counts_as_activity_only() {
    check(
        r#"agent a: idle 30m
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           +20m · agent holds "tool" for 1s
           +29m59s999ms
           +1ms"#,
        expect![[r#"
            0s          +20m
            20m         agent holds "tool" for 1s
                journal: awake: the agent asked to stay awake for 1 s (tool)
            20m         +29m59s999ms
            49m59s999ms +1ms
            50m         …
                journal: awake → stopping: nothing happened for 30 min, and nothing needs it
                command: stop a/k#1, grace 10 s
            a/k stopping, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn no_hold_lasts_longer_than_an_hour_without_being_renewed() {
    check(
        r#"agent a: idle 1m
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           agent holds "tool" for 30d
           +59m59s999ms
           +1ms"#,
        expect![[r#"
            0s          agent holds "tool" for 30d
                journal: awake: the agent asked to stay awake for 1 h (tool)
            0s          +59m59s999ms
            59m59s999ms +1ms
            1h          …
                journal: awake → stopping: nothing happened for 1 h, and nothing needs it
                command: stop a/k#1, grace 10 s
            a/k stopping, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn the_owner_of_a_hold_may_end_it_early() {
    check(
        r#"agent a: idle 1m
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           agent holds "tool" for 50m
           +2m
           agent holds "tool" for 0s
           +59s999ms
           +1ms"#,
        expect![[r#"
            0s          agent holds "tool" for 50m
                journal: awake: the agent asked to stay awake for 50 min (tool)
            0s          +2m
            2m          agent holds "tool" for 0s
            2m          +59s999ms
            2m59s999ms  +1ms
            3m          …
                journal: awake → stopping: nothing happened for 1 min, and nothing needs it
                command: stop a/k#1, grace 10 s
            a/k stopping, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn an_idle_agent_that_ignores_the_stop_is_killed_and_the_message_meanwhile_is_not_lost() {
    check(
        r#"agent a: idle 30m, grace 10s
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           +30m
           send m2 to a/k
           +14s999ms
           +1ms
           agent dies of signal 9, asked by driver
           bridge attaches · ready · agent answers m2 "2""#,
        expect![[r#"
            0s          +30m
            30m         …
                journal: awake → stopping: nothing happened for 30 min, and nothing needs it
                command: stop a/k#1, grace 10 s
            30m         send m2 to a/k
                answer: accepted m2, next
                m2 hears: queued behind 0
            30m         +14s999ms
            30m14s999ms +1ms
            30m15s      …
                journal: stopping: its end was not confirmed in time; ordered to be killed
                command: kill a/k#1
            30m15s      agent dies of signal 9, asked by driver
                journal: stopping → asleep: the agent was ended by signal 9, as asked (idle)
                journal: asleep → starting: 1 message to answer
                m2 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            30m15s      bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            30m15s      ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/k#2
            30m15s      agent answers m2 "2"
                journal: awake: m2 was answered in 0 ms (1 byte)
                m2 hears: the answer of 1, "2"
                command: acknowledge m2.1 to a/k#2
            a/k awake, generation 2
              m1 answered "1"
              m2 answered "2"
        "#]],
    );
}

/// What holds it is known again only once its bridge has come back and said so.
#[test]
fn a_daemon_that_came_back_waits_for_the_holds_before_it_calls_a_session_idle() {
    check(
        r#"agent a: idle 20s, reattach 1m
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           given agent holds "tool" for 2m
           the daemon dies and comes back
           +30s
           bridge attaches ready
           agent holds "tool" for 1m30s
           +1m30s"#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: awake: the daemon came back and found 0 messages waiting
            0s          +30s
            30s         bridge attaches ready
                command: admit a/k#1, boot 1
            30s         agent holds "tool" for 1m30s
                journal: awake: the agent asked to stay awake for 1 min 30 s (tool)
            30s         +1m30s
            2m          …
                journal: awake → stopping: nothing happened for 1 min 30 s, and nothing needs
                    it
                command: stop a/k#1, grace 10 s
            a/k stopping, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_bridge_that_came_back_has_a_moment_to_say_what_holds_it_and_no_more() {
    check(
        r#"agent a: idle 20s, reattach 1m
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           given bridge detaches
           +30s
           bridge attaches ready
           +9s999ms
           +1ms"#,
        expect![[r#"
            0s          +30s
            30s         bridge attaches ready
                command: admit a/k#1, boot 1
            30s         +9s999ms
            39s999ms    +1ms
            40s         …
                journal: awake → stopping: nothing happened for 40 s, and nothing needs it
                command: stop a/k#1, grace 10 s
            a/k stopping, generation 1
              m1 answered "1"
        "#]],
    );
}

/// Nothing lasts from before the first hello, so there is nothing to wait for.
#[test]
fn an_idle_limit_shorter_than_that_moment_is_kept_by_an_agent_that_was_just_started() {
    check(
        r#"agent a: idle 2s
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           +1s999ms
           +1ms"#,
        expect![[r#"
            0s          +1s999ms
            1s999ms     +1ms
            2s          …
                journal: awake → stopping: nothing happened for 2 s, and nothing needs it
                command: stop a/k#1, grace 10 s
            a/k stopping, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_message_that_a_daemon_takes_while_it_ends_is_activity_too() {
    check(
        r#"agent a: idle 5m
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           given the daemon is told to end · +4m
           send m2 to a/k
           drop m2
           +2m"#,
        expect![[r#"
            4m          send m2 to a/k
                answer: accepted m2, next
                m2 hears: the daemon is ending
            4m          drop m2
                journal: awake: ops dropped m2
                answer: accepted, 0 waiting
                m2 hears: dropped
            4m          +2m
            a/k awake, generation 1
              m1 answered "1"
              m2 cancelled
        "#]],
    );
}

//! From the first message to a ready agent, and messages that arrive at every moment of a life.
//!
//! Owner: SCENARIOS S0, "messages that arrive while …", and the neighbours' double start.

use expect_test::expect;

use crate::check;

#[test]
fn a_message_wakes_the_agent_is_answered_and_the_agent_sleeps_again() {
    check(
        r#"send m1 to a/k
           driver starts · bridge attaches · +2s · ready
           agent says "he" of m1 · agent says "llo" of m1
           +5s
           agent answers m1 "hello"
           +29m59s999ms
           +1ms
           +2s
           agent exits with 0, asked by daemon, after 30m9s"#,
        expect![[r#"
            0s          send m1 to a/k
                journal: asleep → starting: 1 message to answer
                answer: accepted m1, next
                m1 hears: waking
                command: start a/k#1
            0s          driver starts
            0s          bridge attaches
                command: admit a/k#1, boot 1, execute the agent
            0s          +2s
            2s          ready
                journal: starting → awake: the agent was ready after 2 s
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to a/k#1
            2s          agent says "he" of m1
                m1 hears: "he" at 0 of 1
            2s          agent says "llo" of m1
                m1 hears: "llo" at 2 of 1
            2s          +5s
            7s          agent answers m1 "hello"
                journal: awake: m1 was answered in 5 s (5 bytes)
                m1 hears: the answer of 1, "hello"
                command: acknowledge m1.1 to a/k#1
            7s          +29m59s999ms
            30m6s999ms  +1ms
            30m7s       …
                journal: awake → stopping: nothing happened for 30 min, and nothing needs it
                command: stop a/k#1, grace 10 s
            30m7s       +2s
            30m9s       agent exits with 0, asked by daemon, after 30m9s
                journal: stopping → asleep: the agent ended with exit code 0 after 30 min 9
                    s, as asked (idle)
                command: release a/k#1
            a/k asleep, generation 1
              m1 answered "hello"
        "#]],
    );
}

#[test]
fn two_first_messages_start_one_instance_and_are_answered_in_order() {
    check(
        r#"send m1 to a/k · send m2 to a/k
           driver starts · bridge attaches · ready
           agent answers m1 "one" · agent answers m2 "two""#,
        expect![[r#"
            0s          send m1 to a/k
                journal: asleep → starting: 1 message to answer
                answer: accepted m1, next
                m1 hears: waking
                command: start a/k#1
            0s          send m2 to a/k
                answer: accepted m2, behind 1
                m2 hears: waking
            0s          driver starts
            0s          bridge attaches
                command: admit a/k#1, boot 1, execute the agent
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to a/k#1
            0s          agent answers m1 "one"
                journal: awake: m1 was answered in 0 ms (3 bytes)
                journal: awake: m2 was handed to the agent, attempt 1
                m1 hears: the answer of 1, "one"
                m2 hears: delivered, attempt 1
                command: acknowledge m1.1 to a/k#1
                command: deliver m2.1 to a/k#1
            0s          agent answers m2 "two"
                journal: awake: m2 was answered in 0 ms (3 bytes)
                m2 hears: the answer of 1, "two"
                command: acknowledge m2.1 to a/k#1
            a/k awake, generation 1
              m1 answered "one"
              m2 answered "two"
        "#]],
    );
}

#[test]
fn messages_while_starting_and_between_start_and_ready_are_delivered_once_each_in_order() {
    check(
        r#"send m1 to a/k
           send m2 to a/k
           driver starts · send m3 to a/k
           bridge attaches · send m4 to a/k
           ready
           agent answers m1 "1" · agent answers m2 "2" · agent answers m3 "3"
           agent answers m4 "4""#,
        expect![[r#"
            0s          send m1 to a/k
                journal: asleep → starting: 1 message to answer
                answer: accepted m1, next
                m1 hears: waking
                command: start a/k#1
            0s          send m2 to a/k
                answer: accepted m2, behind 1
                m2 hears: waking
            0s          driver starts
            0s          send m3 to a/k
                answer: accepted m3, behind 2
                m3 hears: waking
            0s          bridge attaches
                command: admit a/k#1, boot 1, execute the agent
            0s          send m4 to a/k
                answer: accepted m4, behind 3
                m4 hears: waking
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to a/k#1
            0s          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                journal: awake: m2 was handed to the agent, attempt 1
                m1 hears: the answer of 1, "1"
                m2 hears: delivered, attempt 1
                command: acknowledge m1.1 to a/k#1
                command: deliver m2.1 to a/k#1
            0s          agent answers m2 "2"
                journal: awake: m2 was answered in 0 ms (1 byte)
                journal: awake: m3 was handed to the agent, attempt 1
                m2 hears: the answer of 1, "2"
                m3 hears: delivered, attempt 1
                command: acknowledge m2.1 to a/k#1
                command: deliver m3.1 to a/k#1
            0s          agent answers m3 "3"
                journal: awake: m3 was answered in 0 ms (1 byte)
                journal: awake: m4 was handed to the agent, attempt 1
                m3 hears: the answer of 1, "3"
                m4 hears: delivered, attempt 1
                command: acknowledge m3.1 to a/k#1
                command: deliver m4.1 to a/k#1
            0s          agent answers m4 "4"
                journal: awake: m4 was answered in 0 ms (1 byte)
                m4 hears: the answer of 1, "4"
                command: acknowledge m4.1 to a/k#1
            a/k awake, generation 1
              m1 answered "1"
              m2 answered "2"
              m3 answered "3"
              m4 answered "4"
        "#]],
    );
}

#[test]
fn a_message_while_draining_is_answered_by_the_next_instance() {
    check(
        r#"given send m1 to a/k · driver starts · bridge attaches · ready
           stop a/k
           send m2 to a/k
           agent answers m1 "1"
           agent exits with 0, asked by daemon
           driver starts · bridge attaches · ready
           agent answers m2 "2""#,
        expect![[r#"
            0s          stop a/k
                journal: awake → draining: ops asked to stop it
                answer: accepted, 0 waiting
            0s          send m2 to a/k
                answer: accepted m2, behind 1
                m2 hears: queued behind 1
            0s          agent answers m1 "1"
                journal: draining: m1 was answered in 0 ms (1 byte)
                journal: draining → stopping: its turn is finished
                m1 hears: the answer of 1, "1"
                command: acknowledge m1.1 to a/k#1
                command: stop a/k#1, grace 10 s
            0s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked (stop)
                journal: asleep → starting: 1 message to answer
                m2 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            0s          driver starts
            0s          bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/k#2
            0s          agent answers m2 "2"
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
fn a_message_while_stopping_is_answered_by_the_next_instance() {
    check(
        r#"given send m1 to a/k · driver starts · bridge attaches · ready · agent answers m1 "1"
           stop a/k
           send m2 to a/k
           agent exits with 0, asked by daemon
           driver starts · bridge attaches · ready
           agent answers m2 "2""#,
        expect![[r#"
            0s          stop a/k
                journal: awake → stopping: ops asked to stop it
                answer: accepted, 0 waiting
                command: stop a/k#1, grace 10 s
            0s          send m2 to a/k
                answer: accepted m2, next
                m2 hears: queued behind 0
            0s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked (stop)
                journal: asleep → starting: 1 message to answer
                m2 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            0s          driver starts
            0s          bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/k#2
            0s          agent answers m2 "2"
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
fn a_message_during_the_pause_after_crashes_hears_when_the_next_start_is_due() {
    check(
        r#"given send m1 to a/k · driver starts · bridge attaches
           agent exits with 1
           driver starts · bridge attaches
           agent exits with 1
           send m2 to a/k
           +2s
           bridge attaches · ready
           agent answers m1 "1" · agent answers m2 "2""#,
        expect![[r#"
            0s          agent exits with 1
                journal: starting → asleep: the agent ended with exit code 1 [app_exit]
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: release a/k#1
                command: start a/k#2
            0s          driver starts
            0s          bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            0s          agent exits with 1
                journal: starting → backoff: the agent ended with exit code 1 [app_exit];
                    failure 2 in a row, so the next start has to wait
                m1 hears: the agent's program ended by itself; the next start is due in
                    1s100ms [app_exit]
                command: release a/k#2
            0s          send m2 to a/k
                answer: accepted m2, behind 1
                m2 hears: the agent's program ended by itself; the next start is due in
                    1s100ms [app_exit]
            0s          +2s
            1s100ms     …
                journal: backoff → asleep: the pause before the next start is over
                journal: asleep → starting: 2 messages to answer
                m1 hears: waking
                m2 hears: waking
                command: start a/k#3
            2s          bridge attaches
                command: admit a/k#3, boot 1, execute the agent
            2s          ready
                journal: starting → awake: the agent was ready after 900 ms
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to a/k#3
            2s          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                journal: awake: m2 was handed to the agent, attempt 1
                m1 hears: the answer of 1, "1"
                m2 hears: delivered, attempt 1
                command: acknowledge m1.1 to a/k#3
                command: deliver m2.1 to a/k#3
            2s          agent answers m2 "2"
                journal: awake: m2 was answered in 0 ms (1 byte)
                m2 hears: the answer of 1, "2"
                command: acknowledge m2.1 to a/k#3
            a/k awake, generation 3
              m1 answered "1"
              m2 answered "2"
        "#]],
    );
}

#[test]
fn the_second_waking_has_an_estimate_from_the_first() {
    check(
        r#"send m1 to a/k · +1s · bridge attaches · +11s · ready · agent answers m1 "1"
           +30m · agent exits with 0, asked by daemon
           send m2 to a/k
           send m3 to a/other"#,
        expect![[r#"
            0s          send m1 to a/k
                journal: a/k asleep → starting: 1 message to answer
                answer: accepted m1, next
                m1 hears: waking
                command: start a/k#1
            0s          +1s
            1s          bridge attaches
                command: admit a/k#1, boot 1, execute the agent
            1s          +11s
            12s         ready
                journal: a/k starting → awake: the agent was ready after 12 s
                journal: a/k awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to a/k#1
            12s         agent answers m1 "1"
                journal: a/k awake: m1 was answered in 0 ms (1 byte)
                m1 hears: the answer of 1, "1"
                command: acknowledge m1.1 to a/k#1
            12s         +30m
            30m12s      …
                journal: a/k awake → stopping: nothing happened for 30 min, and nothing needs
                    it
                command: stop a/k#1, grace 10 s
            30m12s      agent exits with 0, asked by daemon
                journal: a/k stopping → asleep: the agent ended with exit code 0, as asked
                    (idle)
                command: release a/k#1
            30m12s      send m2 to a/k
                journal: a/k asleep → starting: 1 message to answer
                answer: accepted m2, next
                m2 hears: waking, about 12 s
                command: start a/k#2
            30m12s      send m3 to a/other
                journal: a/other asleep → starting: 1 message to answer
                answer: accepted m3, next
                m3 hears: waking, about 12 s
                command: start a/other#1
            a/k starting, generation 2
              m1 answered "1"
              m2 pending
            a/other starting, generation 1
              m3 pending
        "#]],
    );
}

#[test]
fn not_ready_in_time_is_decided_at_the_limit_and_not_before() {
    check(
        r#"agent a: ready 2m
           given send m1 to a/k · driver starts · bridge attaches
           +1m59s999ms
           +1ms
           ready
           agent dies of signal 15, asked by daemon
           +1m59s999ms
           bridge attaches · ready"#,
        expect![[r#"
            0s          +1m59s999ms
            1m59s999ms  +1ms
            2m          …
                journal: starting → stopping: it was not ready within 2 min
                command: stop a/k#1, grace 10 s
            2m          ready
            2m          agent dies of signal 15, asked by daemon
                journal: stopping → asleep: the agent was ended by signal 15, as asked (not
                    ready in time) [start_timeout]
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: release a/k#1
                command: start a/k#2
            2m          +1m59s999ms
            3m59s999ms  bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            3m59s999ms  ready
                journal: starting → awake: the agent was ready after 1 min 59 s
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to a/k#2
            a/k awake, generation 2, failures 1
              m1 with the agent
        "#]],
    );
}

#[test]
fn an_instance_whose_bridge_never_comes_is_killed_at_the_start_limit() {
    check(
        r#"send m1 to a/k · driver starts
           +2m
           bridge is lost, asked by driver"#,
        expect![[r#"
            0s          send m1 to a/k
                journal: asleep → starting: 1 message to answer
                answer: accepted m1, next
                m1 hears: waking
                command: start a/k#1
            0s          driver starts
            0s          +2m
            2m          …
                journal: starting → stopping: it was not ready within 2 min
                command: kill a/k#1
            2m          bridge is lost, asked by driver
                journal: stopping → asleep: the bridge was gone without a report, as asked
                    (not ready in time) [start_timeout]
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: release a/k#1
                command: start a/k#2
            a/k starting, generation 2, failures 1
              m1 pending
        "#]],
    );
}

#[test]
fn a_driver_that_cannot_start_is_tried_again_after_growing_pauses() {
    check(
        r#"send m1 to a/k
           driver cannot start "no space left"
           driver cannot start "no space left"
           +2s
           driver cannot start "no space left"
           +5s
           bridge attaches · ready · agent answers m1 "1""#,
        expect![[r#"
            0s          send m1 to a/k
                journal: asleep → starting: 1 message to answer
                answer: accepted m1, next
                m1 hears: waking
                command: start a/k#1
            0s          driver cannot start "no space left"
                journal: starting → asleep: it could not be started: no space left
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: start a/k#2
            0s          driver cannot start "no space left"
                journal: starting → backoff: it could not be started: no space left; failure
                    2 in a row, so the next start has to wait
                m1 hears: no place could be made for the agent to run in; the next start is
                    due in 1s100ms [start_failed]
            0s          +2s
            1s100ms     …
                journal: backoff → asleep: the pause before the next start is over
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: start a/k#3
            2s          driver cannot start "no space left"
                journal: starting → backoff: it could not be started: no space left; failure
                    3 in a row, so the next start has to wait
                m1 hears: no place could be made for the agent to run in; the next start is
                    due in 4s80ms [start_failed]
            2s          +5s
            6s80ms      …
                journal: backoff → asleep: the pause before the next start is over
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: start a/k#4
            7s          bridge attaches
                command: admit a/k#4, boot 1, execute the agent
            7s          ready
                journal: starting → awake: the agent was ready after 920 ms
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to a/k#4
            7s          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                m1 hears: the answer of 1, "1"
                command: acknowledge m1.1 to a/k#4
            a/k awake, generation 4
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_start_that_failed_according_to_the_driver_does_not_undo_a_bridge_that_is_there() {
    check(
        r#"given send m1 to a/k
           bridge attaches
           driver cannot start "timed out"
           ready
           driver cannot start "timed out"
           +10m
           driver cannot start "timed out"
           agent dies of signal 15, asked by daemon"#,
        expect![[r#"
            0s          bridge attaches
                command: admit a/k#1, boot 1, execute the agent
            0s          driver cannot start "timed out"
                counted as stale: 1
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to a/k#1
            0s          driver cannot start "timed out"
                counted as stale: 1
            0s          +10m
            5m          …
                m1 hears: no progress for 5 min
            10m         …
                journal: awake → stopping: m1 showed no progress for 10 min
                command: stop a/k#1, grace 10 s
            10m         driver cannot start "timed out"
                counted as stale: 1
            10m         agent dies of signal 15, asked by daemon
                journal: stopping: m1 was cut short; attempt 1 is counted
                journal: stopping → asleep: the agent was ended by signal 15, as asked (turn
                    stuck) [turn_stuck]
                journal: asleep → starting: 1 message to answer
                m1 hears: the agent showed no sign of progress for too long; attempt 2 is due
                    now [turn_stuck]
                m1 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            a/k starting, generation 2, failures 1
              m1 pending
        "#]],
    );
}

#[test]
fn a_start_that_fails_after_it_was_called_off_is_the_end_of_the_instance() {
    check(
        r#"given send m1 to a/k
           stop a/k
           driver cannot start "no space left""#,
        expect![[r#"
            0s          stop a/k
                journal: starting → stopping: ops asked to stop it
                answer: accepted, 1 waiting
                command: kill a/k#1
            0s          driver cannot start "no space left"
                journal: stopping → asleep: it could not be started: no space left
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: start a/k#2
            a/k starting, generation 2, failures 1
              m1 pending
        "#]],
    );
}

#[test]
fn an_agent_that_cannot_be_executed_says_so() {
    check(
        r#"given send m1 to a/k · driver starts · bridge attaches
           agent cannot be executed "No such file or directory""#,
        expect![[r#"
            0s          agent cannot be executed "No such file or directory"
                journal: starting → asleep: the agent could not be executed: No such file or
                    directory [launch_failed]
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: release a/k#1
                command: start a/k#2
            a/k starting, generation 2, failures 1
              m1 pending
        "#]],
    );
}

#[test]
fn an_instance_that_ended_before_its_agent_ran_is_no_failure() {
    check(
        r#"send m1 to a/k · driver starts
           never launched"#,
        expect![[r#"
            0s          send m1 to a/k
                journal: asleep → starting: 1 message to answer
                answer: accepted m1, next
                m1 hears: waking
                command: start a/k#1
            0s          driver starts
            0s          never launched
                journal: starting → asleep: the instance ended before its agent was executed
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: release a/k#1
                command: start a/k#2
            a/k starting, generation 2
              m1 pending
        "#]],
    );
}

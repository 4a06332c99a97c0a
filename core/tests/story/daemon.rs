//! The daemon dies in every phase, and every command that it had just given may be lost with it.
//!
//! Owner: DESIGN, machine 3 and 6; FAULTS I22, F1 to F3.

use expect_test::expect;

use crate::check;

#[test]
fn in_asleep_with_a_message_that_waits_in_line() {
    check(
        r#"node: starts at once 1
           given send m1 to a/one · send m2 to a/two
           the daemon dies and comes back
           bridge attaches ready from a/one#1
           agent answers m1 "1""#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: a/one starting: the daemon came back and found 1 message waiting
                m2 hears: in the line of starts, behind 0
            0s          bridge attaches ready from a/one#1
                journal: a/one starting → awake: the agent was ready after 0 ms
                journal: a/one awake: m1 was handed to the agent, attempt 1
                journal: a/two asleep → starting: 1 message to answer
                m1 hears: delivered, attempt 1
                m2 hears: waking, about 0 ms
                command: admit a/one#1, boot 1
                command: deliver m1.1 to a/one#1
                command: start a/two#1
            0s          agent answers m1 "1"
                journal: a/one awake: m1 was answered in 0 ms (1 byte)
                m1 hears: the answer of 1, "1"
                command: acknowledge m1.1 to a/one#1
            a/one awake, generation 1
              m1 answered "1"
            a/two starting, generation 1
              m2 pending
        "#]],
    );
}

#[test]
fn what_was_starting_before_takes_its_place_among_the_starts_before_any_other() {
    check(
        r#"node: starts at once 1
           given wake a/one · send m1 to a/two
           the daemon dies and comes back
           bridge attaches ready from a/one"#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: a/one starting: the daemon came back and found 0 messages waiting
            0s          bridge attaches ready from a/one
                journal: a/one starting → awake: the agent was ready after 0 ms
                journal: a/two asleep → starting: 1 message to answer
                m1 hears: waking, about 0 ms
                command: admit a/one#1, boot 1
                command: start a/two#1
            a/one awake, generation 1
            a/two starting, generation 1
              m1 pending
        "#]],
    );
}

#[test]
fn in_starting_when_the_start_was_lost() {
    check(
        r#"given send m1 to a/k
           the daemon dies and comes back
           never launched
           driver starts · bridge attaches · ready · agent answers m1 "1""#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: starting: the daemon came back and found 1 message waiting
            0s          never launched
                journal: starting → asleep: the instance ended before its agent was executed
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: release a/k#1
                command: start a/k#2
            0s          driver starts
            0s          bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to a/k#2
            0s          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                m1 hears: the answer of 1, "1"
                command: acknowledge m1.1 to a/k#2
            a/k awake, generation 2
              m1 answered "1"
        "#]],
    );
}

#[test]
fn in_starting_when_the_start_was_carried_out() {
    check(
        r#"given send m1 to a/k · driver starts
           the daemon dies and comes back
           bridge attaches
           ready
           agent answers m1 "1""#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: starting: the daemon came back and found 1 message waiting
            0s          bridge attaches
                command: admit a/k#1, boot 1, execute the agent
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to a/k#1
            0s          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                m1 hears: the answer of 1, "1"
                command: acknowledge m1.1 to a/k#1
            a/k awake, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn in_starting_when_the_agent_became_ready_meanwhile() {
    check(
        r#"given send m1 to a/k · driver starts · bridge attaches
           the daemon dies and comes back
           bridge attaches ready
           agent answers m1 "1""#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: starting: the daemon came back and found 1 message waiting
            0s          bridge attaches ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: admit a/k#1, boot 1
                command: deliver m1.1 to a/k#1
            0s          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                m1 hears: the answer of 1, "1"
                command: acknowledge m1.1 to a/k#1
            a/k awake, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn in_awake_idle() {
    check(
        r#"agent a: idle 30m
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1" · +20m
           the daemon dies and comes back
           +10s
           bridge attaches ready
           +29m49s999ms
           +1ms"#,
        expect![[r#"
            20m         the daemon dies and comes back
                journal: awake: the daemon came back and found 0 messages waiting
            20m         +10s
            20m10s      bridge attaches ready
                command: admit a/k#1, boot 1
            20m10s      +29m49s999ms
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
fn in_awake_with_a_turn_whose_frame_was_lost() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           the daemon dies and comes back
           bridge attaches ready
           agent answers m1 "1""#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: awake: the daemon came back and found 1 message waiting
            0s          bridge attaches ready
                command: admit a/k#1, boot 1
                command: deliver m1.1 to a/k#1
            0s          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                m1 hears: the answer of 1, "1"
                command: acknowledge m1.1 to a/k#1
            a/k awake, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn in_awake_with_a_turn_that_goes_on() {
    check(
        r#"agent a: stuck 10m
           given send m1 to a/k · bridge attaches · ready · agent says "one " of m1 · +9m
           the daemon dies and comes back
           bridge attaches ready, holding m1.1
           agent says "one " of m1 at 0
           agent says "two" of m1
           agent answers m1 "one two""#,
        expect![[r#"
            9m          the daemon dies and comes back
                journal: awake: the daemon came back and found 1 message waiting
            9m          bridge attaches ready, holding m1.1
                command: admit a/k#1, boot 1
            9m          agent says "one " of m1 at 0
                m1 hears: "one " at 0 of 1
            9m          agent says "two" of m1
                m1 hears: "two" at 4 of 1
            9m          agent answers m1 "one two"
                journal: awake: m1 was answered in 0 ms (7 bytes)
                m1 hears: the answer of 1, "one two"
                command: acknowledge m1.1 to a/k#1
            a/k awake, generation 1
              m1 answered "one two"
        "#]],
    );
}

#[test]
fn in_awake_with_a_turn_that_ended_meanwhile_and_whose_instance_is_gone() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           the daemon dies and comes back
           agent exits with 1
           bridge attaches · ready · agent answers m1 "1""#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: awake: the daemon came back and found 1 message waiting
            0s          agent exits with 1
                journal: awake: m1 was cut short; attempt 1 is counted
                journal: awake → asleep: the agent ended with exit code 1 [app_exit]
                journal: asleep → starting: 1 message to answer
                m1 hears: the agent's program ended by itself; attempt 2 is due now
                    [app_exit]
                m1 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            0s          bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 2
                m1 hears: delivered, attempt 2
                command: deliver m1.2 to a/k#2
            0s          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                m1 hears: the answer of 2, "1"
                command: acknowledge m1.2 to a/k#2
            a/k awake, generation 2
              m1 answered "1", attempts 2
        "#]],
    );
}

#[test]
fn in_awake_and_the_bridge_never_comes_back() {
    check(
        r#"agent a: reattach 1m
           given send m1 to a/k · bridge attaches · ready
           the daemon dies and comes back
           +59s999ms
           +1ms
           bridge is lost, asked by driver"#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: awake: the daemon came back and found 1 message waiting
            0s          +59s999ms
            59s999ms    +1ms
            1m          …
                journal: awake → stopping: its bridge was not connected for 1 min
                command: kill a/k#1
            1m          bridge is lost, asked by driver
                journal: stopping: m1 was cut short; attempt 1 is counted
                journal: stopping → asleep: the bridge was gone without a report, as asked
                    (bridge unreachable) [bridge_unreachable]
                journal: asleep → starting: 1 message to answer
                m1 hears: the agent could not be reached any more; attempt 2 is due now
                    [bridge_unreachable]
                m1 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            a/k starting, generation 2, failures 1
              m1 pending
        "#]],
    );
}

#[test]
fn in_awake_during_the_pause_before_the_next_attempt() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           agent fails m1 "busy", retryable
           +500ms
           the daemon dies and comes back
           bridge attaches ready
           +599ms
           +1ms"#,
        expect![[r#"
            0s          agent fails m1 "busy", retryable
                journal: awake: m1 failed [agent_error]: busy; it will be tried again
                m1 hears: the agent said that it failed; attempt 2 is due in 1s100ms
                    [agent_error]
                command: acknowledge m1.1 to a/k#1
            0s          +500ms
            500ms       the daemon dies and comes back
                journal: awake: the daemon came back and found 1 message waiting
            500ms       bridge attaches ready
                command: admit a/k#1, boot 1
            500ms       +599ms
            1s99ms      +1ms
            1s100ms     …
                journal: awake: m1 was handed to the agent, attempt 2
                m1 hears: delivered, attempt 2
                command: deliver m1.2 to a/k#1
            a/k awake, generation 1
              m1 with the agent, attempts 2
        "#]],
    );
}

#[test]
fn in_draining() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · restart a/k
           the daemon dies and comes back
           bridge attaches ready, holding m1.1
           agent answers m1 "1"
           agent exits with 0, asked by daemon"#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: draining: the daemon came back and found 1 message waiting
            0s          bridge attaches ready, holding m1.1
                command: admit a/k#1, boot 1
            0s          agent answers m1 "1"
                journal: draining: m1 was answered in 0 ms (1 byte)
                journal: draining → stopping: its turn is finished
                m1 hears: the answer of 1, "1"
                command: acknowledge m1.1 to a/k#1
                command: stop a/k#1, grace 10 s
            0s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked
                    (restart)
                journal: asleep → starting: it was asked for
                command: release a/k#1
                command: start a/k#2
            a/k starting, generation 2
              m1 answered "1"
        "#]],
    );
}

#[test]
fn in_stopping_when_the_stop_was_lost() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · agent answers m1 "1" · stop a/k
           the daemon dies and comes back
           bridge attaches ready
           agent exits with 0, asked by daemon"#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: stopping: the daemon came back and found 0 messages waiting
            0s          bridge attaches ready
                command: admit a/k#1, boot 1
                command: stop a/k#1, grace 10 s
            0s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked (stop)
                command: release a/k#1
            a/k asleep, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn in_stopping_when_the_bridge_does_not_come_back() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · agent answers m1 "1" · stop a/k
           the daemon dies and comes back
           +9s999ms
           +1ms
           bridge is lost, asked by driver"#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: stopping: the daemon came back and found 0 messages waiting
            0s          +9s999ms
            9s999ms     +1ms
            10s         …
                journal: stopping: its end was not confirmed in time; ordered to be killed
                command: kill a/k#1
            10s         bridge is lost, asked by driver
                journal: stopping → asleep: the bridge was gone without a report, as asked
                    (stop)
                command: release a/k#1
            a/k asleep, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn in_stopping_a_stuck_turn_when_the_kill_was_lost() {
    check(
        r#"agent a: stuck 10m
           given send m1 to a/k · bridge attaches · ready · +10m
           the daemon dies and comes back
           agent dies of signal 15, asked by daemon"#,
        expect![[r#"
            10m         the daemon dies and comes back
                journal: stopping: the daemon came back and found 1 message waiting
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
fn in_backoff_the_rest_of_the_pause_is_waited_for() {
    check(
        r#"given send m1 to a/k · bridge attaches · agent exits with 1
           given bridge attaches · agent exits with 1 · +2s · bridge attaches
           agent exits with 1
           +2s
           the daemon dies and comes back
           +2s79ms
           +1ms"#,
        expect![[r#"
            2s          agent exits with 1
                journal: starting → backoff: the agent ended with exit code 1 [app_exit];
                    failure 3 in a row, so the next start has to wait
                m1 hears: the agent's program ended by itself; the next start is due in
                    4s80ms [app_exit]
                command: release a/k#3
            2s          +2s
            4s          the daemon dies and comes back
            4s          +2s79ms
            6s79ms      +1ms
            6s80ms      …
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
fn failures_in_a_row_are_counted_across_restarts_of_the_daemon() {
    check(
        r#"given send m1 to a/k · bridge attaches · agent exits with 1
           the daemon dies and comes back
           agent exits with 1
           the daemon dies and comes back
           +2s
           the daemon dies and comes back
           agent exits with 1"#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: starting: the daemon came back and found 1 message waiting
            0s          agent exits with 1
                journal: starting → backoff: the agent ended with exit code 1 [app_exit];
                    failure 2 in a row, so the next start has to wait
                m1 hears: the agent's program ended by itself; the next start is due in
                    1s100ms [app_exit]
                command: release a/k#2
            0s          the daemon dies and comes back
            0s          +2s
            1s100ms     …
                journal: backoff → asleep: the pause before the next start is over
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: start a/k#3
            2s          the daemon dies and comes back
                journal: starting: the daemon came back and found 1 message waiting
            2s          agent exits with 1
                journal: starting → backoff: the agent ended with exit code 1 [app_exit];
                    failure 3 in a row, so the next start has to wait
                m1 hears: the agent's program ended by itself; the next start is due in
                    4s80ms [app_exit]
                command: release a/k#3
            a/k backoff, generation 3, failures 3
              m1 pending
        "#]],
    );
}

#[test]
fn attempts_are_counted_across_restarts_of_the_daemon() {
    check(
        r#"agent a: attempts 2
           given send m1 to a/k · bridge attaches · ready
           the daemon dies and comes back
           agent exits with 1
           bridge attaches · ready
           the daemon dies and comes back
           agent exits with 1"#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: awake: the daemon came back and found 1 message waiting
            0s          agent exits with 1
                journal: awake: m1 was cut short; attempt 1 is counted
                journal: awake → asleep: the agent ended with exit code 1 [app_exit]
                journal: asleep → starting: 1 message to answer
                m1 hears: the agent's program ended by itself; attempt 2 is due now
                    [app_exit]
                m1 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            0s          bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 2
                m1 hears: delivered, attempt 2
                command: deliver m1.2 to a/k#2
            0s          the daemon dies and comes back
                journal: awake: the daemon came back and found 1 message waiting
            0s          agent exits with 1
                journal: awake: m1 was cut short; attempt 2 is counted
                journal: awake: m1 was dead-lettered after 2 attempts [poison_message]
                journal: awake → backoff: the agent ended with exit code 1 [app_exit];
                    failure 2 in a row, so the next start has to wait
                m1 hears: given up, after 2 attempts; the last: the agent's program ended by
                    itself [poison_message]
                command: release a/k#2
            a/k backoff, generation 2, failures 2
              m1 dead [poison_message], attempts 2
        "#]],
    );
}

#[test]
fn a_wish_to_wake_survives() {
    check(
        r#"node: starts at once 1
           given send m1 to a/one · wake a/two
           the daemon dies and comes back
           bridge attaches ready from a/one#1"#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: a/one starting: the daemon came back and found 1 message waiting
            0s          bridge attaches ready from a/one#1
                journal: a/one starting → awake: the agent was ready after 0 ms
                journal: a/one awake: m1 was handed to the agent, attempt 1
                journal: a/two asleep → starting: it was asked for
                m1 hears: delivered, attempt 1
                command: admit a/one#1, boot 1
                command: deliver m1.1 to a/one#1
                command: start a/two#1
            a/one awake, generation 1
              m1 with the agent
            a/two starting, generation 1
        "#]],
    );
}

#[test]
fn a_session_that_sleeps_is_loaded_with_its_history() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           given +30m · agent exits with 0, asked by daemon
           the daemon dies and comes back
           send m2 to a/k by eve
           send m3 to a/k"#,
        expect![[r#"
            30m         the daemon dies and comes back
            30m         send m2 to a/k by eve
                answer: refused, not your session
            30m         send m3 to a/k
                journal: asleep → starting: 1 message to answer
                answer: accepted m3, next
                m3 hears: waking, about 0 ms
                command: start a/k#2
            a/k starting, generation 2
              m1 answered "1"
              m3 pending
        "#]],
    );
}

#[test]
fn a_running_session_of_an_agent_that_is_not_configured_any_more_finishes_and_sleeps() {
    check(
        r#"given send m1 to a/k · send m2 to a/k · bridge attaches · ready
           the daemon dies and comes back without agent a
           bridge attaches ready, holding m1.1
           agent answers m1 "1"
           send m3 to a/k
           wake a/k
           restart a/k
           agent answers m2 "2"
           stop a/k
           agent exits with 0, asked by daemon"#,
        expect![[r#"
            0s          the daemon dies and comes back without agent a
                journal: awake: the daemon came back and found 2 messages waiting
            0s          bridge attaches ready, holding m1.1
                command: admit a/k#1, boot 1
            0s          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                journal: awake: m2 was handed to the agent, attempt 1
                m1 hears: the answer of 1, "1"
                m2 hears: delivered, attempt 1
                command: acknowledge m1.1 to a/k#1
                command: deliver m2.1 to a/k#1
            0s          send m3 to a/k
                answer: refused, no such agent
            0s          wake a/k
                answer: denied, its agent is not configured
            0s          restart a/k
                answer: denied, its agent is not configured
            0s          agent answers m2 "2"
                journal: awake: m2 was answered in 0 ms (1 byte)
                m2 hears: the answer of 1, "2"
                command: acknowledge m2.1 to a/k#1
            0s          stop a/k
                journal: awake → stopping: ops asked to stop it
                answer: accepted, 0 waiting
                command: stop a/k#1, grace 10 s
            0s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked (stop)
                command: release a/k#1
            a/k asleep, generation 1
              m1 answered "1"
              m2 answered "2"
        "#]],
    );
}

#[test]
fn messages_of_an_agent_that_is_not_configured_any_more_are_kept() {
    check(
        r#"given send m1 to a/k · send m2 to a/k
           the daemon dies and comes back without agent a
           never launched
           the daemon dies and comes back
           send m3 to a/k
           wake a/k
           stop a/k
           drop m1
           drop m2
           +1d"#,
        expect![[r#"
            0s          the daemon dies and comes back without agent a
                journal: starting: the daemon came back and found 2 messages waiting
            0s          never launched
                journal: starting → asleep: the instance ended before its agent was executed
                journal: asleep: not started, because its agent is not in the config any more
                command: release a/k#1
            0s          the daemon dies and comes back
                journal: asleep: not started, because its agent is not in the config any more
            0s          send m3 to a/k
                answer: refused, no such agent
            0s          wake a/k
                answer: denied, its agent is not configured
            0s          stop a/k
                answer: denied, 2 waiting would start it again
            0s          drop m1
                journal: asleep: ops dropped m1
                answer: accepted, 1 waiting
                m1 hears: dropped
            0s          drop m2
                journal: asleep: ops dropped m2
                answer: accepted, 0 waiting
                m2 hears: dropped
            0s          +1d
            a/k asleep, generation 1
              m1 cancelled
              m2 cancelled
        "#]],
    );
}

#[test]
fn a_turn_of_an_agent_that_is_not_configured_any_more_is_not_repeated_unasked() {
    check(
        r#"agent a: retry ask
           given send m1 to a/k · bridge attaches · ready
           the daemon dies and comes back without agent a
           bridge attaches ready, holding m1.1
           agent exits with 1
           send m2 to a/k"#,
        expect![[r#"
            0s          the daemon dies and comes back without agent a
                journal: awake: the daemon came back and found 1 message waiting
            0s          bridge attaches ready, holding m1.1
                command: admit a/k#1, boot 1
            0s          agent exits with 1
                journal: awake: m1 was cut short; attempt 1 is counted
                journal: awake: m1 was dead-lettered after 1 attempt [ambiguous]
                journal: awake → asleep: the agent ended with exit code 1 [app_exit]
                m1 hears: given up, the turn was interrupted: the agent's program ended by
                    itself [ambiguous]
                command: release a/k#1
            0s          send m2 to a/k
                answer: refused, no such agent
            a/k asleep, generation 1, failures 1
              m1 dead [ambiguous]
        "#]],
    );
}

#[test]
fn a_start_that_failed_is_not_believed_of_an_instance_that_was_ready_before() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           the daemon dies and comes back
           driver cannot start "timed out"
           +1m
           driver cannot start "timed out""#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: awake: the daemon came back and found 1 message waiting
            0s          driver cannot start "timed out"
                counted as stale: 1
            0s          +1m
            1m          …
                journal: awake → stopping: its bridge was not connected for 1 min
                command: kill a/k#1
            1m          driver cannot start "timed out"
                counted as stale: 1
            a/k stopping, generation 1
              m1 with the agent
        "#]],
    );
}

#[test]
fn in_stopping_the_agent_keeps_its_grace() {
    check(
        r#"agent a: grace 1m
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1" · stop a/k
           the daemon dies and comes back
           +5s
           bridge attaches ready
           +1m4s999ms
           +1ms
           bridge detaches
           +5s
           bridge attaches ready
           +4s999ms
           +1ms"#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: stopping: the daemon came back and found 0 messages waiting
            0s          +5s
            5s          bridge attaches ready
                command: admit a/k#1, boot 1
                command: stop a/k#1, grace 1 min
            5s          +1m4s999ms
            1m9s999ms   +1ms
            1m10s       …
                journal: stopping: its end was not confirmed in time; ordered to be killed
                command: kill a/k#1
            1m10s       bridge detaches
            1m10s       +5s
            1m15s       bridge attaches ready
                command: admit a/k#1, boot 1
                command: stop a/k#1, grace 1 min
            1m15s       +4s999ms
            1m19s999ms  +1ms
            1m20s       …
                journal: stopping: its end was not confirmed in time; ordered to be killed
                command: kill a/k#1
            a/k stopping, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_daemon_that_is_told_to_end_finishes_turns_and_begins_none() {
    check(
        r#"node: starts at once 1
           given send m1 to a/k · bridge attaches from a/k#1 · ready from a/k#1
           given send m2 to a/k
           the daemon is told to end
           send m3 to a/k
           send m4 to a/new
           agent answers m1 "1" from a/k#1
           the daemon dies and comes back
           bridge attaches ready from a/k#1"#,
        expect![[r#"
            0s          the daemon is told to end
                m2 hears: the daemon is ending
            0s          send m3 to a/k
                answer: accepted m3, behind 2
                m3 hears: the daemon is ending
            0s          send m4 to a/new
                answer: accepted m4, next
                m4 hears: the daemon is ending
            0s          agent answers m1 "1" from a/k#1
                journal: a/k awake: m1 was answered in 0 ms (1 byte)
                m1 hears: the answer of 1, "1"
                command: acknowledge m1.1 to a/k#1
            0s          the daemon dies and comes back
                journal: a/k awake: the daemon came back and found 2 messages waiting
                journal: a/new asleep → starting: 1 message to answer
                m4 hears: waking
                command: start a/new#1
            0s          bridge attaches ready from a/k#1
                journal: a/k awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: admit a/k#1, boot 1
                command: deliver m2.1 to a/k#1
            a/k awake, generation 1
              m1 answered "1"
              m2 with the agent
              m3 pending
            a/new starting, generation 1
              m4 pending
        "#]],
    );
}

#[test]
fn a_try_that_falls_due_while_the_daemon_ends_waits_for_the_next_one() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           agent fails m1 "busy", retryable
           the daemon is told to end
           +10m
           the daemon dies and comes back
           bridge attaches ready"#,
        expect![[r#"
            0s          agent fails m1 "busy", retryable
                journal: awake: m1 failed [agent_error]: busy; it will be tried again
                m1 hears: the agent said that it failed; attempt 2 is due in 1s100ms
                    [agent_error]
                command: acknowledge m1.1 to a/k#1
            0s          the daemon is told to end
                m1 hears: the daemon is ending
            0s          +10m
            10m         the daemon dies and comes back
                journal: awake: the daemon came back and found 1 message waiting
            10m         bridge attaches ready
                journal: awake: m1 was handed to the agent, attempt 2
                m1 hears: delivered, attempt 2
                command: admit a/k#1, boot 1
                command: deliver m1.2 to a/k#1
            a/k awake, generation 1
              m1 with the agent, attempts 2
        "#]],
    );
}

//! Wake, stop and restart, in every phase: accepted, ignored or denied, never silently nothing.
//!
//! Owner: DESIGN, "Errors and wording".

use expect_test::expect;

use crate::check;

#[test]
fn in_asleep() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           given +30m · agent exits with 0, asked by daemon
           stop a/k
           wake a/k
           given bridge attaches · ready · +30m · agent exits with 0, asked by daemon
           restart a/k"#,
        expect![[r#"
            30m         stop a/k
                answer: ignored, already asleep
            30m         wake a/k
                journal: asleep: ops asked to wake it
                journal: asleep → starting: it was asked for
                answer: accepted, 0 waiting
                command: start a/k#2
            1h          restart a/k
                journal: asleep: ops asked to restart it
                journal: asleep → starting: it was asked for
                answer: accepted, 0 waiting
                command: start a/k#3
            a/k starting, generation 3
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_session_that_never_was_can_be_woken_but_not_stopped() {
    check(
        r#"stop a/k
           wake a/k"#,
        expect![[r#"
            0s          stop a/k
                answer: ignored, already asleep
            0s          wake a/k
                journal: asleep: ops asked to wake it
                journal: asleep → starting: it was asked for
                answer: accepted, 0 waiting
                command: start a/k#1
            a/k starting, generation 1
        "#]],
    );
}

#[test]
fn in_starting() {
    check(
        r#"given send m1 to a/k · bridge attaches
           wake a/k
           stop a/k
           agent dies of signal 15, asked by daemon
           given bridge attaches
           restart a/k
           agent dies of signal 15, asked by daemon"#,
        expect![[r#"
            0s          wake a/k
                answer: ignored, already starting
            0s          stop a/k
                journal: starting → stopping: ops asked to stop it
                answer: accepted, 1 waiting
                command: stop a/k#1, grace 10 s
            0s          agent dies of signal 15, asked by daemon
                journal: stopping → asleep: the agent was ended by signal 15, as asked (stop)
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: release a/k#1
                command: start a/k#2
            0s          restart a/k
                journal: starting → stopping: ops asked to restart it
                answer: accepted, 1 waiting
                command: stop a/k#2, grace 10 s
            0s          agent dies of signal 15, asked by daemon
                journal: stopping → asleep: the agent was ended by signal 15, as asked
                    (restart)
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: release a/k#2
                command: start a/k#3
            a/k starting, generation 3
              m1 pending
        "#]],
    );
}

#[test]
fn a_stop_before_the_bridge_is_there_is_a_kill() {
    check(
        r#"given wake a/k
           stop a/k
           bridge is lost, asked by driver"#,
        expect![[r#"
            0s          stop a/k
                journal: starting → stopping: ops asked to stop it
                answer: accepted, 0 waiting
                command: kill a/k#1
            0s          bridge is lost, asked by driver
                journal: stopping → asleep: the bridge was gone without a report, as asked
                    (stop)
                command: release a/k#1
            a/k asleep, generation 1
        "#]],
    );
}

#[test]
fn a_wake_counts_as_activity() {
    check(
        r#"agent a: idle 30m
           given wake a/k · bridge attaches · ready · +20m
           wake a/k
           +29m59s999ms
           +1ms"#,
        expect![[r#"
            20m         wake a/k
                answer: ignored, already awake
            20m         +29m59s999ms
            49m59s999ms +1ms
            50m         …
                journal: awake → stopping: nothing happened for 30 min, and nothing needs it
                command: stop a/k#1, grace 10 s
            a/k stopping, generation 1
        "#]],
    );
}

#[test]
fn awake_and_idle_a_stop_is_immediate() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           stop a/k
           agent exits with 0, asked by daemon
           +1d"#,
        expect![[r#"
            0s          stop a/k
                journal: awake → stopping: ops asked to stop it
                answer: accepted, 0 waiting
                command: stop a/k#1, grace 10 s
            0s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked (stop)
                command: release a/k#1
            0s          +1d
            a/k asleep, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn awake_and_idle_a_restart_comes_back_without_a_message() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           restart a/k
           agent exits with 0, asked by daemon
           bridge attaches · ready"#,
        expect![[r#"
            0s          restart a/k
                journal: awake → stopping: ops asked to restart it
                answer: accepted, 0 waiting
                command: stop a/k#1, grace 10 s
            0s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked
                    (restart)
                journal: asleep → starting: it was asked for
                command: release a/k#1
                command: start a/k#2
            0s          bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
            a/k awake, generation 2
              m1 answered "1"
        "#]],
    );
}

#[test]
fn awake_with_a_turn_a_restart_lets_it_finish() {
    check(
        r#"given send m1 to a/k · send m2 to a/k · bridge attaches · ready
           restart a/k
           agent answers m1 "1"
           agent exits with 0, asked by daemon
           bridge attaches · ready"#,
        expect![[r#"
            0s          restart a/k
                journal: awake → draining: ops asked to restart it
                answer: accepted, 1 waiting
            0s          agent answers m1 "1"
                journal: draining: m1 was answered in 0 ms (1 byte)
                journal: draining → stopping: its turn is finished
                m1 hears: the answer of 1, "1"
                command: acknowledge m1.1 to a/k#1
                command: stop a/k#1, grace 10 s
            0s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked
                    (restart)
                journal: asleep → starting: 1 message to answer
                m2 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            0s          bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/k#2
            a/k awake, generation 2
              m1 answered "1"
              m2 with the agent
        "#]],
    );
}

#[test]
fn a_turn_that_outlives_the_drain_is_cut_short_and_not_counted() {
    check(
        r#"agent a: drain 5m, attempts 1
           given send m1 to a/k · bridge attaches · ready
           stop a/k
           agent says "." of m1
           +4m59s999ms
           +1ms
           agent dies of signal 15, asked by daemon
           bridge attaches · ready
           agent answers m1 "1""#,
        expect![[r#"
            0s          stop a/k
                journal: awake → draining: ops asked to stop it
                answer: accepted, 0 waiting
            0s          agent says "." of m1
                m1 hears: "." at 0 of 1
            0s          +4m59s999ms
            4m59s999ms  +1ms
            5m          …
                journal: draining → stopping: m1 did not finish within the drain time
                command: stop a/k#1, grace 10 s
            5m          agent dies of signal 15, asked by daemon
                journal: stopping: m1 was cut short; attempt 1 is not counted
                journal: stopping → asleep: the agent was ended by signal 15, as asked (stop)
                journal: asleep → starting: 1 message to answer
                m1 hears: the agent was stopped before it had finished; attempt 2 is due now
                    [stopped_during_turn]
                m1 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            5m          bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            5m          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 2
                m1 hears: delivered, attempt 2
                command: deliver m1.2 to a/k#2
            5m          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                m1 hears: the answer of 2, "1"
                command: acknowledge m1.2 to a/k#2
            a/k awake, generation 2
              m1 answered "1", attempts 2
        "#]],
    );
}

#[test]
fn a_turn_that_must_not_be_repeated_is_ambiguous_when_a_stop_cuts_it_short() {
    check(
        r#"agent a: drain 5m, retry ask
           given send m1 to a/k · bridge attaches · ready · stop a/k
           +5m
           agent dies of signal 15, asked by daemon"#,
        expect![[r#"
            0s          +5m
            5m          …
                journal: draining → stopping: m1 did not finish within the drain time
                command: stop a/k#1, grace 10 s
            5m          agent dies of signal 15, asked by daemon
                journal: stopping: m1 was cut short; attempt 1 is not counted
                journal: stopping: m1 was dead-lettered after 1 attempt [ambiguous]
                journal: stopping → asleep: the agent was ended by signal 15, as asked (stop)
                m1 hears: given up, the turn was interrupted: the agent was stopped before it
                    had finished [ambiguous]
                command: release a/k#1
            a/k asleep, generation 1
              m1 dead [ambiguous]
        "#]],
    );
}

#[test]
fn in_draining() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           stop a/k
           stop a/k
           wake a/k
           stop a/k
           restart a/k
           agent answers m1 "1"
           agent exits with 0, asked by daemon"#,
        expect![[r#"
            0s          stop a/k
                journal: awake → draining: ops asked to stop it
                answer: accepted, 0 waiting
            0s          stop a/k
                answer: ignored, already stopping
            0s          wake a/k
                journal: draining: ops asked to wake it
                answer: accepted, 0 waiting
            0s          stop a/k
                journal: draining: ops asked to stop it
                answer: accepted, 0 waiting
            0s          restart a/k
                journal: draining: ops asked to restart it
                answer: accepted, 0 waiting
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
fn in_stopping() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           given stop a/k
           stop a/k
           wake a/k
           stop a/k
           restart a/k
           agent exits with 0, asked by daemon"#,
        expect![[r#"
            0s          stop a/k
                answer: ignored, already stopping
            0s          wake a/k
                journal: stopping: ops asked to wake it
                answer: accepted, 0 waiting
            0s          stop a/k
                journal: stopping: ops asked to stop it
                answer: accepted, 0 waiting
            0s          restart a/k
                journal: stopping: ops asked to restart it
                answer: accepted, 0 waiting
            0s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked (stop)
                journal: asleep → starting: it was asked for
                command: release a/k#1
                command: start a/k#2
            a/k starting, generation 2
              m1 answered "1"
        "#]],
    );
}

#[test]
fn in_backoff_a_stop_is_denied_while_messages_wait_and_a_wake_ends_the_pause() {
    check(
        r#"given send m1 to a/k · bridge attaches · agent exits with 1
           given bridge attaches · agent exits with 1
           stop a/k
           wake a/k
           given bridge attaches · agent exits with 1
           restart a/k"#,
        expect![[r#"
            0s          stop a/k
                answer: denied, 1 waiting would start it again
            0s          wake a/k
                journal: backoff → asleep: ops asked to wake it
                journal: asleep → starting: 1 message to answer
                answer: accepted, 1 waiting
                m1 hears: waking
                command: start a/k#3
            0s          restart a/k
                journal: backoff → asleep: ops asked to restart it
                journal: asleep → starting: 1 message to answer
                answer: accepted, 1 waiting
                m1 hears: waking
                command: start a/k#4
            a/k starting, generation 4, failures 3
              m1 pending
        "#]],
    );
}

#[test]
fn in_backoff_without_messages_a_stop_ends_it() {
    check(
        r#"given wake a/k · bridge attaches · agent exits with 1
           given wake a/k · bridge attaches · agent exits with 1
           stop a/k"#,
        expect![[r#"
            0s          stop a/k
                journal: backoff → asleep: ops asked to stop it
                answer: accepted, 0 waiting
            a/k asleep, generation 2, failures 2
        "#]],
    );
}

#[test]
fn a_wake_that_fails_is_not_repeated_for_ever() {
    check(
        r#"wake a/k
           bridge attaches · agent exits with 1
           +1h"#,
        expect![[r#"
            0s          wake a/k
                journal: asleep: ops asked to wake it
                journal: asleep → starting: it was asked for
                answer: accepted, 0 waiting
                command: start a/k#1
            0s          bridge attaches
                command: admit a/k#1, boot 1, execute the agent
            0s          agent exits with 1
                journal: starting → asleep: the agent ended with exit code 1 [app_exit]
                command: release a/k#1
            0s          +1h
            a/k asleep, generation 1, failures 1
        "#]],
    );
}

#[test]
fn a_crash_while_draining_is_a_crash_and_the_message_is_tried_again() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           stop a/k
           agent exits with 1
           bridge attaches · ready"#,
        expect![[r#"
            0s          stop a/k
                journal: awake → draining: ops asked to stop it
                answer: accepted, 0 waiting
            0s          agent exits with 1
                journal: draining: m1 was cut short; attempt 1 is counted
                journal: draining → asleep: the agent ended with exit code 1 [app_exit]
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
            a/k awake, generation 2, failures 1
              m1 with the agent, attempts 2
        "#]],
    );
}

#[test]
fn an_agent_that_ignores_the_stop_is_killed_and_killed_again_until_the_end_is_confirmed() {
    check(
        r#"agent a: grace 10s
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           stop a/k
           +14s999ms
           +1ms
           +9s999ms
           +1ms
           bridge is lost, asked by driver"#,
        expect![[r#"
            0s          stop a/k
                journal: awake → stopping: ops asked to stop it
                answer: accepted, 0 waiting
                command: stop a/k#1, grace 10 s
            0s          +14s999ms
            14s999ms    +1ms
            15s         …
                journal: stopping: its end was not confirmed in time; ordered to be killed
                command: kill a/k#1
            15s         +9s999ms
            24s999ms    +1ms
            25s         …
                journal: stopping: its end was not confirmed in time; ordered to be killed
                command: kill a/k#1
            25s         bridge is lost, asked by driver
                journal: stopping → asleep: the bridge was gone without a report, as asked
                    (stop)
                command: release a/k#1
            a/k asleep, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_restart_that_was_accepted_is_carried_out_although_the_agent_crashes_first() {
    check(
        r#"agent a: attempts 1
           given send m1 to a/k · bridge attaches · ready
           restart a/k
           agent exits with 1
           bridge attaches · ready"#,
        expect![[r#"
            0s          restart a/k
                journal: awake → draining: ops asked to restart it
                answer: accepted, 0 waiting
            0s          agent exits with 1
                journal: draining: m1 was cut short; attempt 1 is counted
                journal: draining: m1 was dead-lettered after 1 attempt [poison_message]
                journal: draining → asleep: the agent ended with exit code 1 [app_exit]
                journal: asleep → starting: it was asked for
                m1 hears: given up, after 1 attempt; the last: the agent's program ended by
                    itself [poison_message]
                command: release a/k#1
                command: start a/k#2
            0s          bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
            a/k awake, generation 2, failures 1
              m1 dead [poison_message]
        "#]],
    );
}

#[test]
fn a_wake_during_the_stop_of_a_stuck_agent_is_carried_out() {
    check(
        r#"agent a: attempts 1, stuck 10m
           given send m1 to a/k · bridge attaches · ready · +10m
           wake a/k
           agent dies of signal 15, asked by daemon
           agent exits with 1"#,
        expect![[r#"
            10m         wake a/k
                journal: stopping: ops asked to wake it
                answer: accepted, 1 waiting
            10m         agent dies of signal 15, asked by daemon
                journal: stopping: m1 was cut short; attempt 1 is counted
                journal: stopping: m1 was dead-lettered after 1 attempt [attempts_exhausted]
                journal: stopping → asleep: the agent was ended by signal 15, as asked (turn
                    stuck) [turn_stuck]
                journal: asleep → starting: it was asked for
                m1 hears: given up, after 1 attempt; the last: the agent showed no sign of
                    progress for too long [attempts_exhausted]
                command: release a/k#1
                command: start a/k#2
            10m         agent exits with 1
                journal: starting → backoff: the agent ended with exit code 1 [app_exit];
                    failure 2 in a row, so the next start has to wait
                command: release a/k#2
            a/k backoff, generation 2, failures 2
              m1 dead [attempts_exhausted]
        "#]],
    );
}

#[test]
fn a_stop_in_backoff_takes_back_an_earlier_wish_to_restart() {
    check(
        r#"agent a: attempts 1
           given send m1 to a/k · bridge attaches · agent exits with 1 · bridge attaches · ready
           given restart a/k
           agent exits with 1
           stop a/k
           +1h"#,
        expect![[r#"
            0s          agent exits with 1
                journal: draining: m1 was cut short; attempt 1 is counted
                journal: draining: m1 was dead-lettered after 1 attempt [poison_message]
                journal: draining → backoff: the agent ended with exit code 1 [app_exit];
                    failure 2 in a row, so the next start has to wait
                m1 hears: given up, after 1 attempt; the last: the agent's program ended by
                    itself [poison_message]
                command: release a/k#2
            0s          stop a/k
                journal: backoff → asleep: ops asked to stop it
                answer: accepted, 0 waiting
            0s          +1h
            a/k asleep, generation 2, failures 2
              m1 dead [poison_message]
        "#]],
    );
}

/// The command to start it is lost; what asked for it is not.
#[test]
fn an_accepted_wake_outlives_a_daemon_that_dies_before_the_start() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           given stop a/k · agent exits with 0, asked by daemon
           wake a/k
           the daemon dies and comes back
           never launched
           bridge attaches · ready"#,
        expect![[r#"
            0s          wake a/k
                journal: asleep: ops asked to wake it
                journal: asleep → starting: it was asked for
                answer: accepted, 0 waiting
                command: start a/k#2
            0s          the daemon dies and comes back
                journal: starting: the daemon came back and found 0 messages waiting
            0s          never launched
                journal: starting → asleep: the instance ended before its agent was executed
                journal: asleep → starting: it was asked for
                command: release a/k#2
                command: start a/k#3
            0s          bridge attaches
                command: admit a/k#3, boot 1, execute the agent
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
            a/k awake, generation 3
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_start_that_failed_has_met_the_request_and_a_stop_takes_it_back() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           given stop a/k · agent exits with 0, asked by daemon
           wake a/k
           bridge attaches
           agent exits with 1
           wake a/k
           stop a/k
           never launched"#,
        expect![[r#"
            0s          wake a/k
                journal: asleep: ops asked to wake it
                journal: asleep → starting: it was asked for
                answer: accepted, 0 waiting
                command: start a/k#2
            0s          bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            0s          agent exits with 1
                journal: starting → asleep: the agent ended with exit code 1 [app_exit]
                command: release a/k#2
            0s          wake a/k
                journal: asleep: ops asked to wake it
                journal: asleep → starting: it was asked for
                answer: accepted, 0 waiting
                command: start a/k#3
            0s          stop a/k
                journal: starting → stopping: ops asked to stop it
                answer: accepted, 0 waiting
                command: kill a/k#3
            0s          never launched
                journal: stopping → asleep: the instance ended before its agent was executed,
                    as asked (stop)
                command: release a/k#3
            a/k asleep, generation 3, failures 1
              m1 answered "1"
        "#]],
    );
}

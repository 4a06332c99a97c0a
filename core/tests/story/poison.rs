//! Agents that die: on one message, at every start, once by chance; and what the senders are told.
//!
//! Owner: SCENARIOS S0.

use expect_test::expect;

use crate::{check, tell};

#[test]
fn a_message_that_kills_the_agent_is_tried_again_at_once_and_then_after_pauses() {
    check(
        r#"agent a: attempts 3
           given send m1 to a/k, saying "three files" · send m2 to a/k, saying "ls"
           given bridge attaches · ready
           agent exits with 1, after 24s948ms
           given bridge attaches · ready
           agent exits with 1, after 24s948ms
           +2s
           bridge attaches · ready"#,
        expect![[r#"
            0s          agent exits with 1, after 24s948ms
                journal: awake: m1 was cut short; attempt 1 is counted
                journal: awake → asleep: the agent ended with exit code 1 after 24.9 s
                    [app_exit]
                journal: asleep → starting: 2 messages to answer
                m1 hears: the agent's program ended by itself; attempt 2 is due now
                    [app_exit]
                m1 hears: waking, about 0 ms
                m2 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            0s          agent exits with 1, after 24s948ms
                journal: awake: m1 was cut short; attempt 2 is counted
                journal: awake → backoff: the agent ended with exit code 1 after 24.9 s
                    [app_exit]; failure 2 in a row, so the next start has to wait
                m1 hears: the agent's program ended by itself; attempt 3 is due in 1s100ms
                    [app_exit]
                m2 hears: the agent's program ended by itself; the next start is due in
                    1s100ms [app_exit]
                command: release a/k#2
            0s          +2s
            1s100ms     …
                journal: backoff → asleep: the pause before the next start is over
                journal: asleep → starting: 2 messages to answer
                m1 hears: waking, about 0 ms
                m2 hears: waking, about 0 ms
                command: start a/k#3
            2s          bridge attaches
                command: admit a/k#3, boot 1, execute the agent
            2s          ready
                journal: starting → awake: the agent was ready after 900 ms
                journal: awake: m1 was handed to the agent, attempt 3
                m1 hears: delivered, attempt 3
                command: deliver m1.3 to a/k#3
            a/k awake, generation 3, failures 2
              m1 with the agent, attempts 3
              m2 pending
        "#]],
    );
}

#[test]
fn a_message_that_killed_the_agent_as_often_as_allowed_is_parked_and_the_later_ones_answered() {
    check(
        r#"agent a: attempts 3
           given send m1 to a/k, saying "three files" · send m2 to a/k, saying "ls"
           given bridge attaches · ready · agent exits with 1
           given bridge attaches · ready · agent exits with 1 · +2s · bridge attaches · ready
           agent exits with 1, after 24s948ms
           +5s
           bridge attaches · ready
           agent answers m2 "a b c""#,
        expect![[r#"
            2s          agent exits with 1, after 24s948ms
                journal: awake: m1 was cut short; attempt 3 is counted
                journal: awake: m1 was dead-lettered after 3 attempts [poison_message]
                journal: awake → backoff: the agent ended with exit code 1 after 24.9 s
                    [app_exit]; failure 3 in a row, so the next start has to wait
                m1 hears: given up, after 3 attempts; the last: the agent's program ended by
                    itself [poison_message]
                m2 hears: the agent's program ended by itself; the next start is due in
                    4s80ms [app_exit]
                command: release a/k#3
            2s          +5s
            6s80ms      …
                journal: backoff → asleep: the pause before the next start is over
                journal: asleep → starting: 1 message to answer
                m2 hears: waking, about 900 ms
                command: start a/k#4
            7s          bridge attaches
                command: admit a/k#4, boot 1, execute the agent
            7s          ready
                journal: starting → awake: the agent was ready after 920 ms
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/k#4
            7s          agent answers m2 "a b c"
                journal: awake: m2 was answered in 0 ms (5 bytes)
                m2 hears: the answer of 1, "a b c"
                command: acknowledge m2.1 to a/k#4
            a/k awake, generation 4
              m1 dead [poison_message], attempts 3
              m2 answered "a b c"
        "#]],
    );
}

#[test]
fn an_agent_that_dies_at_every_start_keeps_its_queue_and_tells_when_the_next_try_is() {
    check(
        r#"given send m1 to a/k · send m2 to a/k · agent exits with 1
           agent exits with 1
           given +2s · agent exits with 1
           given +5s · agent exits with 1
           +20s
           agent exits with 1
           send m3 to a/k
           +5m6s
           agent exits with 1"#,
        expect![[r#"
            0s          agent exits with 1
                journal: starting → backoff: the agent ended with exit code 1 [app_exit];
                    failure 2 in a row, so the next start has to wait
                m1 hears: the agent's program ended by itself; the next start is due in
                    1s100ms [app_exit]
                m2 hears: the agent's program ended by itself; the next start is due in
                    1s100ms [app_exit]
                command: release a/k#2
            7s          +20s
            24s600ms    …
                journal: backoff → asleep: the pause before the next start is over
                journal: asleep → starting: 2 messages to answer
                m1 hears: waking
                m2 hears: waking
                command: start a/k#5
            27s         agent exits with 1
                journal: starting → tripped: the agent ended with exit code 1 [app_exit];
                    failure 5 in a row, so the next start has to wait
                m1 hears: the agent's program ended by itself; the next start is due in 5m6s
                    [app_exit]
                m2 hears: the agent's program ended by itself; the next start is due in 5m6s
                    [app_exit]
                command: release a/k#5
            27s         send m3 to a/k
                answer: accepted m3, behind 2
                m3 hears: the agent's program ended by itself; the next start is due in 5m6s
                    [app_exit]
            27s         +5m6s
            5m33s       …
                journal: tripped → asleep: the pause before the next start is over
                journal: asleep → starting: 3 messages to answer
                m1 hears: waking
                m2 hears: waking
                m3 hears: waking
                command: start a/k#6
            5m33s       agent exits with 1
                journal: starting → tripped: the agent ended with exit code 1 [app_exit];
                    failure 6 in a row, so the next start has to wait
                m1 hears: the agent's program ended by itself; the next start is due in 11m
                    [app_exit]
                m2 hears: the agent's program ended by itself; the next start is due in 11m
                    [app_exit]
                m3 hears: the agent's program ended by itself; the next start is due in 11m
                    [app_exit]
                command: release a/k#6
            a/k tripped, generation 6, failures 6
              m1 pending
              m2 pending
              m3 pending
        "#]],
    );
}

/// However fast it dies: six starts in the first ten minutes, then ever fewer probes.
#[test]
fn restarts_of_an_agent_that_dies_at_once_are_bounded() {
    let starts_within = |seconds: usize| {
        let mut story = "send m1 to a/k\n".to_owned();
        for _ in 0..seconds {
            story.push_str("agent exits with 1 · +1s\n");
        }
        tell(&story).matches("command: start").count()
    };
    assert_eq!(starts_within(600), 6);
    assert_eq!(starts_within(3_600), 8);
}

#[test]
fn an_answer_ends_the_row_of_failures() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           agent dies of signal 9
           bridge attaches · ready · agent answers m1 "1"
           send m2 to a/k
           agent dies of signal 9
           bridge attaches · ready"#,
        expect![[r#"
            0s          agent dies of signal 9
                journal: awake: m1 was cut short; attempt 1 is counted
                journal: awake → asleep: the agent was ended by signal 9 [unknown]
                journal: asleep → starting: 1 message to answer
                m1 hears: it is not known why; attempt 2 is due now [unknown]
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
            0s          send m2 to a/k
                journal: awake: m2 was handed to the agent, attempt 1
                answer: accepted m2, next
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/k#2
            0s          agent dies of signal 9
                journal: awake: m2 was cut short; attempt 1 is counted
                journal: awake → asleep: the agent was ended by signal 9 [unknown]
                journal: asleep → starting: 1 message to answer
                m2 hears: it is not known why; attempt 2 is due now [unknown]
                m2 hears: waking, about 0 ms
                command: release a/k#2
                command: start a/k#3
            0s          bridge attaches
                command: admit a/k#3, boot 1, execute the agent
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m2 was handed to the agent, attempt 2
                m2 hears: delivered, attempt 2
                command: deliver m2.2 to a/k#3
            a/k awake, generation 3, failures 1
              m1 answered "1", attempts 2
              m2 with the agent, attempts 2
        "#]],
    );
}

#[test]
fn sigkill_is_out_of_memory_only_if_the_kernel_counted_it() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           agent dies of signal 9, oom 1, after 28s
           bridge attaches · ready
           agent dies of signal 9, oom 0, after 28s"#,
        expect![[r#"
            0s          agent dies of signal 9, oom 1, after 28s
                journal: awake: m1 was cut short; attempt 1 is counted
                journal: awake → asleep: the agent was ended by signal 9 after 28 s;
                    out-of-memory kills counted: 1 [oom_limit]
                journal: asleep → starting: 1 message to answer
                m1 hears: the agent needed more memory than it may use; attempt 2 is due now
                    [oom_limit]
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
            0s          agent dies of signal 9, oom 0, after 28s
                journal: awake: m1 was cut short; attempt 2 is counted
                journal: awake → backoff: the agent was ended by signal 9 after 28 s
                    [killed_outside]; failure 2 in a row, so the next start has to wait
                m1 hears: something outside Dormouse killed the agent's program; attempt 3 is
                    due in 1s100ms [killed_outside]
                command: release a/k#2
            a/k backoff, generation 2, failures 2
              m1 pending, attempts 2
        "#]],
    );
}

#[test]
fn an_agent_that_ends_itself_with_nothing_to_do_is_not_a_failure() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           agent exits with 0"#,
        expect![[r#"
            0s          agent exits with 0
                journal: awake → asleep: the agent ended with exit code 0
                command: release a/k#1
            a/k asleep, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn an_agent_that_ends_with_zero_while_it_works_is_a_failure() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           agent exits with 0"#,
        expect![[r#"
            0s          agent exits with 0
                journal: awake: m1 was cut short; attempt 1 is counted
                journal: awake → asleep: the agent ended with exit code 0 [app_exit]
                journal: asleep → starting: 1 message to answer
                m1 hears: the agent's program ended by itself; attempt 2 is due now
                    [app_exit]
                m1 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            a/k starting, generation 2, failures 1
              m1 pending
        "#]],
    );
}

#[test]
fn a_message_that_must_not_be_repeated_is_ambiguous_after_a_death() {
    check(
        r#"agent a: retry ask
           given send m1 to a/k · send m2 to a/k · bridge attaches · ready
           agent exits with 1
           bridge attaches · ready
           agent fails m2 "busy", retryable"#,
        expect![[r#"
            0s          agent exits with 1
                journal: awake: m1 was cut short; attempt 1 is counted
                journal: awake: m1 was dead-lettered after 1 attempt [ambiguous]
                journal: awake → asleep: the agent ended with exit code 1 [app_exit]
                journal: asleep → starting: 1 message to answer
                m1 hears: given up, the turn was interrupted: the agent's program ended by
                    itself [ambiguous]
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
            0s          agent fails m2 "busy", retryable
                journal: awake: m2 failed [agent_error]: busy
                journal: awake: m2 was dead-lettered after 1 attempt [agent_error]
                m2 hears: given up, busy [agent_error]
                command: acknowledge m2.1 to a/k#2
            a/k awake, generation 2, failures 1
              m1 dead [ambiguous]
              m2 dead [agent_error]
        "#]],
    );
}

#[test]
fn a_bridge_that_is_told_to_end_from_outside_does_not_count_against_the_message() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           agent exits with 0, asked by signal
           bridge attaches · ready · agent answers m1 "1""#,
        expect![[r#"
            0s          agent exits with 0, asked by signal
                journal: awake: m1 was cut short; attempt 1 is not counted
                journal: awake → asleep: the agent ended with exit code 0, because its bridge
                    was told to end by a signal from outside
                journal: asleep → starting: 1 message to answer
                m1 hears: the agent was stopped before it had finished; attempt 2 is due now
                    [stopped_during_turn]
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

/// As when an agent ends its own bridge, or something outside does so again and again.
#[test]
fn ends_that_are_nobodys_failure_do_not_restart_without_a_pause_for_ever() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · agent exits with 0, asked by signal
           given bridge attaches · ready
           agent exits with 0, asked by signal
           +2s
           given bridge attaches · ready
           agent answers m1 "1""#,
        expect![[r#"
            0s          agent exits with 0, asked by signal
                journal: awake: m1 was cut short; attempt 2 is not counted
                journal: awake → backoff: the agent ended with exit code 0, because its
                    bridge was told to end by a signal from outside; failure 2 in a row, so
                    the next start has to wait
                m1 hears: the agent was stopped before it had finished; attempt 3 is due in
                    1s100ms [stopped_during_turn]
                command: release a/k#2
            0s          +2s
            1s100ms     …
                journal: backoff → asleep: the pause before the next start is over
                journal: asleep → starting: 1 message to answer
                m1 hears: waking, about 0 ms
                command: start a/k#3
            2s          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                m1 hears: the answer of 3, "1"
                command: acknowledge m1.3 to a/k#3
            a/k awake, generation 3
              m1 answered "1", attempts 3
        "#]],
    );
}

#[test]
fn an_agent_that_ends_itself_while_a_message_waits_for_its_pause_is_not_restarted_in_a_row() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           agent fails m1 "busy", retryable
           agent exits with 0
           given bridge attaches · ready
           agent exits with 0"#,
        expect![[r#"
            0s          agent fails m1 "busy", retryable
                journal: awake: m1 failed [agent_error]: busy; it will be tried again
                m1 hears: the agent said that it failed; attempt 2 is due in 1s100ms
                    [agent_error]
                command: acknowledge m1.1 to a/k#1
            0s          agent exits with 0
                journal: awake → asleep: the agent ended with exit code 0
                journal: asleep → starting: 1 message to answer
                m1 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            0s          agent exits with 0
                journal: awake → backoff: the agent ended with exit code 0; failure 2 in a
                    row, so the next start has to wait
                m1 hears: the agent's program ended by itself; the next start is due in
                    1s100ms [app_exit]
                command: release a/k#2
            a/k backoff, generation 2, failures 2
              m1 pending
        "#]],
    );
}

#[test]
fn an_agent_that_says_retryable_is_tried_again_on_the_same_instance_after_a_pause() {
    check(
        r#"agent a: attempts 3
           given send m1 to a/k · send m2 to a/k · bridge attaches · ready
           agent fails m1 "the model is overloaded", retryable
           +2s
           agent fails m1 "the model is overloaded", retryable
           +5s
           agent fails m1 "the model is overloaded", retryable
           agent answers m2 "2""#,
        expect![[r#"
            0s          agent fails m1 "the model is overloaded", retryable
                journal: awake: m1 failed [agent_error]: the model is overloaded; it will be
                    tried again
                m1 hears: the agent said that it failed; attempt 2 is due in 1s100ms
                    [agent_error]
                command: acknowledge m1.1 to a/k#1
            0s          +2s
            1s100ms     …
                journal: awake: m1 was handed to the agent, attempt 2
                m1 hears: delivered, attempt 2
                command: deliver m1.2 to a/k#1
            2s          agent fails m1 "the model is overloaded", retryable
                journal: awake: m1 failed [agent_error]: the model is overloaded; it will be
                    tried again
                m1 hears: the agent said that it failed; attempt 3 is due in 4s80ms
                    [agent_error]
                command: acknowledge m1.2 to a/k#1
            2s          +5s
            6s80ms      …
                journal: awake: m1 was handed to the agent, attempt 3
                m1 hears: delivered, attempt 3
                command: deliver m1.3 to a/k#1
            7s          agent fails m1 "the model is overloaded", retryable
                journal: awake: m1 failed [agent_error]: the model is overloaded
                journal: awake: m1 was dead-lettered after 3 attempts [attempts_exhausted]
                journal: awake: m2 was handed to the agent, attempt 1
                m1 hears: given up, after 3 attempts; the last: the model is overloaded
                    [attempts_exhausted]
                m2 hears: delivered, attempt 1
                command: acknowledge m1.3 to a/k#1
                command: deliver m2.1 to a/k#1
            7s          agent answers m2 "2"
                journal: awake: m2 was answered in 0 ms (1 byte)
                m2 hears: the answer of 1, "2"
                command: acknowledge m2.1 to a/k#1
            a/k awake, generation 1
              m1 dead [attempts_exhausted], attempts 3
              m2 answered "2"
        "#]],
    );
}

#[test]
fn an_agent_that_says_it_failed_for_good_is_believed_and_the_next_message_is_taken() {
    check(
        r#"given send m1 to a/k · send m2 to a/k · bridge attaches · ready
           agent fails m1 "no such tool"
           agent answers m2 "2""#,
        expect![[r#"
            0s          agent fails m1 "no such tool"
                journal: awake: m1 failed [agent_error]: no such tool
                journal: awake: m1 was dead-lettered after 1 attempt [agent_error]
                journal: awake: m2 was handed to the agent, attempt 1
                m1 hears: given up, no such tool [agent_error]
                m2 hears: delivered, attempt 1
                command: acknowledge m1.1 to a/k#1
                command: deliver m2.1 to a/k#1
            0s          agent answers m2 "2"
                journal: awake: m2 was answered in 0 ms (1 byte)
                m2 hears: the answer of 1, "2"
                command: acknowledge m2.1 to a/k#1
            a/k awake, generation 1
              m1 dead [agent_error]
              m2 answered "2"
        "#]],
    );
}

/// Exit code 78 is a program's word for "my configuration is wrong": the same start would say the
/// same again.
#[test]
fn an_agent_that_rejects_its_configuration_is_not_started_again_at_once() {
    check(
        r#"given send m1 to a/k
           agent exits with 78
           wake a/k"#,
        expect![[r#"
            0s          agent exits with 78
                journal: starting → tripped: the agent ended with exit code 78
                    [config_rejected]; failure 1 in a row, so the next start has to wait
                m1 hears: the agent says that its configuration is wrong; the next start is
                    due in 5m6s [config_rejected]
                command: release a/k#1
            0s          wake a/k
                journal: tripped → asleep: ops asked to wake it
                journal: asleep → starting: 1 message to answer
                answer: accepted, 1 waiting
                m1 hears: waking
                command: start a/k#2
            a/k starting, generation 2, failures 1
              m1 pending
        "#]],
    );
}

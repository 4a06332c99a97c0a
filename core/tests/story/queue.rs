//! At the gate: whose session, which key, how many; and what operators do with queued messages.
//!
//! Owner: FAULTS I3, I4, I16, F48; the neighbours' double runs.

use expect_test::expect;

use crate::check;

#[test]
fn the_same_key_with_the_same_body_is_the_same_message_and_another_body_is_a_conflict() {
    check(
        r#"send m1 to a/k, key K, saying "pay"
           send m2 to a/k, key K, saying "pay"
           send m3 to a/k, key K, saying "pay twice"
           send m4 to a/other, key K, saying "pay"
           send m5 to a/k, key L, saying "pay""#,
        expect![[r#"
            0s          send m1 to a/k, key K, saying "pay"
                journal: a/k asleep → starting: 1 message to answer
                answer: accepted m1, next
                m1 hears: waking
                command: start a/k#1
            0s          send m2 to a/k, key K, saying "pay"
                answer: was accepted before, as m1
            0s          send m3 to a/k, key K, saying "pay twice"
                answer: refused, the key stands for m1, which says something else
            0s          send m4 to a/other, key K, saying "pay"
                answer: refused, the key stands for m1, which says something else
            0s          send m5 to a/k, key L, saying "pay"
                answer: accepted m5, behind 1
                m5 hears: waking
            a/k starting, generation 1
              m1 pending
              m5 pending
        "#]],
    );
}

#[test]
fn a_key_is_still_known_after_the_answer_and_after_a_restart_of_the_daemon() {
    check(
        r#"given send m1 to a/k, key K · bridge attaches · ready · agent answers m1 "1"
           send m2 to a/k, key K
           given +30m · agent exits with 0, asked by daemon
           send m3 to a/k, key K
           the daemon dies and comes back
           send m4 to a/k, key K"#,
        expect![[r#"
            0s          send m2 to a/k, key K
                answer: was accepted before, as m1
            30m         send m3 to a/k, key K
                answer: was accepted before, as m1
            30m         the daemon dies and comes back
            30m         send m4 to a/k, key K
                answer: was accepted before, as m1
            a/k asleep, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_full_queue_refuses_before_anything_is_stored() {
    check(
        r#"node: queue 2 messages
           send m1 to a/k
           send m2 to a/k
           send m3 to a/k
           given bridge attaches · ready
           agent answers m1 "1"
           send m4 to a/k"#,
        expect![[r#"
            0s          send m1 to a/k
                journal: asleep → starting: 1 message to answer
                answer: accepted m1, next
                m1 hears: waking
                command: start a/k#1
            0s          send m2 to a/k
                answer: accepted m2, behind 1
                m2 hears: waking
            0s          send m3 to a/k
                answer: refused, the queue is full with 2 messages of 10 bytes
            0s          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                journal: awake: m2 was handed to the agent, attempt 1
                m1 hears: the answer of 1, "1"
                m2 hears: delivered, attempt 1
                command: acknowledge m1.1 to a/k#1
                command: deliver m2.1 to a/k#1
            0s          send m4 to a/k
                answer: accepted m4, behind 1
                m4 hears: queued behind 1
            a/k awake, generation 1
              m1 answered "1"
              m2 with the agent
              m4 pending
        "#]],
    );
}

#[test]
fn a_queue_is_also_bounded_in_bytes_at_the_limit() {
    check(
        r#"node: queue 10 bytes
           send m1 to a/k, saying "123456789"
           send m2 to a/k, saying "12"
           send m3 to a/k, saying "1"
           send m4 to a/k, saying """#,
        expect![[r#"
            0s          send m1 to a/k, saying "123456789"
                journal: asleep → starting: 1 message to answer
                answer: accepted m1, next
                m1 hears: waking
                command: start a/k#1
            0s          send m2 to a/k, saying "12"
                answer: refused, the queue is full with 1 messages of 9 bytes
            0s          send m3 to a/k, saying "1"
                answer: accepted m3, behind 1
                m3 hears: waking
            0s          send m4 to a/k, saying ""
                answer: accepted m4, behind 2
                m4 hears: waking
            a/k starting, generation 1
              m1 pending
              m3 pending
              m4 pending
        "#]],
    );
}

#[test]
fn a_message_larger_than_the_whole_queue_leaves_no_session_behind() {
    check(
        r#"node: queue 10 bytes
           send m1 to a/k, saying "12345678901""#,
        expect![[r#"
            0s          send m1 to a/k, saying "12345678901"
                answer: refused, the queue is full with 0 messages of 0 bytes
        "#]],
    );
}

#[test]
fn another_subject_is_refused_and_learns_nothing() {
    check(
        r#"given send m1 to a/k by tom, key K
           send m2 to a/k by eve
           send m3 to a/k by eve, key K
           send m4 to a/k by ops, as operator"#,
        expect![[r#"
            0s          send m2 to a/k by eve
                answer: refused, not your session
            0s          send m3 to a/k by eve, key K
                answer: refused, not your session
            0s          send m4 to a/k by ops, as operator
                answer: accepted m4, behind 1
                m4 hears: waking
            a/k starting, generation 1
              m1 pending
              m4 pending
        "#]],
    );
}

#[test]
fn a_session_belongs_to_whoever_caused_it_even_by_a_wake() {
    check(
        r#"wake a/k
           send m1 to a/k by tom
           send m2 to a/k by ops"#,
        expect![[r#"
            0s          wake a/k
                journal: asleep: ops asked to wake it
                journal: asleep → starting: it was asked for
                answer: accepted, 0 waiting
                command: start a/k#1
            0s          send m1 to a/k by tom
                answer: refused, not your session
            0s          send m2 to a/k by ops
                answer: accepted m2, next
                m2 hears: waking
            a/k starting, generation 1
              m2 pending
        "#]],
    );
}

#[test]
fn an_agent_that_is_not_configured_is_refused() {
    check(
        r#"send m1 to b/k
           wake b/k
           stop b/k"#,
        expect![[r#"
            0s          send m1 to b/k
                answer: refused, no such agent
            0s          wake b/k
                answer: refused, no such agent
            0s          stop b/k
                answer: refused, no such agent
        "#]],
    );
}

#[test]
fn a_redrive_is_a_new_message_and_the_second_one_finds_the_first() {
    check(
        r#"given send m1 to a/k, key K, saying "once more" · bridge attaches · ready
           agent fails m1 "no"
           redrive m1 as m2
           redrive m1 as m3
           agent answers m2 "yes"
           redrive m1 as m4"#,
        expect![[r#"
            0s          agent fails m1 "no"
                journal: awake: m1 failed [agent_error]: no
                journal: awake: m1 was dead-lettered after 1 attempt [agent_error]
                m1 hears: given up, no [agent_error]
                command: acknowledge m1.1 to a/k#1
            0s          redrive m1 as m2
                journal: awake: m2 was handed to the agent, attempt 1
                journal: awake: ops redrove m1 as m2
                answer: accepted m2, next
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/k#1
            0s          redrive m1 as m3
                answer: was accepted before, as m2
            0s          agent answers m2 "yes"
                journal: awake: m2 was answered in 0 ms (3 bytes)
                m2 hears: the answer of 1, "yes"
                command: acknowledge m2.1 to a/k#1
            0s          redrive m1 as m4
                answer: was accepted before, as m2
            a/k awake, generation 1
              m1 dead [agent_error]
              m2 answered "yes"
        "#]],
    );
}

#[test]
fn a_redrive_wakes_a_sleeping_session() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · agent fails m1 "no"
           given +30m · agent exits with 0, asked by daemon
           redrive m1 as m2"#,
        expect![[r#"
            30m         redrive m1 as m2
                journal: asleep: ops redrove m1 as m2
                journal: asleep → starting: 1 message to answer
                answer: accepted m2, next
                m2 hears: waking, about 0 ms
                command: start a/k#2
            a/k starting, generation 2
              m1 dead [agent_error]
              m2 pending
        "#]],
    );
}

#[test]
fn a_redrive_into_a_full_queue_is_refused_and_may_be_repeated() {
    check(
        r#"node: queue 1 messages
           given send m1 to a/k · bridge attaches · ready · agent fails m1 "no"
           given send m2 to a/k
           redrive m1 as m3
           agent answers m2 "2"
           redrive m1 as m4"#,
        expect![[r#"
            0s          redrive m1 as m3
                answer: refused, the queue is full with 1 messages of 5 bytes
            0s          agent answers m2 "2"
                journal: awake: m2 was answered in 0 ms (1 byte)
                m2 hears: the answer of 1, "2"
                command: acknowledge m2.1 to a/k#1
            0s          redrive m1 as m4
                journal: awake: m4 was handed to the agent, attempt 1
                journal: awake: ops redrove m1 as m4
                answer: accepted m4, next
                m4 hears: delivered, attempt 1
                command: deliver m4.1 to a/k#1
            a/k awake, generation 1
              m1 dead [agent_error]
              m2 answered "2"
              m4 with the agent
        "#]],
    );
}

#[test]
fn a_waiting_message_can_be_dropped_and_one_in_flight_cannot() {
    check(
        r#"given send m1 to a/k · send m2 to a/k · send m3 to a/k · bridge attaches · ready
           drop m2
           drop m1
           drop m2
           agent answers m1 "1"
           drop m1"#,
        expect![[r#"
            0s          drop m2
                journal: awake: ops dropped m2
                answer: accepted, 2 waiting
                m2 hears: dropped
            0s          drop m1
                answer: denied, the message is with the agent
            0s          drop m2
                answer: ignored, the message has already ended
            0s          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                journal: awake: m3 was handed to the agent, attempt 1
                m1 hears: the answer of 1, "1"
                m3 hears: delivered, attempt 1
                command: acknowledge m1.1 to a/k#1
                command: deliver m3.1 to a/k#1
            0s          drop m1
                answer: ignored, the message has already ended
            a/k awake, generation 1
              m1 answered "1"
              m2 cancelled
              m3 with the agent
        "#]],
    );
}

#[test]
fn dropping_the_head_that_waits_for_its_pause_lets_the_next_one_go() {
    check(
        r#"given send m1 to a/k · send m2 to a/k · bridge attaches · ready
           agent fails m1 "busy", retryable
           drop m1"#,
        expect![[r#"
            0s          agent fails m1 "busy", retryable
                journal: awake: m1 failed [agent_error]: busy; it will be tried again
                m1 hears: the agent said that it failed; attempt 2 is due in 1s100ms
                    [agent_error]
                command: acknowledge m1.1 to a/k#1
            0s          drop m1
                journal: awake: ops dropped m1
                journal: awake: m2 was handed to the agent, attempt 1
                answer: accepted, 1 waiting
                m1 hears: dropped
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/k#1
            a/k awake, generation 1
              m1 cancelled
              m2 with the agent
        "#]],
    );
}

#[test]
fn dropping_the_only_message_in_a_pause_lets_the_session_sleep() {
    check(
        r#"given send m1 to a/k · bridge attaches · agent exits with 1
           given bridge attaches · agent exits with 1
           drop m1
           +1m"#,
        expect![[r#"
            0s          drop m1
                journal: backoff: ops dropped m1
                answer: accepted, 0 waiting
                m1 hears: dropped
            0s          +1m
            1s100ms     …
                journal: backoff → asleep: the pause before the next start is over
            a/k asleep, generation 2, failures 2
              m1 cancelled
        "#]],
    );
}

#[test]
fn a_dead_letter_can_be_dropped_from_the_list_and_stays_dead() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · agent fails m1 "no"
           drop m1
           drop m1"#,
        expect![[r#"
            0s          drop m1
                journal: awake: ops dropped m1
                answer: accepted, 0 waiting
            0s          drop m1
                answer: ignored, the message has already ended
            a/k awake, generation 1
              m1 dead [agent_error]
        "#]],
    );
}

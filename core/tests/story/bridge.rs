//! The bridge's comings and goings: lost connections, lost frames, a second bridge, a dead one.
//!
//! Owner: DESIGN, machine 4 and 5; FAULTS I7, I12.

use expect_test::expect;

use crate::check;

#[test]
fn a_connection_lost_in_the_middle_of_a_turn_costs_neither_turn_nor_text() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           agent says "one " of m1
           bridge detaches
           +30s
           bridge attaches ready, holding m1.1
           agent says "one " of m1 at 0
           agent says "one two " of m1 at 0
           agent says "three" of m1 at 8
           agent answers m1 "one two three""#,
        expect![[r#"
            0s          agent says "one " of m1
                m1 hears: "one " at 0 of 1
            0s          bridge detaches
            0s          +30s
            30s         bridge attaches ready, holding m1.1
                command: admit a/k#1, boot 1
            30s         agent says "one " of m1 at 0
            30s         agent says "one two " of m1 at 0
                m1 hears: "two " at 4 of 1
            30s         agent says "three" of m1 at 8
                m1 hears: "three" at 8 of 1
            30s         agent answers m1 "one two three"
                journal: awake: m1 was answered in 30 s (13 bytes)
                m1 hears: the answer of 1, "one two three"
                command: acknowledge m1.1 to a/k#1
            a/k awake, generation 1
              m1 answered "one two three"
        "#]],
    );
}

#[test]
fn text_after_a_gap_is_not_passed_on() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           agent says "one " of m1
           agent says "three" of m1 at 8
           agent says "two three" of m1 at 4"#,
        expect![[r#"
            0s          agent says "one " of m1
                m1 hears: "one " at 0 of 1
            0s          agent says "three" of m1 at 8
                counted as stale: 1
            0s          agent says "two three" of m1 at 4
                m1 hears: "two three" at 4 of 1
            a/k awake, generation 1
              m1 with the agent
        "#]],
    );
}

#[test]
fn a_turn_whose_frame_was_lost_is_delivered_again_under_the_same_id() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           bridge detaches
           bridge attaches ready
           agent answers m1 "1""#,
        expect![[r#"
            0s          bridge detaches
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
fn a_result_that_was_ready_during_the_gap_is_taken_once_and_its_repeat_acknowledged() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           bridge detaches
           bridge attaches ready, holding m1.1
           agent answers m1 "1"
           bridge detaches
           bridge attaches ready, holding m1.1
           agent answers m1 "1""#,
        expect![[r#"
            0s          bridge detaches
            0s          bridge attaches ready, holding m1.1
                command: admit a/k#1, boot 1
            0s          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                m1 hears: the answer of 1, "1"
                command: acknowledge m1.1 to a/k#1
            0s          bridge detaches
            0s          bridge attaches ready, holding m1.1
                command: admit a/k#1, boot 1
            0s          agent answers m1 "1"
                command: acknowledge m1.1 to a/k#1
                counted as stale: 1
            a/k awake, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_message_without_a_connected_bridge_waits_for_it() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           bridge detaches
           send m2 to a/k
           bridge attaches ready
           agent answers m2 "2""#,
        expect![[r#"
            0s          bridge detaches
            0s          send m2 to a/k
                answer: accepted m2, next
            0s          bridge attaches ready
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: admit a/k#1, boot 1
                command: deliver m2.1 to a/k#1
            0s          agent answers m2 "2"
                journal: awake: m2 was answered in 0 ms (1 byte)
                m2 hears: the answer of 1, "2"
                command: acknowledge m2.1 to a/k#1
            a/k awake, generation 1
              m1 answered "1"
              m2 answered "2"
        "#]],
    );
}

#[test]
fn a_second_bridge_of_the_same_start_is_refused() {
    check(
        r#"given send m1 to a/k · bridge attaches boot 1
           bridge attaches boot 2
           bridge detaches boot 2
           ready
           bridge attaches ready, boot 2, holding m1.1
           agent answers m1 "1""#,
        expect![[r#"
            0s          bridge attaches boot 2
                command: refuse a/k#1, boot 2, another bridge of this generation is connected
                counted as stale: 1
            0s          bridge detaches boot 2
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to a/k#1
            0s          bridge attaches ready, boot 2, holding m1.1
                command: refuse a/k#1, boot 2, another bridge of this generation is connected
                counted as stale: 1
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
fn a_bridge_that_stays_away_is_given_up_at_the_limit_and_the_turn_tried_elsewhere() {
    check(
        r#"agent a: reattach 1m
           given send m1 to a/k · bridge attaches · ready
           bridge detaches
           +59s999ms
           +1ms
           bridge is lost, asked by driver
           bridge attaches · ready · agent answers m1 "1""#,
        expect![[r#"
            0s          bridge detaches
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
            1m          bridge attaches
                command: admit a/k#2, boot 1, execute the agent
            1m          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 2
                m1 hears: delivered, attempt 2
                command: deliver m1.2 to a/k#2
            1m          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                m1 hears: the answer of 2, "1"
                command: acknowledge m1.2 to a/k#2
            a/k awake, generation 2
              m1 answered "1", attempts 2
        "#]],
    );
}

#[test]
fn a_bridge_that_comes_back_too_late_is_killed_but_its_result_counts() {
    check(
        r#"agent a: reattach 1m
           given send m1 to a/k · bridge attaches · ready · bridge detaches
           +1m
           bridge attaches ready, holding m1.1
           agent answers m1 "1"
           agent dies of signal 9, asked by driver"#,
        expect![[r#"
            0s          +1m
            1m          …
                journal: awake → stopping: its bridge was not connected for 1 min
                command: kill a/k#1
            1m          bridge attaches ready, holding m1.1
                command: admit a/k#1, boot 1
                command: kill a/k#1
            1m          agent answers m1 "1"
                journal: stopping: m1 was answered in 1 min (1 byte)
                m1 hears: the answer of 1, "1"
                command: acknowledge m1.1 to a/k#1
            1m          agent dies of signal 9, asked by driver
                journal: stopping → asleep: the agent was ended by signal 9, as asked (bridge
                    unreachable) [bridge_unreachable]
                command: release a/k#1
            a/k asleep, generation 1, failures 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn an_unreachable_bridge_of_an_idle_session_is_given_up_too() {
    check(
        r#"agent a: reattach 1m
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           bridge detaches
           +1m
           bridge is lost, asked by driver"#,
        expect![[r#"
            0s          bridge detaches
            0s          +1m
            1m          …
                journal: awake → stopping: its bridge was not connected for 1 min
                command: kill a/k#1
            1m          bridge is lost, asked by driver
                journal: stopping → asleep: the bridge was gone without a report, as asked
                    (bridge unreachable) [bridge_unreachable]
                command: release a/k#1
            a/k asleep, generation 1, failures 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_connection_lost_while_draining_is_given_up_after_its_own_limit() {
    check(
        r#"agent a: reattach 1m, drain 5m
           given send m1 to a/k · bridge attaches · ready · stop a/k
           bridge detaches
           +59s999ms
           +1ms"#,
        expect![[r#"
            0s          bridge detaches
            0s          +59s999ms
            59s999ms    +1ms
            1m          …
                journal: draining → stopping: its bridge was not connected for 1 min
                command: kill a/k#1
            a/k stopping, generation 1
              m1 with the agent
        "#]],
    );
}

#[test]
fn a_stop_without_a_connection_is_said_when_the_bridge_is_back() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           bridge detaches
           stop a/k
           +5s
           bridge attaches ready
           agent exits with 0, asked by daemon"#,
        expect![[r#"
            0s          bridge detaches
            0s          stop a/k
                journal: awake → stopping: ops asked to stop it
                answer: accepted, 0 waiting
            0s          +5s
            5s          bridge attaches ready
                command: admit a/k#1, boot 1
                command: stop a/k#1, grace 10 s
            5s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked (stop)
                command: release a/k#1
            a/k asleep, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_stop_without_a_connection_becomes_a_kill_in_time() {
    check(
        r#"agent a: grace 10s
           given send m1 to a/k · bridge attaches · ready · agent answers m1 "1"
           bridge detaches
           stop a/k
           +14s999ms
           +1ms
           bridge is lost, asked by driver"#,
        expect![[r#"
            0s          bridge detaches
            0s          stop a/k
                journal: awake → stopping: ops asked to stop it
                answer: accepted, 0 waiting
            0s          +14s999ms
            14s999ms    +1ms
            15s         …
                journal: stopping: its end was not confirmed in time; ordered to be killed
                command: kill a/k#1
            15s         bridge is lost, asked by driver
                journal: stopping → asleep: the bridge was gone without a report, as asked
                    (stop)
                command: release a/k#1
            a/k asleep, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_bridge_that_forgot_its_agent_is_replaced() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready
           bridge detaches
           bridge attaches
           agent exits with 0, asked by daemon"#,
        expect![[r#"
            0s          bridge detaches
            0s          bridge attaches
                journal: awake → stopping: its bridge broke the protocol: the agent that was
                    ready was never executed
                command: admit a/k#1, boot 1
                command: stop a/k#1, grace 10 s
            0s          agent exits with 0, asked by daemon
                journal: stopping: m1 was cut short; attempt 1 is counted
                journal: stopping → asleep: the agent ended with exit code 0, as asked
                    (protocol fault) [protocol_fault]
                journal: asleep → starting: 1 message to answer
                m1 hears: the agent's answer could not be understood; attempt 2 is due now
                    [protocol_fault]
                m1 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            a/k starting, generation 2, failures 1
              m1 pending
        "#]],
    );
}

#[test]
fn a_bridge_that_dies_silently_is_reported_by_the_driver() {
    check(
        r#"given send m1 to a/k · bridge attaches · ready · bridge detaches
           bridge is lost"#,
        expect![[r#"
            0s          bridge is lost
                journal: awake: m1 was cut short; attempt 1 is counted
                journal: awake → asleep: the bridge was gone without a report [bridge_lost]
                journal: asleep → starting: 1 message to answer
                m1 hears: the agent's supervisor was killed; attempt 2 is due now
                    [bridge_lost]
                m1 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2
            a/k starting, generation 2, failures 1
              m1 pending
        "#]],
    );
}

#[test]
fn a_bridge_that_is_ready_before_it_is_asked_is_taken() {
    check(
        r#"given send m1 to a/k
           bridge attaches ready
           ready"#,
        expect![[r#"
            0s          bridge attaches ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: admit a/k#1, boot 1
                command: deliver m1.1 to a/k#1
            0s          ready
            a/k awake, generation 1
              m1 with the agent
        "#]],
    );
}

#[test]
fn a_bridge_that_attaches_again_while_its_agent_starts_is_not_told_to_execute_it_twice() {
    check(
        r#"given send m1 to a/k · bridge attaches
           bridge detaches
           bridge attaches starting
           ready"#,
        expect![[r#"
            0s          bridge detaches
            0s          bridge attaches starting
                command: admit a/k#1, boot 1
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to a/k#1
            a/k awake, generation 1
              m1 with the agent
        "#]],
    );
}

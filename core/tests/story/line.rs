//! The line of starts: who is first, who is told what, and who leaves it.
//!
//! Owner: `supervisor`. Invariant: oldest first, at most `starts_at_once` at a time.

use expect_test::expect;

use crate::check;

#[test]
fn starts_are_admitted_one_after_the_other_and_places_are_told() {
    check(
        r#"node: starts at once 1
           send m1 to a/one
           send m2 to a/two
           send m3 to a/three
           send m4 to a/three
           bridge attaches ready from a/one
           bridge attaches ready from a/two
           bridge attaches ready from a/three"#,
        expect![[r#"
            0s          send m1 to a/one
                journal: a/one asleep → starting: 1 message to answer
                answer: accepted m1, next
                m1 hears: waking
                command: start a/one#1
            0s          send m2 to a/two
                answer: accepted m2, next
                m2 hears: in the line of starts, behind 0
            0s          send m3 to a/three
                answer: accepted m3, next
                m3 hears: in the line of starts, behind 1
            0s          send m4 to a/three
                answer: accepted m4, behind 1
                m4 hears: in the line of starts, behind 1
            0s          bridge attaches ready from a/one
                journal: a/one starting → awake: the agent was ready after 0 ms
                journal: a/one awake: m1 was handed to the agent, attempt 1
                journal: a/two asleep → starting: 1 message to answer
                m1 hears: delivered, attempt 1
                m2 hears: waking, about 0 ms
                command: admit a/one#1, boot 1
                command: deliver m1.1 to a/one#1
                command: start a/two#1
            0s          bridge attaches ready from a/two
                journal: a/two starting → awake: the agent was ready after 0 ms
                journal: a/two awake: m2 was handed to the agent, attempt 1
                journal: a/three asleep → starting: 2 messages to answer
                m2 hears: delivered, attempt 1
                m3 hears: waking, about 0 ms
                m4 hears: waking, about 0 ms
                command: admit a/two#1, boot 1
                command: deliver m2.1 to a/two#1
                command: start a/three#1
            0s          bridge attaches ready from a/three
                journal: a/three starting → awake: the agent was ready after 0 ms
                journal: a/three awake: m3 was handed to the agent, attempt 1
                m3 hears: delivered, attempt 1
                command: admit a/three#1, boot 1
                command: deliver m3.1 to a/three#1
            a/one awake, generation 1
              m1 with the agent
            a/three awake, generation 1
              m3 with the agent
              m4 pending
            a/two awake, generation 1
              m2 with the agent
        "#]],
    );
}

#[test]
fn a_start_that_fails_makes_room_and_its_session_stands_at_the_end() {
    check(
        r#"node: starts at once 1
           given send m1 to a/one · send m2 to a/two
           agent exits with 1 from a/one
           bridge attaches ready from a/two"#,
        expect![[r#"
            0s          agent exits with 1 from a/one
                journal: a/one starting → asleep: the agent ended with exit code 1 [app_exit]
                journal: a/two asleep → starting: 1 message to answer
                m1 hears: in the line of starts, behind 1
                m2 hears: waking
                command: release a/one#1
                command: start a/two#1
            0s          bridge attaches ready from a/two
                journal: a/two starting → awake: the agent was ready after 0 ms
                journal: a/two awake: m2 was handed to the agent, attempt 1
                journal: a/one asleep → starting: 1 message to answer
                m2 hears: delivered, attempt 1
                m1 hears: waking, about 0 ms
                command: admit a/two#1, boot 1
                command: deliver m2.1 to a/two#1
                command: start a/one#2
            a/one starting, generation 2, failures 1
              m1 pending
            a/two awake, generation 1
              m2 with the agent
        "#]],
    );
}

#[test]
fn a_session_leaves_the_line_when_its_last_message_is_dropped() {
    check(
        r#"node: starts at once 1
           given send m1 to a/one · send m2 to a/two · send m3 to a/three
           drop m2
           bridge attaches ready from a/one"#,
        expect![[r#"
            0s          drop m2
                journal: a/two asleep: ops dropped m2
                answer: accepted, 0 waiting
                m2 hears: dropped
            0s          bridge attaches ready from a/one
                journal: a/one starting → awake: the agent was ready after 0 ms
                journal: a/one awake: m1 was handed to the agent, attempt 1
                journal: a/three asleep → starting: 1 message to answer
                m1 hears: delivered, attempt 1
                m3 hears: waking, about 0 ms
                command: admit a/one#1, boot 1
                command: deliver m1.1 to a/one#1
                command: start a/three#1
            a/one awake, generation 1
              m1 with the agent
            a/three starting, generation 1
              m3 pending
            a/two asleep, generation 0
              m2 cancelled
        "#]],
    );
}

#[test]
fn a_session_in_line_answers_wake_stop_and_restart() {
    check(
        r#"node: starts at once 1
           given send m1 to a/one
           wake a/two
           wake a/two
           restart a/two
           stop a/two
           stop a/two
           send m2 to a/three
           stop a/three
           bridge attaches ready from a/one"#,
        expect![[r#"
            0s          wake a/two
                journal: a/two asleep: ops asked to wake it
                answer: accepted, 0 waiting
            0s          wake a/two
                journal: a/two asleep: ops asked to wake it
                answer: accepted, 0 waiting
            0s          restart a/two
                journal: a/two asleep: ops asked to restart it
                answer: accepted, 0 waiting
            0s          stop a/two
                journal: a/two asleep: ops asked to stop it
                answer: accepted, 0 waiting
            0s          stop a/two
                answer: ignored, already asleep
            0s          send m2 to a/three
                answer: accepted m2, next
                m2 hears: in the line of starts, behind 1
            0s          stop a/three
                answer: denied, 1 waiting would start it again
            0s          bridge attaches ready from a/one
                journal: a/one starting → awake: the agent was ready after 0 ms
                journal: a/one awake: m1 was handed to the agent, attempt 1
                journal: a/three asleep → starting: 1 message to answer
                m1 hears: delivered, attempt 1
                m2 hears: waking, about 0 ms
                command: admit a/one#1, boot 1
                command: deliver m1.1 to a/one#1
                command: start a/three#1
            a/one awake, generation 1
              m1 with the agent
            a/three starting, generation 1
              m2 pending
            a/two asleep, generation 0
        "#]],
    );
}

#[test]
fn a_session_that_left_the_line_and_came_back_stands_at_the_end() {
    check(
        r#"node: starts at once 1
           given send m1 to a/one · send m2 to a/two · send m3 to a/three
           drop m2
           send m4 to a/two
           bridge attaches ready from a/one
           bridge attaches ready from a/three"#,
        expect![[r#"
            0s          drop m2
                journal: a/two asleep: ops dropped m2
                answer: accepted, 0 waiting
                m2 hears: dropped
            0s          send m4 to a/two
                answer: accepted m4, next
                m4 hears: in the line of starts, behind 2
            0s          bridge attaches ready from a/one
                journal: a/one starting → awake: the agent was ready after 0 ms
                journal: a/one awake: m1 was handed to the agent, attempt 1
                journal: a/three asleep → starting: 1 message to answer
                m1 hears: delivered, attempt 1
                m3 hears: waking, about 0 ms
                command: admit a/one#1, boot 1
                command: deliver m1.1 to a/one#1
                command: start a/three#1
            0s          bridge attaches ready from a/three
                journal: a/three starting → awake: the agent was ready after 0 ms
                journal: a/three awake: m3 was handed to the agent, attempt 1
                journal: a/two asleep → starting: 1 message to answer
                m3 hears: delivered, attempt 1
                m4 hears: waking, about 0 ms
                command: admit a/three#1, boot 1
                command: deliver m3.1 to a/three#1
                command: start a/two#1
            a/one awake, generation 1
              m1 with the agent
            a/three awake, generation 1
              m3 with the agent
            a/two starting, generation 1
              m2 cancelled
              m4 pending
        "#]],
    );
}

#[test]
fn a_session_that_stops_waits_for_no_place() {
    check(
        r#"node: starts at once 2
           send m1 to a/one
           send m2 to a/two
           send m3 to a/three
           stop a/one
           bridge is lost, asked by driver from a/one"#,
        expect![[r#"
            0s          send m1 to a/one
                journal: a/one asleep → starting: 1 message to answer
                answer: accepted m1, next
                m1 hears: waking
                command: start a/one#1
            0s          send m2 to a/two
                journal: a/two asleep → starting: 1 message to answer
                answer: accepted m2, next
                m2 hears: waking
                command: start a/two#1
            0s          send m3 to a/three
                answer: accepted m3, next
                m3 hears: in the line of starts, behind 0
            0s          stop a/one
                journal: a/one starting → stopping: ops asked to stop it
                journal: a/three asleep → starting: 1 message to answer
                answer: accepted, 1 waiting
                m3 hears: waking
                command: kill a/one#1
                command: start a/three#1
            0s          bridge is lost, asked by driver from a/one
                journal: a/one stopping → asleep: the bridge was gone without a report, as
                    asked (stop)
                m1 hears: in the line of starts, behind 0
                command: release a/one#1
            a/one asleep, generation 1
              m1 pending
            a/three starting, generation 1
              m3 pending
            a/two starting, generation 1
              m2 pending
        "#]],
    );
}

/// A broken image: every session's start fails. The others are not started to die as well.
#[test]
fn an_agent_whose_sessions_all_fail_at_their_start_is_tried_with_one_of_them() {
    check(
        r#"node: starts at once 9
           given send m1 to a/one · agent exits with 1 from a/one
           given send m2 to a/two · agent exits with 1 from a/two
           given send m3 to a/three · agent exits with 1 from a/three
           given send m4 to a/four · agent exits with 1 from a/four
           given send m5 to a/five
           agent exits with 1 from a/five
           send m6 to a/six
           +30s
           agent exits with 1 from a/five
           given +1m
           bridge attaches ready from a/six"#,
        expect![[r#"
            0s          agent exits with 1 from a/five
                journal: a/five starting → asleep: the agent ended with exit code 1
                    [app_exit]
                journal: a/five asleep: not started yet: other sessions of its agent failed
                    at their start, and one is tried first
                m5 hears: the agent's program ended by itself; the next start is due in 30s
                    [app_exit]
                command: release a/five#1
            0s          send m6 to a/six
                journal: a/six asleep: not started yet: other sessions of its agent failed at
                    their start, and one is tried first
                answer: accepted m6, next
                m6 hears: the agent's program ended by itself; the next start is due in 30s
                    [app_exit]
            0s          +30s
            30s         …
                journal: a/five asleep → starting: 1 message to answer
                m5 hears: waking
                command: start a/five#2
            30s         agent exits with 1 from a/five
                journal: a/five starting → backoff: the agent ended with exit code 1
                    [app_exit]; failure 2 in a row, so the next start has to wait
                m5 hears: the agent's program ended by itself; the next start is due in
                    1s70ms [app_exit]
                command: release a/five#2
            1m30s       bridge attaches ready from a/six
                journal: a/six starting → awake: the agent was ready after 0 ms
                journal: a/six awake: m6 was handed to the agent, attempt 1
                journal: a/five asleep → starting: 1 message to answer
                m6 hears: delivered, attempt 1
                m5 hears: waking, about 0 ms
                command: admit a/six#1, boot 1
                command: deliver m6.1 to a/six#1
                command: start a/five#3
            a/five starting, generation 3, failures 2
              m5 pending
            a/four starting, generation 2, failures 1
              m4 pending
            a/one starting, generation 2, failures 1
              m1 pending
            a/six awake, generation 1
              m6 with the agent
            a/three starting, generation 2, failures 1
              m3 pending
            a/two starting, generation 2, failures 1
              m2 pending
        "#]],
    );
}

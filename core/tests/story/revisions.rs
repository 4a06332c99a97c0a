//! New revisions of an agent: tried by one session, proved or given up, and who moves when.

use expect_test::expect;

use crate::check;

/// An agent whose first revision has proved itself, in one session that sleeps again.
const PROVED: &str = r#"agent a: idle 5m
    given send m1 to a/one · bridge attaches · ready · agent answers m1 "1" · stop a/one
    given agent exits with 0, asked by daemon"#;

fn after_proof(steps: &str, expected: expect_test::Expect) {
    check(&format!("{PROVED}\n{steps}"), expected);
}

#[test]
fn a_new_revision_is_tried_by_the_next_start_and_nobody_is_interrupted() {
    after_proof(
        r#"send m2 to a/two
           config a revision 2
           bridge attaches from a/two
           ready from a/two
           agent answers m2 "2""#,
        expect![[r#"
            0s          send m2 to a/two
                journal: a/two asleep → starting: 1 message to answer
                answer: accepted m2, next
                m2 hears: waking, about 0 ms
                command: start a/two#1
            0s          config a revision 2
                answer: is in force
            0s          bridge attaches from a/two
                command: admit a/two#1, boot 1, execute the agent
            0s          ready from a/two
                journal: a/two starting → awake: the agent was ready after 0 ms
                journal: a/two awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/two#1
            0s          agent answers m2 "2"
                journal: a/two awake: m2 was answered in 0 ms (1 byte)
                m2 hears: the answer of 1, "2"
                command: acknowledge m2.1 to a/two#1
            a/one asleep, generation 1
              m1 answered "1"
            a/two awake, generation 1
              m2 answered "2"
        "#]],
    );
}

#[test]
fn a_canary_that_dies_at_its_start_goes_on_with_the_good_revision_and_nothing_is_counted() {
    after_proof(
        r#"config a revision 2
           send m2 to a/one
           bridge attaches
           agent exits with 1
           bridge attaches
           ready
           agent answers m2 "2""#,
        expect![[r#"
            0s          config a revision 2
                answer: is in force
            0s          send m2 to a/one
                journal: asleep → starting: 1 message to answer
                journal: starting: it tries revision 2, which nobody had before
                answer: accepted m2, next
                m2 hears: waking, about 0 ms
                command: start a/one#2 in revision 2
            0s          bridge attaches
                command: admit a/one#2, boot 1, execute the agent in revision 2
            0s          agent exits with 1
                journal: starting: revision 2 is bad, and is not used: the agent's program
                    ended by itself: it ended with exit code 1 [app_exit]
                journal: starting → asleep: the agent ended with exit code 1 [app_exit]
                journal: asleep → starting: 1 message to answer
                m2 hears: waking, about 0 ms
                command: release a/one#2
                command: start a/one#3
            0s          bridge attaches
                command: admit a/one#3, boot 1, execute the agent
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/one#3
            0s          agent answers m2 "2"
                journal: awake: m2 was answered in 0 ms (1 byte)
                m2 hears: the answer of 1, "2"
                command: acknowledge m2.1 to a/one#3
            a/one awake, generation 3
              m1 answered "1"
              m2 answered "2"
        "#]],
    );
}

#[test]
fn an_answer_that_is_an_error_condemns_the_revision_and_the_message_is_answered_by_the_good_one() {
    after_proof(
        r#"config a revision 2
           send m2 to a/one · bridge attaches · ready
           agent fails m2 "404 Unknown model"
           agent exits with 0, asked by daemon
           bridge attaches
           ready
           agent answers m2 "2""#,
        expect![[r#"
            0s          config a revision 2
                answer: is in force
            0s          send m2 to a/one
                journal: asleep → starting: 1 message to answer
                journal: starting: it tries revision 2, which nobody had before
                answer: accepted m2, next
                m2 hears: waking, about 0 ms
                command: start a/one#2 in revision 2
            0s          bridge attaches
                command: admit a/one#2, boot 1, execute the agent in revision 2
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/one#2
            0s          agent fails m2 "404 Unknown model"
                journal: awake: revision 2 is bad, and is not used: 404 Unknown model
                    [agent_error]
                journal: awake: m2 failed [agent_error]: 404 Unknown model; it will be tried
                    again
                journal: awake: m2 was cut short; attempt 1 is not counted
                journal: awake → stopping: it runs revision 2, and another one is in force
                m2 hears: the agent said that it failed; attempt 2 is due now [agent_error]
                command: acknowledge m2.1 to a/one#2
                command: stop a/one#2, grace 10 s
            0s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked
                    (another revision)
                journal: asleep → starting: 1 message to answer
                m2 hears: waking, about 0 ms
                command: release a/one#2
                command: start a/one#3
            0s          bridge attaches
                command: admit a/one#3, boot 1, execute the agent
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m2 was handed to the agent, attempt 2
                m2 hears: delivered, attempt 2
                command: deliver m2.2 to a/one#3
            0s          agent answers m2 "2"
                journal: awake: m2 was answered in 0 ms (1 byte)
                m2 hears: the answer of 2, "2"
                command: acknowledge m2.2 to a/one#3
            a/one awake, generation 3
              m1 answered "1"
              m2 answered "2", attempts 2
        "#]],
    );
}

#[test]
fn while_one_tries_the_others_start_what_is_good() {
    after_proof(
        r#"config a revision 2
           send m2 to a/one
           send m3 to a/two
           bridge attaches from a/one
           ready from a/one
           agent answers m2 "2"
           send m4 to a/three"#,
        expect![[r#"
            0s          config a revision 2
                answer: is in force
            0s          send m2 to a/one
                journal: a/one asleep → starting: 1 message to answer
                journal: a/one starting: it tries revision 2, which nobody had before
                answer: accepted m2, next
                m2 hears: waking, about 0 ms
                command: start a/one#2 in revision 2
            0s          send m3 to a/two
                journal: a/two asleep → starting: 1 message to answer
                answer: accepted m3, next
                m3 hears: waking, about 0 ms
                command: start a/two#1
            0s          bridge attaches from a/one
                command: admit a/one#2, boot 1, execute the agent in revision 2
            0s          ready from a/one
                journal: a/one starting → awake: the agent was ready after 0 ms
                journal: a/one awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/one#2
            0s          agent answers m2 "2"
                journal: a/one awake: revision 2 is good
                journal: a/one awake: m2 was answered in 0 ms (1 byte)
                m2 hears: the answer of 1, "2"
                command: acknowledge m2.1 to a/one#2
            0s          send m4 to a/three
                journal: a/three asleep → starting: 1 message to answer
                answer: accepted m4, next
                m4 hears: waking, about 0 ms
                command: start a/three#1 in revision 2
            a/one awake, generation 2
              m1 answered "1"
              m2 answered "2"
            a/three starting, generation 1
              m4 pending
            a/two starting, generation 1
              m3 pending
        "#]],
    );
}

#[test]
fn who_is_awake_moves_when_it_has_been_idle_for_a_moment() {
    after_proof(
        r#"given send m2 to a/two · bridge attaches from a/two · ready from a/two
           given agent answers m2 "2"
           config a revision 2
           +1m
           send m3 to a/one · bridge attaches from a/one · ready from a/one
           agent answers m3 "3"
           +30s"#,
        expect![[r#"
            0s          config a revision 2
                answer: is in force
            0s          +1m
            1m          send m3 to a/one
                journal: a/one asleep → starting: 1 message to answer
                journal: a/one starting: it tries revision 2, which nobody had before
                answer: accepted m3, next
                m3 hears: waking, about 0 ms
                command: start a/one#2 in revision 2
            1m          bridge attaches from a/one
                command: admit a/one#2, boot 1, execute the agent in revision 2
            1m          ready from a/one
                journal: a/one starting → awake: the agent was ready after 0 ms
                journal: a/one awake: m3 was handed to the agent, attempt 1
                m3 hears: delivered, attempt 1
                command: deliver m3.1 to a/one#2
            1m          agent answers m3 "3"
                journal: a/one awake: revision 2 is good
                journal: a/one awake: m3 was answered in 0 ms (1 byte)
                m3 hears: the answer of 1, "3"
                command: acknowledge m3.1 to a/one#2
                journal: a/two awake → stopping: it runs revision 1, and another one is in
                    force
                command: stop a/two#1, grace 10 s
            1m          +30s
            1m15s       …
                journal: a/two stopping: its end was not confirmed in time; ordered to be
                    killed
                command: kill a/two#1
            1m25s       …
                journal: a/two stopping: its end was not confirmed in time; ordered to be
                    killed
                command: kill a/two#1
            a/one awake, generation 2
              m1 answered "1"
              m3 answered "3"
            a/two stopping, generation 1
              m2 answered "2"
        "#]],
    );
}

#[test]
fn a_config_that_goes_back_is_in_force_without_a_trial() {
    after_proof(
        r#"given config a revision 2
           given send m2 to a/one · bridge attaches · ready · agent answers m2 "2" · stop a/one
           given agent exits with 0, asked by daemon
           config a revision 1
           send m3 to a/one"#,
        expect![[r#"
            0s          config a revision 1
                answer: is in force
            0s          send m3 to a/one
                journal: asleep → starting: 1 message to answer
                answer: accepted m3, next
                m3 hears: waking, about 0 ms
                command: start a/one#3
            a/one starting, generation 3
              m1 answered "1"
              m2 answered "2"
              m3 pending
        "#]],
    );
}

#[test]
fn a_trial_with_a_canary_turn_is_that_sessions_alone_and_its_answer_must_say_what_is_expected() {
    after_proof(
        r#"config a revision 2 canary pong
           send m2 to a/one
           send m3 to a/canary
           bridge attaches from a/canary
           ready from a/canary
           agent answers m3 "what?"
           agent exits with 0, asked by daemon"#,
        expect![[r#"
            0s          config a revision 2 canary pong
                answer: is in force
            0s          send m2 to a/one
                journal: a/one asleep → starting: 1 message to answer
                answer: accepted m2, next
                m2 hears: waking, about 0 ms
                command: start a/one#2
            0s          send m3 to a/canary
                journal: a/canary asleep → starting: 1 message to answer
                journal: a/canary starting: it tries revision 2, which nobody had before
                answer: accepted m3, next
                m3 hears: waking, about 0 ms
                command: start a/canary#1 in revision 2
            0s          bridge attaches from a/canary
                command: admit a/canary#1, boot 1, execute the agent in revision 2
            0s          ready from a/canary
                journal: a/canary starting → awake: the agent was ready after 0 ms
                journal: a/canary awake: m3 was handed to the agent, attempt 1
                m3 hears: delivered, attempt 1
                command: deliver m3.1 to a/canary#1
            0s          agent answers m3 "what?"
                journal: a/canary awake: revision 2 is bad, and is not used: its answer does
                    not contain "pong" [agent_error]
                journal: a/canary awake: m3 was answered in 0 ms (5 bytes)
                journal: a/canary awake → stopping: it runs revision 2, and another one is in
                    force
                m3 hears: the answer of 1, "what?"
                command: acknowledge m3.1 to a/canary#1
                command: stop a/canary#1, grace 10 s
            0s          agent exits with 0, asked by daemon
                journal: a/canary stopping → asleep: the agent ended with exit code 0, as
                    asked (another revision)
                command: release a/canary#1
            a/canary asleep, generation 1
              m3 answered "what?"
            a/one starting, generation 2
              m1 answered "1"
              m2 pending
        "#]],
    );
}

#[test]
fn what_a_canary_session_runs_makes_place_for_the_revision_that_it_is_to_try() {
    after_proof(
        r#"send m2 to a/canary · bridge attaches from a/canary · ready from a/canary
           agent answers m2 "1"
           config a revision 2 canary pong
           send m3 to a/canary
           agent exits with 0, asked by daemon
           bridge attaches from a/canary
           ready from a/canary
           agent answers m3 "pong""#,
        expect![[r#"
            0s          send m2 to a/canary
                journal: a/canary asleep → starting: 1 message to answer
                answer: accepted m2, next
                m2 hears: waking, about 0 ms
                command: start a/canary#1
            0s          bridge attaches from a/canary
                command: admit a/canary#1, boot 1, execute the agent
            0s          ready from a/canary
                journal: a/canary starting → awake: the agent was ready after 0 ms
                journal: a/canary awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/canary#1
            0s          agent answers m2 "1"
                journal: a/canary awake: m2 was answered in 0 ms (1 byte)
                m2 hears: the answer of 1, "1"
                command: acknowledge m2.1 to a/canary#1
            0s          config a revision 2 canary pong
                answer: is in force
            0s          send m3 to a/canary
                journal: a/canary awake → stopping: it runs revision 1, and another one is in
                    force
                answer: accepted m3, next
                command: stop a/canary#1, grace 10 s
            0s          agent exits with 0, asked by daemon
                journal: a/canary stopping → asleep: the agent ended with exit code 0, as
                    asked (another revision)
                journal: a/canary asleep → starting: 1 message to answer
                journal: a/canary starting: it tries revision 2, which nobody had before
                m3 hears: waking, about 0 ms
                command: release a/canary#1
                command: start a/canary#2 in revision 2
            0s          bridge attaches from a/canary
                command: admit a/canary#2, boot 1, execute the agent in revision 2
            0s          ready from a/canary
                journal: a/canary starting → awake: the agent was ready after 0 ms
                journal: a/canary awake: m3 was handed to the agent, attempt 1
                m3 hears: delivered, attempt 1
                command: deliver m3.1 to a/canary#2
            0s          agent answers m3 "pong"
                journal: a/canary awake: revision 2 is good
                journal: a/canary awake: m3 was answered in 0 ms (4 bytes)
                m3 hears: the answer of 1, "pong"
                command: acknowledge m3.1 to a/canary#2
            a/canary awake, generation 2
              m2 answered "1"
              m3 answered "pong"
            a/one asleep, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn an_operator_pauses_aborts_and_retries() {
    after_proof(
        r#"config a revision 2
           rollout a pauses
           send m2 to a/one
           rollout a resumes
           send m3 to a/two
           rollout a aborts
           rollout a aborts
           rollout a retries"#,
        expect![[r#"
            0s          config a revision 2
                answer: is in force
            0s          rollout a pauses
                answer: accepted, 0 waiting
            0s          send m2 to a/one
                journal: a/one asleep → starting: 1 message to answer
                answer: accepted m2, next
                m2 hears: waking, about 0 ms
                command: start a/one#2
            0s          rollout a resumes
                answer: accepted, 0 waiting
            0s          send m3 to a/two
                journal: a/two asleep → starting: 1 message to answer
                journal: a/two starting: it tries revision 2, which nobody had before
                answer: accepted m3, next
                m3 hears: waking, about 0 ms
                command: start a/two#1 in revision 2
            0s          rollout a aborts
                answer: accepted, 0 waiting
            0s          rollout a aborts
                answer: ignored, already so
            0s          rollout a retries
                answer: accepted, 0 waiting
            a/one starting, generation 2
              m1 answered "1"
              m2 pending
            a/two starting, generation 1
              m3 pending
        "#]],
    );
}

#[test]
fn a_daemon_that_dies_in_a_trial_goes_on_with_it() {
    after_proof(
        r#"config a revision 2
           send m2 to a/one · bridge attaches
           the daemon dies and comes back
           bridge attaches
           ready
           agent answers m2 "2""#,
        expect![[r#"
            0s          config a revision 2
                answer: is in force
            0s          send m2 to a/one
                journal: asleep → starting: 1 message to answer
                journal: starting: it tries revision 2, which nobody had before
                answer: accepted m2, next
                m2 hears: waking, about 0 ms
                command: start a/one#2 in revision 2
            0s          bridge attaches
                command: admit a/one#2, boot 1, execute the agent in revision 2
            0s          the daemon dies and comes back
                journal: starting: the daemon came back and found 1 message waiting
            0s          bridge attaches
                command: admit a/one#2, boot 1, execute the agent in revision 2
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to a/one#2
            0s          agent answers m2 "2"
                journal: awake: revision 2 is good
                journal: awake: m2 was answered in 0 ms (1 byte)
                m2 hears: the answer of 1, "2"
                command: acknowledge m2.1 to a/one#2
            a/one awake, generation 2
              m1 answered "1"
              m2 answered "2"
        "#]],
    );
}

#[test]
fn a_trial_that_an_operator_stops_says_nothing_and_is_open_to_the_next() {
    after_proof(
        r#"config a revision 2
           wake a/one
           stop a/one
           agent exits with 0, asked by daemon
           send m2 to a/two"#,
        expect![[r#"
            0s          config a revision 2
                answer: is in force
            0s          wake a/one
                journal: a/one asleep: ops asked to wake it
                journal: a/one asleep → starting: it was asked for
                journal: a/one starting: it tries revision 2, which nobody had before
                answer: accepted, 0 waiting
                command: start a/one#2 in revision 2
            0s          stop a/one
                journal: a/one starting → stopping: ops asked to stop it
                answer: accepted, 0 waiting
                command: kill a/one#2
            0s          agent exits with 0, asked by daemon
                journal: a/one stopping → asleep: the agent ended with exit code 0, as asked
                    (stop)
                command: release a/one#2
            0s          send m2 to a/two
                journal: a/two asleep → starting: 1 message to answer
                journal: a/two starting: it tries revision 2, which nobody had before
                answer: accepted m2, next
                m2 hears: waking, about 0 ms
                command: start a/two#1 in revision 2
            a/one asleep, generation 2
              m1 answered "1"
            a/two starting, generation 1
              m2 pending
        "#]],
    );
}

#[test]
fn a_trial_that_fails_with_nothing_left_to_do_is_judged_all_the_same() {
    after_proof(
        r#"given config a revision 2 canary pong
           wake a/canary
           bridge attaches from a/canary
           ready from a/canary
           agent exits with 1 from a/canary
           send m2 to a/canary"#,
        expect![[r#"
            0s          wake a/canary
                journal: a/canary asleep: ops asked to wake it
                journal: a/canary asleep → starting: it was asked for
                journal: a/canary starting: it tries revision 2, which nobody had before
                answer: accepted, 0 waiting
                command: start a/canary#1 in revision 2
            0s          bridge attaches from a/canary
                command: admit a/canary#1, boot 1, execute the agent in revision 2
            0s          ready from a/canary
                journal: a/canary starting → awake: the agent was ready after 0 ms
            0s          agent exits with 1 from a/canary
                journal: a/canary awake: revision 2 is bad, and is not used: the agent's
                    program ended by itself: it ended with exit code 1 [app_exit]
                journal: a/canary awake → asleep: the agent ended with exit code 1 [app_exit]
                command: release a/canary#1
            0s          send m2 to a/canary
                answer: refused, not your session
            a/canary asleep, generation 1
            a/one asleep, generation 1
              m1 answered "1"
        "#]],
    );
}

#[test]
fn who_was_woken_for_a_trial_that_is_never_ready_is_awake_in_the_good_revision() {
    after_proof(
        r#"given config a revision 2
           wake a/one
           bridge attaches
           +2m
           agent exits with 0, asked by daemon
           bridge attaches
           ready"#,
        expect![[r#"
            0s          wake a/one
                journal: asleep: ops asked to wake it
                journal: asleep → starting: it was asked for
                journal: starting: it tries revision 2, which nobody had before
                answer: accepted, 0 waiting
                command: start a/one#2 in revision 2
            0s          bridge attaches
                command: admit a/one#2, boot 1, execute the agent in revision 2
            0s          +2m
            2m          …
                journal: starting → stopping: it was not ready within 2 min
                command: stop a/one#2, grace 10 s
            2m          agent exits with 0, asked by daemon
                journal: stopping: revision 2 is bad, and is not used: the agent did not
                    become ready in time: it ended with exit code 0 [start_timeout]
                journal: stopping → asleep: the agent ended with exit code 0, as asked (not
                    ready in time) [start_timeout]
                journal: asleep → starting: it was asked for
                command: release a/one#2
                command: start a/one#3
            2m          bridge attaches
                command: admit a/one#3, boot 1, execute the agent
            2m          ready
                journal: starting → awake: the agent was ready after 0 ms
            a/one awake, generation 3
              m1 answered "1"
        "#]],
    );
}

#[test]
fn a_trial_that_a_pause_has_ended_is_open_to_the_next_start() {
    after_proof(
        r#"given config a revision 2
           send m2 to a/one
           rollout a pauses
           restart a/one
           agent exits with 0, asked by daemon
           rollout a resumes
           send m3 to a/two"#,
        expect![[r#"
            0s          send m2 to a/one
                journal: a/one asleep → starting: 1 message to answer
                journal: a/one starting: it tries revision 2, which nobody had before
                answer: accepted m2, next
                m2 hears: waking, about 0 ms
                command: start a/one#2 in revision 2
            0s          rollout a pauses
                answer: accepted, 0 waiting
            0s          restart a/one
                journal: a/one starting → stopping: ops asked to restart it
                answer: accepted, 1 waiting
                command: kill a/one#2
            0s          agent exits with 0, asked by daemon
                journal: a/one stopping → asleep: the agent ended with exit code 0, as asked
                    (restart)
                journal: a/one asleep → starting: 1 message to answer
                m2 hears: waking, about 0 ms
                command: release a/one#2
                command: start a/one#3
            0s          rollout a resumes
                answer: accepted, 0 waiting
            0s          send m3 to a/two
                journal: a/two asleep → starting: 1 message to answer
                journal: a/two starting: it tries revision 2, which nobody had before
                answer: accepted m3, next
                m3 hears: waking, about 0 ms
                command: start a/two#1 in revision 2
            a/one starting, generation 3
              m1 answered "1"
              m2 pending
            a/two starting, generation 1
              m3 pending
        "#]],
    );
}

#[test]
fn an_agent_that_was_out_of_the_config_comes_back_with_what_is_known_of_its_revisions() {
    after_proof(
        r#"given config a revision 2
           given send m2 to a/one · bridge attaches · agent exits with 1
           given bridge attaches · ready · agent answers m2 "2"
           config without a
           config with a
           send m3 to a/two"#,
        expect![[r#"
            0s          config without a
                answer: is in force
            0s          config with a
                answer: is in force
            0s          send m3 to a/two
                journal: a/two asleep → starting: 1 message to answer
                answer: accepted m3, next
                m3 hears: waking, about 0 ms
                command: start a/two#1
            a/one awake, generation 3
              m1 answered "1"
              m2 answered "2"
            a/two starting, generation 1
              m3 pending
        "#]],
    );
}

#[test]
fn who_stands_in_line_for_an_agent_that_is_taken_out_waits_until_it_is_back() {
    check(
        r#"node: starts at once 1
           agent a: idle 5m
           agent b: idle 5m
           given send m1 to b/one
           send m2 to a/one
           config without a
           given bridge attaches from b/one · ready from b/one
           +1m
           config with a"#,
        expect![[r#"
            0s          send m2 to a/one
                answer: accepted m2, next
                m2 hears: in the line of starts, behind 0
            0s          config without a
                answer: is in force
            0s          +1m
            1m          config with a
                journal: a/one asleep → starting: 1 message to answer
                answer: is in force
                m2 hears: waking
                command: start a/one#1
            a/one starting, generation 1
              m2 pending
            b/one awake, generation 1
              m1 with the agent
        "#]],
    );
}

#[test]
fn a_canary_session_makes_place_whatever_holds_it() {
    after_proof(
        r#"given config a revision 1 canary pong
           given wake a/canary · bridge attaches from a/canary · ready from a/canary
           given agent holds "tool" for 2m from a/canary
           config a revision 2 canary pong
           send m2 to a/canary by ops"#,
        expect![[r#"
            0s          config a revision 2 canary pong
                answer: is in force
            0s          send m2 to a/canary by ops
                journal: a/canary awake → stopping: it runs revision 1, and another one is in
                    force
                answer: accepted m2, next
                command: stop a/canary#1, grace 10 s
            a/canary stopping, generation 1
              m2 pending
            a/one asleep, generation 1
              m1 answered "1"
        "#]],
    );
}

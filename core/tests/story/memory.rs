//! Memory that fits: the limit rises after a proved want of it, and is remembered.

use expect_test::expect;

use crate::check;

/// S2: it touches more than its limit, is killed, and lives under the next one.
#[test]
fn an_agent_that_needs_more_memory_gets_it_and_the_message_is_not_blamed() {
    check(
        r#"agent a: memory 512MiB, attempts 1
           given send m1 to a/k · bridge attaches · ready
           agent dies of signal 9, oom 1, after 28s
           bridge attaches · ready · agent answers m1 "1"
           given agent exits with 0
           the daemon dies and comes back
           send m2 to a/k"#,
        expect![[r#"
            0s          agent dies of signal 9, oom 1, after 28s
                journal: awake: its memory limit goes from 512 MiB to 1024 MiB for the next
                    start [oom_limit]
                journal: awake: m1 was cut short; attempt 1 is not counted
                journal: awake → asleep: the agent was ended by signal 9 after 28 s;
                    out-of-memory kills counted: 1 [oom_limit]
                journal: asleep → starting: 1 message to answer
                m1 hears: the agent needed more memory than it may use; attempt 2 is due now
                    [oom_limit]
                m1 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2 with 1024 MiB
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
            0s          the daemon dies and comes back
            0s          send m2 to a/k
                journal: asleep → starting: 1 message to answer
                answer: accepted m2, next
                m2 hears: waking, about 0 ms
                command: start a/k#3 with 1024 MiB
            a/k starting, generation 3
              m1 answered "1", attempts 2
              m2 pending
        "#]],
    );
}

#[test]
fn at_the_ceiling_the_message_is_given_up_and_the_journal_says_why() {
    check(
        r#"agent a: memory 512MiB, ceiling 512MiB, attempts 1
           given send m1 to a/k · bridge attaches · ready
           agent dies of signal 9, oom 1, after 28s"#,
        expect![[r#"
            0s          agent dies of signal 9, oom 1, after 28s
                journal: awake: it needs more memory, and 512 MiB is the most that it may
                    have
                journal: awake: m1 was cut short; attempt 1 is counted
                journal: awake: m1 was dead-lettered after 1 attempt [poison_message]
                journal: awake → asleep: the agent was ended by signal 9 after 28 s;
                    out-of-memory kills counted: 1 [oom_limit]
                m1 hears: given up, after 1 attempt; the last: the agent needed more memory
                    than it may use [poison_message]
                command: release a/k#1
            a/k asleep, generation 1, failures 1
              m1 dead [poison_message]
        "#]],
    );
}

#[test]
fn a_child_that_was_killed_for_memory_raises_the_limit_if_its_parent_ended_for_it() {
    check(
        r#"agent a: memory 512MiB
           given send m1 to a/k · bridge attaches · ready
           agent exits with 137, child oom 1, after 3s"#,
        expect![[r#"
            0s          agent exits with 137, child oom 1, after 3s
                journal: awake: its memory limit goes from 512 MiB to 1024 MiB for the next
                    start [oom_child]
                journal: awake: m1 was cut short; attempt 1 is not counted
                journal: awake → asleep: the agent ended with exit code 137 after 3 s;
                    out-of-memory kills counted: 1 [oom_child]
                journal: asleep → starting: 1 message to answer
                m1 hears: a program that the agent had started needed more memory than it may
                    use; attempt 2 is due now [oom_child]
                m1 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2 with 1024 MiB
            a/k starting, generation 2, failures 1
              m1 pending
        "#]],
    );
}

#[test]
fn an_out_of_memory_kill_that_is_only_likely_raises_nothing() {
    check(
        r#"agent a: memory 512MiB
           given send m1 to a/k · bridge attaches · ready
           agent dies of signal 9, somebody oom 1, after 3s"#,
        expect![[r#"
            0s          agent dies of signal 9, somebody oom 1, after 3s
                journal: awake: m1 was cut short; attempt 1 is counted
                journal: awake → asleep: the agent was ended by signal 9 after 3 s;
                    out-of-memory kills counted: 1 [oom_limit]
                journal: asleep → starting: 1 message to answer
                m1 hears: the agent needed more memory than it may use; attempt 2 is due now
                    [oom_limit]
                m1 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2 with 512 MiB
            a/k starting, generation 2, failures 1
              m1 pending
        "#]],
    );
}

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

/// With one process per turn the agent lives, and its limit is still too small.
#[test]
fn a_turn_that_is_killed_for_memory_gets_more_of_it_with_a_new_instance_and_is_not_blamed() {
    check(
        r#"agent a: memory 256MiB, attempts 1
           given send m1 to a/k · bridge attaches · ready
           send m2 to a/k
           agent fails m1 "killed" for memory
           agent exits with 0, asked by daemon
           given bridge attaches · ready
           agent fails m1 "killed" for a child's memory
           given agent exits with 0, asked by daemon
           given bridge attaches · ready
           agent answers m1 "1""#,
        expect![[r#"
            0s          send m2 to a/k
                answer: accepted m2, behind 1
                m2 hears: queued behind 1
            0s          agent fails m1 "killed" for memory
                journal: awake: its memory limit goes from 256 MiB to 512 MiB for the next
                    start [oom_limit]
                journal: awake: m1 failed [oom_limit]: killed; it will be tried again
                journal: awake: m1 was cut short; attempt 1 is not counted
                journal: awake → stopping: what it may use has risen, which holds from the
                    next start on
                m1 hears: the agent needed more memory than it may use; attempt 2 is due now
                    [oom_limit]
                command: acknowledge m1.1 to a/k#1
                command: stop a/k#1, grace 10 s
            0s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked (more
                    memory)
                journal: asleep → starting: 2 messages to answer
                m1 hears: waking, about 0 ms
                m2 hears: waking, about 0 ms
                command: release a/k#1
                command: start a/k#2 with 512 MiB
            0s          agent fails m1 "killed" for a child's memory
                journal: awake: its memory limit goes from 512 MiB to 1024 MiB for the next
                    start [oom_child]
                journal: awake: m1 failed [oom_child]: killed; it will be tried again
                journal: awake: m1 was cut short; attempt 2 is not counted
                journal: awake → stopping: what it may use has risen, which holds from the
                    next start on
                m1 hears: a program that the agent had started needed more memory than it may
                    use; attempt 3 is due now [oom_child]
                command: acknowledge m1.2 to a/k#2
                command: stop a/k#2, grace 10 s
            0s          agent answers m1 "1"
                journal: awake: m1 was answered in 0 ms (1 byte)
                journal: awake: m2 was handed to the agent, attempt 1
                m1 hears: the answer of 3, "1"
                m2 hears: delivered, attempt 1
                command: acknowledge m1.3 to a/k#3
                command: deliver m2.1 to a/k#3
            a/k awake, generation 3
              m1 answered "1", attempts 3
              m2 with the agent
        "#]],
    );
}

#[test]
fn a_turn_that_is_killed_for_memory_at_the_ceiling_counts_its_attempts() {
    check(
        r#"agent a: memory 256MiB, ceiling 256MiB, attempts 2
           given send m1 to a/k · bridge attaches · ready
           agent fails m1 "killed" for memory
           +2s
           agent fails m1 "killed" for memory"#,
        expect![[r#"
            0s          agent fails m1 "killed" for memory
                journal: awake: it needs more memory, and 256 MiB is the most that it may
                    have
                journal: awake: m1 failed [oom_limit]: killed; it will be tried again
                m1 hears: the agent needed more memory than it may use; attempt 2 is due in
                    1s100ms [oom_limit]
                command: acknowledge m1.1 to a/k#1
            0s          +2s
            1s100ms     …
                journal: awake: m1 was handed to the agent, attempt 2
                m1 hears: delivered, attempt 2
                command: deliver m1.2 to a/k#1
            2s          agent fails m1 "killed" for memory
                journal: awake: it needs more memory, and 256 MiB is the most that it may
                    have
                journal: awake: m1 failed [oom_limit]: killed
                journal: awake: m1 was dead-lettered after 2 attempts [attempts_exhausted]
                m1 hears: given up, after 2 attempts; the last: killed [attempts_exhausted]
                command: acknowledge m1.2 to a/k#1
            a/k awake, generation 1
              m1 dead [attempts_exhausted], attempts 2
        "#]],
    );
}

#[test]
fn a_turn_that_must_not_be_repeated_is_given_up_and_the_next_one_has_more_memory() {
    check(
        r#"agent a: memory 256MiB, retry ask
           given send m1 to a/k · bridge attaches · ready
           agent fails m1 "killed" for memory
           agent exits with 0, asked by daemon
           send m2 to a/k"#,
        expect![[r#"
            0s          agent fails m1 "killed" for memory
                journal: awake: its memory limit goes from 256 MiB to 512 MiB for the next
                    start [oom_limit]
                journal: awake: m1 failed [oom_limit]: killed
                journal: awake: m1 was dead-lettered after 1 attempt [oom_limit]
                journal: awake → stopping: what it may use has risen, which holds from the
                    next start on
                m1 hears: given up, killed [oom_limit]
                command: acknowledge m1.1 to a/k#1
                command: stop a/k#1, grace 10 s
            0s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked (more
                    memory)
                command: release a/k#1
            0s          send m2 to a/k
                journal: asleep → starting: 1 message to answer
                answer: accepted m2, next
                m2 hears: waking, about 0 ms
                command: start a/k#2 with 512 MiB
            a/k starting, generation 2
              m1 dead [oom_limit]
              m2 pending
        "#]],
    );
}

#[test]
fn a_turn_that_is_killed_for_memory_while_its_agent_drains_raises_the_limit_of_the_next_start() {
    check(
        r#"agent a: memory 256MiB
           given send m1 to a/k · bridge attaches · ready
           restart a/k
           agent fails m1 "killed" for memory
           given agent exits with 0, asked by daemon"#,
        expect![[r#"
            0s          restart a/k
                journal: awake → draining: ops asked to restart it
                answer: accepted, 0 waiting
            0s          agent fails m1 "killed" for memory
                journal: draining: its memory limit goes from 256 MiB to 512 MiB for the next
                    start [oom_limit]
                journal: draining: m1 failed [oom_limit]: killed; it will be tried again
                journal: draining: m1 was cut short; attempt 1 is not counted
                journal: draining → stopping: its turn is finished
                m1 hears: the agent needed more memory than it may use; attempt 2 is due now
                    [oom_limit]
                command: acknowledge m1.1 to a/k#1
                command: stop a/k#1, grace 10 s
            a/k starting, generation 2
              m1 pending
        "#]],
    );
}

#[test]
fn a_turn_that_is_killed_for_the_machine_s_memory_raises_nothing() {
    check(
        r#"agent a: memory 256MiB
           given send m1 to a/k · bridge attaches · ready
           agent fails m1 "killed" for the machine's memory"#,
        expect![[r#"
            0s          agent fails m1 "killed" for the machine's memory
                journal: awake: m1 failed [oom_host]: killed; it will be tried again
                m1 hears: the machine ran out of memory; attempt 2 is due in 1s100ms
                    [oom_host]
                command: acknowledge m1.1 to a/k#1
            a/k awake, generation 1
              m1 pending
        "#]],
    );
}

//! Files before work (S4): nothing runs before its files are there, and nothing good is
//! overwritten.

use expect_test::expect;

use crate::check;

#[test]
fn an_agent_is_executed_only_when_its_files_are_there_and_asked_only_when_they_are_current() {
    check(
        r#"agent d: files inputs
           given send m1 to d/k
           bridge attaches
           inputs are january
           files come 3 of 1500
           files synced january+0
           ready
           agent answers m1 "1500 rows""#,
        expect![[r#"
            0s          bridge attaches
                command: admit d/k#1, boot 1
                command: list inputs of d/k#1, look 1
            0s          inputs are january
                command: sync d/k#1 to january+0
            0s          files come 3 of 1500
                m1 hears: its files come, 3 of 1500
            0s          files synced january+0
                journal: starting: its files were in place after 0 ms
                command: launch d/k#1
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to d/k#1
            0s          agent answers m1 "1500 rows"
                journal: awake: m1 was answered in 0 ms (9 bytes)
                m1 hears: the answer of 1, "1500 rows"
                command: acknowledge m1.1 to d/k#1
            d/k awake, generation 1
              m1 answered "1500 rows"
        "#]],
    );
}

#[test]
fn a_message_that_came_after_the_look_before_the_launch_is_looked_for_anew() {
    check(
        r#"agent d: files inputs
           given wake d/k · bridge attaches · inputs are january · files synced january+0
           send m1 to d/k as operator
           ready
           inputs are february
           files synced february+0"#,
        expect![[r#"
            0s          send m1 to d/k as operator
                answer: accepted m1, next
                m1 hears: waking
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                command: list inputs of d/k#1, look 2
            0s          inputs are february
                command: sync d/k#1 to february+0
            0s          files synced february+0
                journal: awake: its files were in place after 0 ms
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to d/k#1
            d/k awake, generation 1
              m1 with the agent
        "#]],
    );
}

#[test]
fn an_input_that_changes_while_the_agent_is_awake_is_there_at_the_next_turn() {
    check(
        r#"agent d: files inputs
           given send m1 to d/k · bridge attaches · inputs are january · files synced january+0
           given ready · agent answers m1 "done"
           send m2 to d/k
           inputs are february
           inputs are february look 1
           files synced january+0
           files synced february+0
           agent answers m2 "done""#,
        expect![[r#"
            0s          send m2 to d/k
                answer: accepted m2, next
                command: list inputs of d/k#1, look 2
            0s          inputs are february
                command: sync d/k#1 to february+0
            0s          inputs are february look 1
                counted as stale: 1
            0s          files synced january+0
            0s          files synced february+0
                journal: awake: its files were in place after 0 ms
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to d/k#1
            0s          agent answers m2 "done"
                journal: awake: m2 was answered in 0 ms (4 bytes)
                m2 hears: the answer of 1, "done"
                command: acknowledge m2.1 to d/k#1
            d/k awake, generation 1
              m1 answered "done"
              m2 answered "done"
        "#]],
    );
}

#[test]
fn a_missing_input_fails_the_message_and_the_agent_is_not_asked() {
    check(
        r#"agent d: files inputs
           given send m1 to d/k · send m2 to d/k · bridge attaches
           inputs lack "data/: no file matches *.csv"
           inputs lack "data/: no file matches *.csv"
           agent exits with 0, asked by daemon
           send m3 to d/k · bridge attaches · inputs are january · files synced january+0 · ready"#,
        expect![[r#"
            0s          inputs lack "data/: no file matches *.csv"
                journal: starting: its files are not in place [input_missing]: data/: no file
                    matches *.csv
                journal: starting: m1 was dead-lettered after 0 attempts [input_missing]
                m1 hears: given up, data/: no file matches *.csv [input_missing]
                command: list inputs of d/k#1, look 2
            0s          inputs lack "data/: no file matches *.csv"
                journal: starting: its files are not in place [input_missing]: data/: no file
                    matches *.csv
                journal: starting: m2 was dead-lettered after 0 attempts [input_missing]
                journal: starting → stopping: nothing is left that waits for it
                m2 hears: given up, data/: no file matches *.csv [input_missing]
                command: stop d/k#1, grace 10 s
            0s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked (its
                    files cannot be brought)
                command: release d/k#1
            0s          send m3 to d/k
                journal: asleep → starting: 1 message to answer
                answer: accepted m3, next
                m3 hears: waking
                command: start d/k#2
            0s          bridge attaches
                command: admit d/k#2, boot 1
                command: list inputs of d/k#2, look 1
            0s          inputs are january
                command: sync d/k#2 to january+0
            0s          files synced january+0
                journal: starting: its files were in place after 0 ms
                command: launch d/k#2
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m3 was handed to the agent, attempt 1
                m3 hears: delivered, attempt 1
                command: deliver m3.1 to d/k#2
            d/k awake, generation 2
              m1 dead [input_missing]
              m2 dead [input_missing]
              m3 with the agent
        "#]],
    );
}

#[test]
fn a_restore_that_fails_starts_no_agent_takes_no_checkpoint_and_loses_no_message() {
    check(
        r#"agent d: files inputs
           given send m1 to d/k · bridge attaches · inputs are january
           checkpoint offered lineage 0 uploads 0
           sync january+0 fails "data/a.csv: the store does not answer", retryable
           checkpoint offered lineage 0 uploads 0
           agent exits with 0, asked by daemon
           bridge attaches · inputs are january · files synced january+0
           checkpoint offered lineage 0 uploads 0"#,
        expect![[r#"
            0s          checkpoint offered lineage 0 uploads 0
                answer: refused, the workspace is not known to be whole
            0s          sync january+0 fails "data/a.csv: the store does not answer", retryable
                journal: starting → stopping: its files are not in place [sync_failed]:
                    data/a.csv: the store does not answer
                command: stop d/k#1, grace 10 s
            0s          checkpoint offered lineage 0 uploads 0
                answer: refused, the workspace is not known to be whole
            0s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked (its
                    files could not be brought) [sync_failed]
                journal: asleep → starting: 1 message to answer
                m1 hears: waking
                command: release d/k#1
                command: start d/k#2
            0s          bridge attaches
                command: admit d/k#2, boot 1
                command: list inputs of d/k#2, look 1
            0s          inputs are january
                command: sync d/k#2 to january+0
            0s          files synced january+0
                journal: starting: its files were in place after 0 ms
                command: launch d/k#2
            0s          checkpoint offered lineage 0 uploads 0
                journal: starting: checkpoint 1 of its workspace was taken (2 files, 10
                    bytes)
                answer: is checkpoint 1
            d/k starting, generation 2, failures 1
              m1 pending
        "#]],
    );
}

#[test]
fn trouble_between_two_turns_pauses_the_message_and_counts_no_attempt() {
    check(
        r#"agent d: files inputs, attempts 1
           given send m1 to d/k · bridge attaches · inputs are january · files synced january+0
           given ready · agent answers m1 "done" · send m2 to d/k
           inputs cannot be listed "the store does not answer"
           +1s100ms
           inputs cannot be listed "the store does not answer"
           +5s
           inputs are january
           agent answers m2 "done""#,
        expect![[r#"
            0s          inputs cannot be listed "the store does not answer"
                journal: awake: its files are not in place [sync_failed]: the store does not
                    answer; it will be tried again
                m2 hears: the files that the agent needs could not be brought to it; attempt
                    1 is due in 1s30ms [sync_failed]
            0s          +1s100ms
            1s30ms      …
                command: list inputs of d/k#1, look 3
            1s100ms     inputs cannot be listed "the store does not answer"
                journal: awake: its files are not in place [sync_failed]: the store does not
                    answer; it will be tried again
                m2 hears: the files that the agent needs could not be brought to it; attempt
                    1 is due in 4s [sync_failed]
            1s100ms     +5s
            5s100ms     …
                command: list inputs of d/k#1, look 4
            6s100ms     inputs are january
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to d/k#1
            6s100ms     agent answers m2 "done"
                journal: awake: m2 was answered in 0 ms (4 bytes)
                m2 hears: the answer of 1, "done"
                command: acknowledge m2.1 to d/k#1
            d/k awake, generation 1
              m1 answered "done"
              m2 answered "done"
        "#]],
    );
}

#[test]
fn a_store_that_never_answers_is_given_up_and_asked_again() {
    check(
        r#"agent d: files inputs
           given send m1 to d/k · bridge attaches · inputs are january · files synced january+0
           given ready · agent answers m1 "done" · send m2 to d/k
           +7m
           inputs are february
           files synced february+0"#,
        expect![[r#"
            0s          +7m
            6m          …
                journal: awake: its files are not in place [sync_failed]: nothing was heard
                    of the files for too long; it will be tried again
                m2 hears: the files that the agent needs could not be brought to it; attempt
                    1 is due in 1s30ms [sync_failed]
            6m1s30ms    …
                command: list inputs of d/k#1, look 3
            7m          inputs are february
                command: sync d/k#1 to february+0
            7m          files synced february+0
                journal: awake: its files were in place after 0 ms
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to d/k#1
            d/k awake, generation 1
              m1 answered "done"
              m2 with the agent
        "#]],
    );
}

#[test]
fn a_line_that_breaks_during_a_long_sync_ends_no_life() {
    check(
        r#"agent d: files inputs, ready 1m
           send m1 to d/k
           bridge attaches
           inputs are january
           +50s
           files come 3 of 1500
           +50s
           files come 900 of 1500
           bridge detaches
           +5s
           bridge attaches
           inputs are january
           files synced january+0"#,
        expect![[r#"
            0s          send m1 to d/k
                journal: asleep → starting: 1 message to answer
                answer: accepted m1, next
                m1 hears: waking
                command: start d/k#1
            0s          bridge attaches
                command: admit d/k#1, boot 1
                command: list inputs of d/k#1, look 1
            0s          inputs are january
                command: sync d/k#1 to january+0
            0s          +50s
            50s         files come 3 of 1500
                m1 hears: its files come, 3 of 1500
            50s         +50s
            1m40s       files come 900 of 1500
                m1 hears: its files come, 900 of 1500
            1m40s       bridge detaches
            1m40s       +5s
            1m45s       bridge attaches
                command: admit d/k#1, boot 1
                command: list inputs of d/k#1, look 2
            1m45s       inputs are january
                command: sync d/k#1 to january+0
            1m45s       files synced january+0
                journal: starting: its files were in place after 0 ms
                command: launch d/k#1
            d/k starting, generation 1
              m1 pending
        "#]],
    );
}

#[test]
fn what_is_attached_to_a_message_is_there_at_its_turn_and_only_if_it_was_accepted() {
    check(
        r#"agent d: files inputs
           given send m1 to d/k · bridge attaches · inputs are january · files synced january+0
           given ready · agent answers m1 "done"
           send m2 to d/k with a.csv with b.csv key k1
           inputs are january
           files synced january+2
           send m3 to d/k with a.csv with b.csv key k1
           agent answers m2 "done""#,
        expect![[r#"
            0s          send m2 to d/k with a.csv with b.csv key k1
                journal: awake: tom put a.csv
                journal: awake: tom put b.csv
                answer: accepted m2, next
                command: list inputs of d/k#1, look 2
            0s          inputs are january
                command: sync d/k#1 to january+2
            0s          files synced january+2
                journal: awake: its files were in place after 0 ms
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to d/k#1
            0s          send m3 to d/k with a.csv with b.csv key k1
                answer: was accepted before, as m2
            0s          agent answers m2 "done"
                journal: awake: m2 was answered in 0 ms (4 bytes)
                m2 hears: the answer of 1, "done"
                command: acknowledge m2.1 to d/k#1
            d/k awake, generation 1
              m1 answered "done"
              m2 answered "done"
        "#]],
    );
}

#[test]
fn an_upload_is_there_for_the_next_turn_and_one_that_comes_meanwhile_is_waited_for() {
    check(
        r#"agent c: files kept
           put a.csv into c/k
           send m1 to c/k
           bridge attaches
           put b.csv into c/k
           files synced nothing+1
           files synced nothing+2
           ready
           delete a.csv of c/k
           agent answers m1 "two files"
           send m2 to c/k
           files synced nothing+3"#,
        expect![[r#"
            0s          put a.csv into c/k
                journal: asleep: tom put a.csv
                answer: will be there, upload 1
            0s          send m1 to c/k
                journal: asleep → starting: 1 message to answer
                answer: accepted m1, next
                m1 hears: waking
                command: start c/k#1
            0s          bridge attaches
                command: admit c/k#1, boot 1
                command: sync c/k#1 to nothing+1
            0s          put b.csv into c/k
                journal: starting: tom put b.csv
                answer: will be there, upload 2
            0s          files synced nothing+1
                journal: starting: its files were in place after 0 ms
                command: sync c/k#1 to nothing+2
            0s          files synced nothing+2
                journal: starting: its files were in place after 0 ms
                command: launch c/k#1
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to c/k#1
            0s          delete a.csv of c/k
                journal: awake: tom deleted a.csv
                answer: will be there, upload 3
            0s          agent answers m1 "two files"
                journal: awake: m1 was answered in 0 ms (9 bytes)
                m1 hears: the answer of 1, "two files"
                command: acknowledge m1.1 to c/k#1
            0s          send m2 to c/k
                answer: accepted m2, next
                command: sync c/k#1 to nothing+3
            0s          files synced nothing+3
                journal: awake: its files were in place after 0 ms
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to c/k#1
            c/k awake, generation 1
              m1 answered "two files"
              m2 with the agent
        "#]],
    );
}

#[test]
fn a_restore_makes_another_workspace_and_the_old_one_may_not_overwrite_it() {
    check(
        r#"agent c: files kept
           given send m1 to c/k · bridge attaches · files synced nothing+0 · ready
           checkpoint offered lineage 0 uploads 0
           agent answers m1 "done"
           checkpoint offered lineage 0 uploads 0
           restore c/k to 3
           restore c/k to 1
           checkpoint offered lineage 0 uploads 0
           agent exits with 0, asked by daemon
           bridge attaches
           checkpoint offered lineage 0 uploads 0 from c/k#1
           files synced nothing+0
           checkpoint offered lineage 1 uploads 0"#,
        expect![[r#"
            0s          checkpoint offered lineage 0 uploads 0
                journal: awake: checkpoint 1 of its workspace was taken (2 files, 10 bytes)
                answer: is checkpoint 1
            0s          agent answers m1 "done"
                journal: awake: m1 was answered in 0 ms (4 bytes)
                m1 hears: the answer of 1, "done"
                command: acknowledge m1.1 to c/k#1
            0s          checkpoint offered lineage 0 uploads 0
                journal: awake: checkpoint 2 of its workspace was taken (2 files, 10 bytes)
                answer: is checkpoint 2
            0s          restore c/k to 3
                answer: denied, there is no such checkpoint
            0s          restore c/k to 1
                journal: awake → stopping: ops asked for its files as they were in checkpoint
                    1
                answer: accepted, 0 waiting
                command: stop c/k#1, grace 10 s
            0s          checkpoint offered lineage 0 uploads 0
                answer: refused, the workspace is to be another one
            0s          agent exits with 0, asked by daemon
                journal: stopping → asleep: the agent ended with exit code 0, as asked
                    (restart)
                journal: asleep → starting: it was asked for
                command: release c/k#1
                command: start c/k#2
            0s          bridge attaches
                command: admit c/k#2, boot 1
                command: sync c/k#2 to nothing+0
            0s          checkpoint offered lineage 0 uploads 0 from c/k#1
                answer: refused, its life is over
                counted as stale: 1
            0s          files synced nothing+0
                journal: starting: its files were in place after 0 ms
                command: launch c/k#2
            0s          checkpoint offered lineage 1 uploads 0
                journal: starting: checkpoint 3 of its workspace was taken (2 files, 10
                    bytes)
                answer: is checkpoint 3
            c/k starting, generation 2
              m1 answered "done"
        "#]],
    );
}

#[test]
fn a_daemon_that_comes_back_asks_again_what_the_workspace_holds() {
    check(
        r#"agent c: files kept
           given put a.csv into c/k · send m1 to c/k · bridge attaches · files synced nothing+1
           given ready · agent answers m1 "done"
           the daemon dies and comes back
           bridge attaches ready
           send m2 to c/k
           files synced nothing+1
           agent answers m2 "done""#,
        expect![[r#"
            0s          the daemon dies and comes back
                journal: awake: the daemon came back and found 0 messages waiting
            0s          bridge attaches ready
                command: admit c/k#1, boot 1
            0s          send m2 to c/k
                answer: accepted m2, next
                command: sync c/k#1 to nothing+1
            0s          files synced nothing+1
                journal: awake: its files were in place after 0 ms
                journal: awake: m2 was handed to the agent, attempt 1
                m2 hears: delivered, attempt 1
                command: deliver m2.1 to c/k#1
            0s          agent answers m2 "done"
                journal: awake: m2 was answered in 0 ms (4 bytes)
                m2 hears: the answer of 1, "done"
                command: acknowledge m2.1 to c/k#1
            c/k awake, generation 1
              m1 answered "done"
              m2 answered "done"
        "#]],
    );
}

#[test]
fn inputs_that_are_declared_again_are_looked_at_before_the_turn() {
    check(
        r#"agent d: files inputs
           given put a.csv into d/k
           given send m1 to d/k · bridge attaches · config without d
           bridge detaches
           bridge attaches
           config with d
           files synced nothing+1
           inputs are january
           files synced january+1
           ready"#,
        expect![[r#"
            0s          bridge detaches
            0s          bridge attaches
                command: admit d/k#1, boot 1
                command: sync d/k#1 to nothing+1
            0s          config with d
                answer: is in force
            0s          files synced nothing+1
                journal: starting: its files were in place after 0 ms
                command: list inputs of d/k#1, look 2
            0s          inputs are january
                command: sync d/k#1 to january+1
            0s          files synced january+1
                journal: starting: its files were in place after 0 ms
                command: launch d/k#1
            0s          ready
                journal: starting → awake: the agent was ready after 0 ms
                journal: awake: m1 was handed to the agent, attempt 1
                m1 hears: delivered, attempt 1
                command: deliver m1.1 to d/k#1
            d/k awake, generation 1
              m1 with the agent
        "#]],
    );
}

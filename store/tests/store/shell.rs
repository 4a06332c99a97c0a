//! An operator with nothing but the sqlite3 shell: the database explains itself.

use std::path::Path;
use std::process::Command;

use dormouse_core::command::Write;
use dormouse_core::journal::Because;
use rusqlite::Connection;

use crate::support::*;

/// What the shell prints, columns separated by `|`; by a plain connection where there is no shell.
fn shell(folder: &Path, sql: &str) -> String {
    let path = folder.join("dormouse.db");
    match Command::new("sqlite3").arg("-readonly").arg(&path).arg(sql).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        }
        Err(_no_shell) => by_connection(&path, sql),
    }
}

fn by_connection(path: &Path, sql: &str) -> String {
    let connection = Connection::open(path).unwrap();
    let mut statement = connection.prepare(sql).unwrap();
    let columns = statement.column_count();
    let mut rows = statement.query([]).unwrap();
    let mut printed = String::new();
    while let Some(row) = rows.next().unwrap() {
        let value = |place| match row.get::<_, rusqlite::types::Value>(place).unwrap() {
            rusqlite::types::Value::Null => String::new(),
            rusqlite::types::Value::Integer(number) => number.to_string(),
            rusqlite::types::Value::Text(text) => text,
            other => format!("{other:?}"),
        };
        printed.push_str(&(0..columns).map(value).collect::<Vec<_>>().join("|"));
        printed.push('\n');
    }
    printed
}

#[test]
fn ids_states_and_causes_are_words_and_times_can_be_printed() {
    let (folder, mut store) = store_with_session();
    commit(
        &mut store,
        &[
            Write::PutSession(draining("openclaw/tom")),
            Write::InsertMessage(message(1, "python/main", "print(6 * 7)")),
            Write::InsertMessage(message(2, "python/main", "crash")),
            lease(1, 1),
            answer(1, 1, "42"),
            bury(2),
            Write::InsertDecision(decision("python/main", Because::WakeWanted)),
            Write::InsertExit(exit("openclaw/tom", 7)),
        ],
    );
    let print = |sql: &str| shell(folder.path(), sql);
    assert_eq!(
        print("SELECT id, agent, phase, stop, last_failure FROM session WHERE id = 'openclaw/tom'"),
        "openclaw/tom|openclaw|draining|operator_restart|oom_limit\n"
    );
    assert_eq!(
        print("SELECT id, state, attempts, accepted_at, text, reply FROM message_readable LIMIT 1"),
        format!("{}|answered|1|2023-11-14 22:13:20|print(6 * 7)|42\n", message_id(1))
    );
    assert_eq!(
        print("SELECT cause, detail, exit_code FROM message WHERE state = 'dead'"),
        "attempts_exhausted|exit code 134, three times|134\n"
    );
    assert_eq!(
        print("SELECT at, phases, because FROM journal_readable"),
        "2023-11-14 22:13:25|starting > awake|{\"because\":\"wake_wanted\"}\n"
    );
    assert_eq!(
        print("SELECT json_extract(evidence, '$.end.signal'), cause FROM exit"),
        "9|oom_limit\n"
    );
    assert_eq!(
        print("SELECT state, messages FROM tally WHERE messages > 0 ORDER BY state"),
        "answered|1\ndead|1\n"
    );
}

#[test]
fn every_table_says_what_it_is_for() {
    let (folder, _store) = store_with_session();
    let names = shell(
        folder.path(),
        "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') \
         AND name NOT LIKE 'sqlite_%' AND sql NOT LIKE '%-- %' ",
    );
    assert_eq!(names, "", "these have no comment in what .schema prints");
    let tables = shell(
        folder.path(),
        "SELECT group_concat(name, ' ') FROM (SELECT name FROM sqlite_schema \
         WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name)",
    );
    assert_eq!(
        tables,
        "agent_revision api_key checkpoint config exit idempotency idempotency_run journal message \
         message_reply message_text meta rollout session tally upload\n"
    );
}

//! Coming back with a large backlog: what is found, and how fast.

use std::time::{Duration, Instant};

use dormouse_core::command::Write;
use dormouse_core::record::SessionRecord;
use dormouse_core::session::phase::Phase;
use dormouse_store::Store;
use rusqlite::Connection;

use crate::support::*;

#[test]
fn a_hundred_thousand_pending_messages_come_back_in_order_and_soon() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(folder.path()).unwrap();
    let name = |n: u64| format!("python/{}", n % 1_000);
    commit(
        &mut store,
        &(0..1_000).map(|n| Write::PutSession(sleeping(&name(n)))).collect::<Vec<_>>(),
    );
    let ended = 2_000;
    for first in (1..=100_000 + ended).step_by(2_000) {
        let mut batch = store.batch();
        for n in first..first + 2_000 {
            batch.apply(&Write::InsertMessage(message(n, &name(n), "a short text"))).unwrap();
            if n <= ended {
                batch.apply(&bury(n)).unwrap();
            }
        }
        batch.commit().unwrap();
    }
    drop(store);
    let begun = Instant::now();
    let mut store = Store::open(folder.path()).unwrap();
    let live = store.live_sessions().unwrap();
    let took = begun.elapsed();
    assert_eq!(live.len(), 1_000);
    for stored in &live {
        assert_eq!(stored.deliveries.len(), 100);
        assert!(stored.deliveries.is_sorted_by_key(|delivery| delivery.message));
        assert!(stored.deliveries[0].message > message_id(ended));
    }
    // A release build takes a tenth of this; the bound is for a busy machine and a debug build.
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn recovery_and_totals_read_indexes_and_not_the_history() {
    let (folder, mut store) = store_with_session();
    let active = SessionRecord { phase: Phase::Awake, ..sleeping("python/two") };
    commit(&mut store, &[Write::PutSession(active)]);
    let shell = Connection::open(folder.path().join("dormouse.db")).unwrap();
    let plan = |sql: &str| {
        let mut statement = shell.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let lines = statement.query_map([], |row| row.get::<_, String>(3)).unwrap();
        lines.map(Result::unwrap).collect::<Vec<_>>().join("\n")
    };
    for (sql, index) in [
        (
            "SELECT attempts FROM message WHERE ended_at_ms IS NULL ORDER BY seq",
            "USING INDEX message_unended",
        ),
        (
            "SELECT seq, session FROM message WHERE ended_at_ms IS NULL ORDER BY seq",
            "USING COVERING INDEX message_unended",
        ),
        ("SELECT subject FROM session WHERE phase <> 'asleep'", "USING INDEX session_not_asleep"),
        ("SELECT subject FROM session WHERE wake_wanted <> 0", "USING INDEX session_wake_wanted"),
        (
            "SELECT id FROM message m WHERE m.state = 'dead' AND m.dropped_at_ms IS NULL \
             ORDER BY m.seq DESC",
            "USING INDEX message_dead",
        ),
    ] {
        let plan = plan(sql);
        assert!(plan.contains(index), "{sql}\n{plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{sql}\n{plan}");
    }
}

//! Every bound, with the relations between them asserted at compile time.
//!
//! Owner: this file. A bound that users may set has its default in `policy`; what stands here is
//! the hard edge of it.
//! Source: FAULTS.md, "Bad input". A queue refuses at the gate, never at commit.

use std::time::Duration;

pub const AGENT_NAME_BYTES_MAX: usize = 64;
pub const SESSION_KEY_BYTES_MAX: usize = 128;
pub const SUBJECT_BYTES_MAX: usize = 128;
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// One message's text, and with it one HTTP body or WebSocket message.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
pub const QUEUE_MESSAGES_MAX: usize = 1_000;
pub const QUEUE_BYTES_MAX: u64 = 64 << 20;

/// One reply's whole text. A program's longer one is cut by its bridge, a service's ends its turn.
pub const REPLY_BYTES_MAX: usize = 16 << 20;
/// One streamed piece of a reply.
pub const DELTA_BYTES_MAX: usize = 64 << 10;

pub const ATTEMPTS_MAX: u32 = 5;
/// Named holds that one instance may have at a time.
pub const HOLDS_MAX: usize = 64;
pub const HOLD_NAME_BYTES_MAX: usize = 128;
/// The longest that one hold lasts without being renewed.
pub const HOLD_SPAN_MAX: Duration = Duration::from_secs(60 * 60);

/// One workspace, one manifest.
pub const FILES_MAX: usize = 100_000;
pub const FILES_BYTES_MAX: u64 = 10 << 30;
pub const PATH_BYTES_MAX: usize = 4_096;
pub const NAME_BYTES_MAX: usize = 255;
pub const ETAG_BYTES_MAX: usize = 256;

/// An agent that runs another revision than it is to is stopped after so much idleness, whatever
/// its own limit: a pause in a conversation.
pub const OUTDATED_STOP_AFTER: Duration = Duration::from_secs(30);

/// Without a word of the files for this long, the sync is over.
pub const FILES_SILENT_WITHIN: Duration = Duration::from_secs(6 * 60);

/// Log lines kept with an exit, so that they are there when the logs are gone.
pub const LOG_TAIL_BYTES_MAX: usize = 16 << 10;
/// Journal rows kept per session; older ones go first.
pub const JOURNAL_ROWS_PER_SESSION: u64 = 1_000;
/// How long an idempotency key is remembered (FAULTS I4: at least 24 h).
pub const IDEMPOTENCY_WINDOW: Duration = Duration::from_secs(25 * 60 * 60);

/// A bridge that comes back says again which holds last; an idle stop leaves it this long for that.
pub const HOLDS_RETOLD_WITHIN: Duration = Duration::from_secs(10);

/// How long after the stop grace the bridge may take to report before the driver kills everything.
pub const STOP_REPORT_MARGIN: Duration = Duration::from_secs(5);
/// How often a kill whose exit was not confirmed is repeated.
pub const KILL_REPEAT_AFTER: Duration = Duration::from_secs(10);

const _: () = assert!(MESSAGE_BYTES_MAX as u64 <= QUEUE_BYTES_MAX);
const _: () = assert!(DELTA_BYTES_MAX <= REPLY_BYTES_MAX);
const _: () = assert!(LOG_TAIL_BYTES_MAX < MESSAGE_BYTES_MAX);
const _: () = assert!(ATTEMPTS_MAX >= 1);

//! Names of things: agents, sessions, generations, messages, turns, subjects.
//!
//! Owner: whoever parses outside input makes these; from then on the type is the proof that the
//! text is well formed.
//! Invariant: `parse(x.to_string()) == x` for every id. Ids are ASCII, so Unicode look-alikes
//! cannot collide.
//! Absent: minting. Message ids come from the engine, boot ids from the bridge.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits;

/// Why a text is not an id. The words go to the user as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error(
        "an agent name has 1 to {max} characters of a-z, 0-9, '-' and '_', \
         and starts with a letter or digit",
        max = limits::AGENT_NAME_BYTES_MAX
    )]
    AgentName,
    #[error(
        "a session key has 1 to {max} characters of A-Z, a-z, 0-9, '_', '.', ':' and '-'",
        max = limits::SESSION_KEY_BYTES_MAX
    )]
    SessionKey,
    #[error("a session is written AGENT/KEY, for example python/main")]
    SessionShape,
    #[error(
        "a subject has 1 to {max} characters of A-Z, a-z, 0-9, '_', '.', ':', '@' and '-'",
        max = limits::SUBJECT_BYTES_MAX
    )]
    Subject,
    #[error("a message id is msg_ and 32 hexadecimal digits")]
    MessageId,
    #[error("a turn id is a message id, a dot and the attempt, for example msg_….1")]
    TurnId,
    #[error("a boot id is 32 hexadecimal digits")]
    BootId,
}

/// Text newtypes that are validated once and serialised as plain strings.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $valid:path, $error:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// Checks `text` and makes the id, or says what the id may consist of.
            pub fn new(text: &str) -> Result<Self, IdError> {
                if $valid(text) { Ok(Self(text.into())) } else { Err($error) }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }
    };
}

text_id!(
    /// The name of an agent in the config.
    AgentName,
    agent_name_is_valid,
    IdError::AgentName
);
text_id!(
    /// Who a key belongs to; a session belongs to the subject that first wrote to it.
    Subject,
    subject_is_valid,
    IdError::Subject
);
text_id!(
    /// One conversation partner of one agent: `agent/key`. Never used as a path without hashing.
    SessionId,
    session_id_is_valid,
    IdError::SessionShape
);

impl SessionId {
    pub fn of(agent: &AgentName, key: &str) -> Result<Self, IdError> {
        if !session_key_is_valid(key) {
            return Err(IdError::SessionKey);
        }
        Ok(Self(format!("{agent}/{key}").into()))
    }

    /// The agent's name: everything before the slash.
    pub fn agent(&self) -> &str {
        self.halves().0
    }

    /// The session's key: everything after the slash.
    pub fn key(&self) -> &str {
        self.halves().1
    }

    pub fn agent_name(&self) -> AgentName {
        AgentName(self.agent().into())
    }

    fn halves(&self) -> (&str, &str) {
        self.0.split_once('/').expect("a SessionId is only made with one slash in it")
    }
}

fn agent_name_is_valid(text: &str) -> bool {
    let first_is_plain = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    first_is_plain
        && text.len() <= limits::AGENT_NAME_BYTES_MAX
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

fn session_key_is_valid(text: &str) -> bool {
    (1..=limits::SESSION_KEY_BYTES_MAX).contains(&text.len())
        && text.bytes().all(
            |b| matches!(b, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b':' | b'-'),
        )
}

fn session_id_is_valid(text: &str) -> bool {
    text.split_once('/')
        .is_some_and(|(agent, key)| agent_name_is_valid(agent) && session_key_is_valid(key))
}

fn subject_is_valid(text: &str) -> bool {
    (1..=limits::SUBJECT_BYTES_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'@' | b'-'))
}

/// The number of a start of a session's agent: the fencing token. Strictly increasing per session,
/// from 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("a session is not started 2^64 times"))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a revision of an agent: what starts get of its settings. From 1, per agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RevisionNumber(pub u64);

impl RevisionNumber {
    pub const FIRST: Self = Self(1);
}

impl fmt::Display for RevisionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One life of a session's agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceId {
    pub session: SessionId,
    pub generation: Generation,
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.session, self.generation)
    }
}

/// An accepted message. Ordered as accepted: the upper bits are the engine's clock, made strictly
/// increasing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MessageId(pub u128);

const MESSAGE_PREFIX: &str = "msg_";

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MESSAGE_PREFIX}{:032x}", self.0)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MessageId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let digits = text.strip_prefix(MESSAGE_PREFIX).ok_or(IdError::MessageId)?;
        parse_hex_128(digits).map(Self).ok_or(IdError::MessageId)
    }
}

impl TryFrom<String> for MessageId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<MessageId> for String {
    fn from(id: MessageId) -> String {
        id.to_string()
    }
}

/// One try of one message. The bridge executes a turn id once and answers a repeat with the kept
/// result.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TurnId {
    pub message: MessageId,
    /// From 1; on disk before the turn's first byte reaches an agent.
    pub attempt: u32,
}

impl fmt::Display for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.message, self.attempt)
    }
}

impl fmt::Debug for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TurnId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let (message, attempt) = text.split_once('.').ok_or(IdError::TurnId)?;
        let attempt_is_plain =
            attempt.bytes().all(|b| b.is_ascii_digit()) && !attempt.starts_with('0');
        let attempt = attempt.parse().map_err(|_| IdError::TurnId)?;
        if !attempt_is_plain {
            return Err(IdError::TurnId);
        }
        Ok(Self { message: message.parse().map_err(|_| IdError::TurnId)?, attempt })
    }
}

impl TryFrom<String> for TurnId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<TurnId> for String {
    fn from(id: TurnId) -> String {
        id.to_string()
    }
}

/// One process life of a bridge; tells two bridges of one generation apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootId(pub u128);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for BootId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        parse_hex_128(&text).map(Self).ok_or(IdError::BootId)
    }
}

impl From<BootId> for String {
    fn from(id: BootId) -> String {
        id.to_string()
    }
}

/// Exactly 32 lower-case hexadecimal digits, so that an id has one spelling.
fn parse_hex_128(text: &str) -> Option<u128> {
    let well_formed =
        text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if well_formed { u128::from_str_radix(text, 16).ok() } else { None }
}

/// Ties an answer to the request that asked for it. Lives in memory only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_ids_split_at_the_slash_and_print_as_they_were_written() {
        let id: SessionId = "python/tom.o:1".parse().unwrap();
        assert_eq!((id.agent(), id.key()), ("python", "tom.o:1"));
        assert_eq!(id.to_string(), "python/tom.o:1");
    }

    #[test]
    fn hostile_session_ids_are_refused() {
        let long = format!("a/{}", "k".repeat(129));
        for text in [
            "",
            "python",
            "/k",
            "python/",
            "py thon/k",
            "a/b/c",
            "a/\u{e9}",
            "A/k",
            "-a/k",
            "a/k\0",
            &long,
        ] {
            assert!(text.parse::<SessionId>().is_err(), "{text:?} was taken");
        }
        assert!(format!("a/{}", "k".repeat(128)).parse::<SessionId>().is_ok());
    }

    #[test]
    fn message_and_turn_ids_round_trip_and_have_one_spelling() {
        let turn = TurnId { message: MessageId(0x0192_abcd), attempt: 3 };
        assert_eq!(turn.to_string().parse::<TurnId>().unwrap(), turn);
        let upper = turn.to_string().replace("abcd", "ABCD");
        assert!(upper.parse::<TurnId>().is_err());
        for text in ["msg_1.1", "msg_", "", ".1"] {
            assert!(text.parse::<TurnId>().is_err(), "{text:?} was taken");
        }
        let padded = format!("{}.01", turn.message);
        assert!(padded.parse::<TurnId>().is_err());
    }
}

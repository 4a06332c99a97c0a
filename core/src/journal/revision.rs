//! What a session's journal says of its agent's revisions.
//!
//! Owner: `session::revision` writes it. Absent: the standing of a revision (`rollout`).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::id::RevisionNumber;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum RevisionChange {
    /// This start is the trial of it.
    Tried {
        revision: RevisionNumber,
    },
    Proved {
        revision: RevisionNumber,
    },
    /// Nobody else gets it; this session goes on with the last good one.
    Failed {
        revision: RevisionNumber,
        cause: Cause,
        detail: String,
    },
    /// The session ran it, and is to run another one.
    Outdated {
        revision: RevisionNumber,
    },
}

impl fmt::Display for RevisionChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RevisionChange::Tried { revision } => {
                write!(f, "it tries revision {revision}, which nobody had before")
            }
            RevisionChange::Proved { revision } => write!(f, "revision {revision} is good"),
            RevisionChange::Failed { revision, cause, detail } => {
                write!(f, "revision {revision} is bad, and is not used: {detail} [{cause}]")
            }
            RevisionChange::Outdated { revision } => {
                write!(f, "it runs revision {revision}, and another one is in force")
            }
        }
    }
}

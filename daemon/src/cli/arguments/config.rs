//! `config …` as types.
//!
//! Absent: what the commands do.

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;

use crate::config::units::parse_span;

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether a config is right; if not, where, and what was probably meant. Needs no daemon.
    ///
    /// Exit codes: 0 right, 2 wrong, 10 not readable. Example: dormouse config check new.toml
    Check {
        /// The file [default: --config, else dormouse.toml beside you, else the built-in one]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Show what a config would change, when each change comes into force, and whom it interrupts.
    ///
    /// Nothing is applied. Values of `env` and of headers are not shown, only that they change.
    /// Example: dormouse config plan
    Plan {
        /// The new file [default: --config, else the daemon's file as it is now]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// The file that it would follow; needs no daemon [default: what the daemon has in force]
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// End with code 11 if there are changes, and with 0 only if there are none.
        #[arg(long)]
        exit_code: bool,
    },
    /// Put the daemon's config file, as it is now, into force.
    ///
    /// The daemon does so by itself when the file has changed, unless a change needs a restart of
    /// the daemon: then a new process of this program reads the file and takes over, as with
    /// `dormouse upgrade`. No request fails, no turn ends, agents that are awake go on. If the
    /// file is wrong, the old config stays in force. A change of an agent is tried by one session
    /// first; `dormouse agents` tells how it stands.
    Apply {
        /// Only if this config is in force now; `dormouse config history` has the numbers.
        #[arg(long, value_name = "NUMBER")]
        base: Option<u64>,
        /// How long a new process may take until it serves, where one is needed.
        #[arg(long, value_name = "TIME", value_parser = parse_span, default_value = "30s")]
        within: Duration,
    },
    /// List the configs that were in force, or print one of them.
    ///
    /// Example: dormouse config history 3 > dormouse.toml
    History {
        /// Print this one as it was written.
        #[arg(value_name = "NUMBER")]
        number: Option<u64>,
    },
    /// Write an earlier config back to the daemon's file, and put it into force.
    Rollback {
        /// Which one [default: the one before]
        #[arg(value_name = "NUMBER")]
        number: Option<u64>,
        /// Only if this config is in force now.
        #[arg(long, value_name = "NUMBER")]
        base: Option<u64>,
        /// How long a new process may take until it serves, where one is needed.
        #[arg(long, value_name = "TIME", value_parser = parse_span, default_value = "30s")]
        within: Duration,
    },
    /// List every setting with its default and its effect; with --json, the JSON schema of the
    /// file.
    ///
    /// Example: dormouse config schema --json > dormouse.schema.json
    Schema,
}

impl ConfigCommand {
    pub(crate) fn needs_daemon(&self) -> bool {
        match self {
            ConfigCommand::Plan { from, .. } => from.is_none(),
            ConfigCommand::Apply { .. }
            | ConfigCommand::History { .. }
            | ConfigCommand::Rollback { .. } => true,
            ConfigCommand::Check { .. } | ConfigCommand::Schema => false,
        }
    }
}

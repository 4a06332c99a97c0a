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
    /// Example: dormouse config plan new.toml --from dormouse.toml
    Plan {
        /// The new file [default: --config, else dormouse.toml beside you, else the built-in one]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
        /// The file that it would follow [default: the built-in one]
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// End with code 11 if there are changes, and with 0 only if there are none.
        #[arg(long)]
        exit_code: bool,
    },
    /// Put the daemon's config file, as it is now, into force.
    ///
    /// A new process of this program reads it and takes over, as with `dormouse upgrade`: no
    /// request fails, no turn ends, agents that are awake go on. If the file is wrong, the old
    /// config stays in force. A change of an agent is tried by one session first; `dormouse
    /// agents` tells how it stands.
    Apply {
        /// How long the new process may take until it serves.
        #[arg(long, value_name = "TIME", value_parser = parse_span, default_value = "30s")]
        within: Duration,
    },
    /// List every setting with its default and its effect; with --json, the JSON schema of the
    /// file.
    ///
    /// Example: dormouse config schema --json > dormouse.schema.json
    Schema,
}

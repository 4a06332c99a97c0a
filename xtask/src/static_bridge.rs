//! `cargo xtask bridge`: the bridge as one file that runs in an empty root.
//!
//! Owner: this file. Invariants: success is printed only after the ELF file was read and found
//! static; the build has a target folder of its own, for its flags would rebuild everything else.
//! Absent: musl. With glibc, names are not resolved in an empty root; the bridge dials addresses.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::elf::{ElfError, Linkage, linkage};
use crate::process::RunError;
use crate::toolchain::{ToolchainError, cargo, host_triple, target_folder};
use crate::{CommandResult, UsageError, root, terminal};

const BINARY: &str = "dormouse-bridge";
const BUILD_LIMIT: Duration = Duration::from_secs(1_200);

#[derive(Debug, thiserror::Error)]
pub(crate) enum StaticBridgeError {
    #[error("cannot find out what to build for")]
    Host(#[source] ToolchainError),
    #[error("cannot build the bridge")]
    Build(#[source] RunError),
    #[error("the bridge does not build: see the compiler's words above")]
    BuildFailed,
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot inspect {}", path.display())]
    Inspect { path: PathBuf, source: ElfError },
    #[error(
        "{} is not static ({linkage:?}): look for a dependency that links a shared library",
        path.display()
    )]
    Dynamic { path: PathBuf, linkage: Linkage },
}

pub(crate) fn command(arguments: &[String]) -> CommandResult {
    if let Some(unknown) = arguments.first() {
        return Err(UsageError::new("bridge", format!("bridge takes no {unknown:?}")).into());
    }
    let path = build()?;
    let size = fs::metadata(&path)?.len();
    terminal::say(&format!("{}: static, {size} bytes", path.display()));
    Ok(ExitCode::SUCCESS)
}

/// Where it is once it is built.
pub(crate) fn path() -> Result<PathBuf, StaticBridgeError> {
    let host = host_triple().map_err(StaticBridgeError::Host)?;
    Ok(target_folder(&root()).join("static").join(host).join("release").join(BINARY))
}

/// Builds it and gives its path once it is proven static.
pub(crate) fn build() -> Result<PathBuf, StaticBridgeError> {
    let host = host_triple().map_err(StaticBridgeError::Host)?;
    let folder = target_folder(&root()).join("static");
    let folder_name = folder.to_string_lossy().into_owned();
    let arguments = ["build", "--release", "--locked", "--package", BINARY, "--bin", BINARY];
    // With a target named, the flags reach the bridge and not the build scripts on its way.
    let target = ["--target", &host, "--target-dir", &folder_name];
    let build = cargo(&[&arguments[..], &target[..]].concat())
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .limit(BUILD_LIMIT);
    let status = build.run(&mut |_| ()).map_err(StaticBridgeError::Build)?;
    if !status.success() {
        return Err(StaticBridgeError::BuildFailed);
    }
    let path = path()?;
    let file = match fs::read(&path) {
        Ok(file) => file,
        Err(source) => return Err(StaticBridgeError::Read { path, source }),
    };
    match linkage(&file) {
        Ok(linkage) if linkage.is_static() => Ok(path),
        Ok(linkage) => Err(StaticBridgeError::Dynamic { path, linkage }),
        Err(source) => Err(StaticBridgeError::Inspect { path, source }),
    }
}

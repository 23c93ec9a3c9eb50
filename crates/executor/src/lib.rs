//! What runs inside a sandbox, in any image: two roles of one static program.
//!
//! - `init` is the first process of the container (design 6.1).
//! - `daemon` is the API on port 49983 that clients of the sandbox talk to (contract/executor.md).

mod daemon;
mod init;

use std::process::ExitCode;

const USAGE: &str = "usage: executor init|daemon --instance <32 hex digits> \
    --control-key <64 hex digits> [--interpreter] [--workspace (init only)]";

/// Plays the role that the first argument after the program's name says. Returns when the process should end.
pub fn run(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    match arguments.next().as_deref() {
        Some("init") => init::run(arguments),
        Some("daemon") => daemon::run(arguments),
        other => {
            let given = other.map_or_else(|| "no role".to_owned(), |role| format!("role '{role}'"));
            eprintln!("sandyard-executor: {given}; {USAGE}");
            ExitCode::FAILURE
        }
    }
}

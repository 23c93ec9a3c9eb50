//! The program in every sandbox; all it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    sandyard_executor::run(std::env::args().skip(1))
}

//! The `tidegate` program: hands the command line to the library and turns what stops it into a message and an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    match tidegate::cli::run_command_line() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tidegate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

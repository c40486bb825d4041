//! The `tidegate` program: hands the command line to the library and turns what stops it into a message and an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Init starts its children by descriptor, whose number the kernel would show as their name.
    let _ = nix::sys::prctl::set_name(c"tidegate");
    match tidegate::cli::run_command_line() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tidegate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

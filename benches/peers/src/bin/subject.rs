//! One subject under one load.

fn main() -> std::process::ExitCode {
    peers::subject::main()
}

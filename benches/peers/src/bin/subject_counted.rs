//! One subject under one load, with its allocations counted.

#[global_allocator]
static COUNTING: peers::counting::Counting = peers::counting::Counting;

fn main() -> std::process::ExitCode {
    peers::subject::main()
}

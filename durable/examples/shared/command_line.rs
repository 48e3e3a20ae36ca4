//! How a command line is read, and refused in one line.

use anyhow::bail;
use clap::Parser;
use clap::error::ErrorKind;

/// The records that come with this repository.
pub(crate) const FLIGHTS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/flights.csv");

/// Reads the command line. Gives nothing if it only asked for help, which is printed.
pub(crate) fn read<P: Parser>() -> anyhow::Result<Option<P>> {
    match P::try_parse() {
        Ok(options) => Ok(Some(options)),
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            error.print()?;
            Ok(None)
        }
        Err(error) => {
            // Up to the first empty line it says what is wrong, then how it would be right.
            let text = error.to_string();
            let lines = text.lines().take_while(|line| !line.is_empty());
            let lines: Vec<_> = lines.map(str::trim).collect();
            bail!("{}", lines.join(" ").trim_start_matches("error: "))
        }
    }
}

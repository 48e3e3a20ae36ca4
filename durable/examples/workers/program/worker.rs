//! A worker: does jobs until the parent has no more, or until it is killed.

use std::io;

use microbatch_durable::CancellationToken;

use super::engine::{Engine, Place};
use super::message::Message;
use super::stop::stop_with_parent;

pub(crate) fn run<E: Engine>() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        let mut line = String::new();
        io::stdin().read_line(&mut line)?;
        let place: Place = serde_json::from_str(&line)?;
        // From then on the end of the input says to stop.
        let stop = CancellationToken::new();
        stop_with_parent(&stop);
        E::work(&place, stop).await
    });
    if let Err(error) = outcome {
        // The parent says it.
        let why = format!("{error:#}");
        Message::Failed { why }.send();
        std::process::exit(1);
    }
    Ok(())
}

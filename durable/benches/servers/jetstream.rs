//! NATS with JetStream: servers as children, in temporary folders.

use std::time::{Duration, Instant};

use async_nats::jetstream::{self, message::PublishMessage, stream};
use microbatch_durable::JetStreamStore;
use microbatch_nats::{HOW_TO_GET, Server, program};

use crate::load::{PAYLOAD, call, next_id};
use crate::table::{Table, drains};
use crate::{Error, Options, progress};

/// Opens the store of a stream: its name, a space, the way to the server.
pub(crate) async fn open(orders: &str) -> Result<JetStreamStore, Error> {
    let (stream, url) = orders.split_once(' ').ok_or("no stream")?;
    Ok(JetStreamStore::builder()
        .stream(stream)
        .connect(url)
        .await?)
}

pub(crate) async fn run(options: &Options) -> Result<(), Error> {
    let Some(program) = program() else {
        println!("left out: JetStream; {HOW_TO_GET}");
        return Ok(());
    };
    let (major, minor, patch) = program.version;
    println!("\n## NATS {major}.{minor}.{patch}, JetStream on one server\n");
    let time = Duration::from_secs_f64(options.seconds);
    let server = Server::start(&program, microbatch_nats::Options::default())?;
    let url = server.url();
    appends(&url, time).await?;
    drains("nats", &url, open, options.drain).await?;
    drop(server);

    if (major, minor) < (2, 10) {
        println!("\nleft out: `sync_interval: always`, which this server does not know");
        return Ok(());
    }
    println!("\nWith `sync_interval: always`, where each message is synced by itself:\n");
    let sync_always = microbatch_nats::Options {
        sync_always: true,
        ..Default::default()
    };
    let server = Server::start(&program, sync_always)?;
    appends(&server.url(), time).await
}

async fn appends(url: &str, time: Duration) -> Result<(), Error> {
    let mut table = Table::begin();
    let by_hand = by_hand(url, 256, time).await?;
    table.row("256 callers, each publishes and awaits, by hand", by_hand);
    progress("256 callers");
    let (rate, batch) = call(&open(&format!("calls {url}")).await?, 256, time).await?;
    table.row(&format!("256 callers, {batch:.0} jobs an append"), rate);
    Ok(())
}

/// What one would write without this crate: callers who publish with a message id, and await
/// the acknowledgement, into a work queue in a file.
async fn by_hand(url: &str, callers: usize, time: Duration) -> Result<f64, Error> {
    progress("by hand");
    let context = jetstream::new(async_nats::connect(url).await?);
    context
        .create_stream(stream::Config {
            name: "by_hand".to_owned(),
            subjects: vec!["by_hand.*".to_owned()],
            retention: stream::RetentionPolicy::WorkQueue,
            storage: stream::StorageType::File,
            ..Default::default()
        })
        .await?;
    let started = Instant::now();
    let caller = |_| {
        let context = context.clone();
        tokio::spawn(async move {
            let mut jobs = 0_u64;
            while started.elapsed() < time {
                let id = next_id();
                let subject = format!("by_hand.{id}");
                let message = PublishMessage::build()
                    .payload(vec![7; PAYLOAD].into())
                    .message_id(id);
                context.send_publish(subject, message).await?.await?;
                jobs += 1;
            }
            Ok::<_, Error>(jobs)
        })
    };
    let callers: Vec<_> = (0..callers).map(caller).collect();
    let mut jobs = 0;
    for caller in callers {
        jobs += caller.await??;
    }
    progress("");
    Ok(jobs as f64 / started.elapsed().as_secs_f64())
}

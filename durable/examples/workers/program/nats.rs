//! The jobs are on a NATS server with JetStream, and the workers write into an SQLite
//! database: a batch is one transaction there, and is settled afterwards. A worker that
//! dies between the two leaves a batch that another writes again: an upsert, so that it
//! does no harm.

use anyhow::Context;
use async_nats::{Client, ConnectOptions, ServerAddr};
use microbatch::BlockingProcessor;
use microbatch_durable::{CancellationToken, Drain, Drained, JetStreamStore, Store};
pub(crate) use microbatch_nats::HOW_TO_GET;
use microbatch_nats::{Options, Program, Server};

use super::database::Database;
use super::engine::{Engine, IN_FLIGHT, Place, report};
use super::flights::Flight;
use super::found::Found;
use super::message::Message;
use super::options::Which;
use super::output::say;

/// The SQLite database, in the folder of the run.
const DATABASE: &str = "flights.db";

pub(crate) fn program() -> Option<Program> {
    microbatch_nats::program()
}

pub(crate) struct Nats;

impl Engine for Nats {
    type Store = JetStreamStore;
    type Server = Server;

    const WHICH: Which = Which::Nats;
    const NAME: &'static str = "NATS";
    const CHECKED: &'static str = "every record is in SQLite, once, as the file has it.";

    fn start() -> anyhow::Result<(Server, String)> {
        let program =
            program().with_context(|| format!("no NATS server is found: {HOW_TO_GET}"))?;
        say("starting a NATS server, in a temporary folder");
        let server = Server::start(&program, Options::default())?;
        let url = server.url();
        Ok((server, url))
    }

    async fn prepare(place: &Place) -> anyhow::Result<JetStreamStore> {
        let store = open(place).await?;
        Database::open(&place.folder.join(DATABASE))?;
        Ok(store)
    }

    async fn work(place: &Place, stop: CancellationToken) -> anyhow::Result<Drained> {
        let store = open(place).await?;
        let path = place.folder.join(DATABASE);
        let sqlite = BlockingProcessor::spawn(
            move || Database::open(&path),
            |database, flights: Vec<Flight>| {
                Message::Begun.send();
                database.store(&flights)?;
                Ok(vec![(); flights.len()])
            },
        )
        .await?;
        let drain = Drain::builder(store.clone(), sqlite)
            .max_batch_size(place.batch_size)
            .max_in_flight(IN_FLIGHT)
            .on_batch(report)
            .build()?;
        let drained = drain.run(stop).await?;
        store.close().await;
        Ok(drained)
    }

    async fn check(place: &Place, flights: &[Flight]) -> anyhow::Result<Found> {
        let database = Database::open(&place.folder.join(DATABASE))?;
        Ok(database.compare(flights)?)
    }

    async fn remove(place: &Place) -> anyhow::Result<()> {
        let jetstream = async_nats::jetstream::new(connect(place).await?);
        for suffix in ["", "_DEAD", "_FREED"] {
            let stream = format!("{}{suffix}", place.name);
            jetstream.delete_stream(stream).await?;
        }
        Ok(())
    }
}

/// The store. It has streams of the run's own.
async fn open(place: &Place) -> anyhow::Result<JetStreamStore> {
    let store = JetStreamStore::builder()
        .stream(&place.name)
        .lease_time(place.lease_time())
        .connect(&place.url)
        .await;
    Ok(store?)
}

/// A connection beside the store's. Of an address the client reads no user by itself.
async fn connect(place: &Place) -> anyhow::Result<Client> {
    let first = place.url.split(',').next().unwrap_or_default();
    let first: ServerAddr = first.trim().parse()?;
    let options = match (first.username(), first.password()) {
        (Some(user), Some(password)) => {
            ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
        }
        _ => ConnectOptions::new(),
    };
    Ok(options.connect(&place.url).await?)
}

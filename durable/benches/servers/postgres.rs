//! PostgreSQL: a server as a child, in a temporary folder.

use std::time::{Duration, Instant};

use microbatch_durable::PostgresStore;
use microbatch_postgres::Server;
use tokio_postgres::{Client, NoTls};

use crate::load::{PAYLOAD, call, drain, steady};
use crate::table::{Table, drains};
use crate::{Error, Options, progress};

/// Opens the store of a queue: its name, a space, the way to the server.
pub(crate) async fn open(orders: &str) -> Result<PostgresStore, Error> {
    let (queue, url) = orders.split_once(' ').ok_or("no queue")?;
    let store = PostgresStore::builder().queue(queue).connect(url).await?;
    store.migrate().await?;
    Ok(store)
}

pub(crate) async fn run(options: &Options) -> Result<(), Error> {
    let Some(programs) = microbatch_postgres::programs().next() else {
        println!("left out: PostgreSQL, as there is no `initdb`");
        return Ok(());
    };
    progress("starting PostgreSQL");
    let server = Server::start(programs)?;
    let url = format!("host={} user=postgres", server.socket().display());
    let client = connect(&url).await?;
    let version: String = client.query_one("SHOW server_version", &[]).await?.get(0);
    let micros = (options.slower * 1e3) as u64;
    if micros > 0 {
        for setting in [
            format!("commit_delay = {micros}"),
            "commit_siblings = 0".to_owned(),
        ] {
            client
                .batch_execute(&format!("ALTER SYSTEM SET {setting}"))
                .await?;
        }
        client.batch_execute("SELECT pg_reload_conf()").await?;
    }
    println!(
        "## PostgreSQL {version}, each sync {} ms longer\n",
        options.slower
    );
    let time = Duration::from_secs_f64(options.seconds);
    let mut table = Table::begin();
    table.row(
        "one commit a job, by hand, on one connection",
        by_hand(&client, time).await?,
    );
    for callers in [1, 10, 64, 256] {
        progress(&format!("{callers} callers"));
        let store = open(&format!("calls {url}")).await?;
        let (rate, _) = call(&store, callers, time).await?;
        table.row(&name_of(callers), rate);
    }
    if let Some(path) = &options.picture {
        let title = "Durable submits a second into PostgreSQL";
        let picture = crate::bars::picture(title, "a commit a job", &table.rows);
        std::fs::write(path, picture)
            .map_err(|error| format!("cannot write `{}`: {error}", path.display()))?;
    }

    drains("postgres", &url, open, options.drain).await?;

    if options.held > 0 {
        held(&url, options.held).await?;
    }
    Ok(())
}

fn name_of(callers: u64) -> String {
    match callers {
        1 => "1 caller".to_owned(),
        _ => format!("{callers} callers"),
    }
}

async fn connect(url: &str) -> Result<Client, Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// A row and a commit for each job.
async fn by_hand(client: &Client, time: Duration) -> Result<f64, Error> {
    progress("one commit a job");
    let table = "CREATE TABLE by_hand (id bigint PRIMARY KEY, payload bytea NOT NULL)";
    client.batch_execute(table).await?;
    let insert = client
        .prepare("INSERT INTO by_hand VALUES ($1, $2)")
        .await?;
    let started = Instant::now();
    let mut jobs = 0_i64;
    while started.elapsed() < time {
        client
            .execute(&insert, &[&jobs, &vec![7_u8; PAYLOAD]])
            .await?;
        jobs += 1;
    }
    progress("");
    Ok(jobs as f64 / started.elapsed().as_secs_f64())
}

/// A transaction that is held open keeps the server from removing what is dead.
async fn held(url: &str, seconds: u64) -> Result<(), Error> {
    const RATE: u64 = 800;
    println!(
        "\n| {RATE} jobs/s for {seconds} s | processed/s | then a drain, jobs/s | dead rows |"
    );
    println!("| --- | ---: | ---: | ---: |");
    let holder = connect(url).await?;
    let mut free = None;
    for name in ["free", "held"] {
        let store = open(&format!("{name} {url}")).await?;
        if name == "held" {
            holder
                .batch_execute(
                    "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM by_hand",
                )
                .await?;
        }
        let rate = steady(&store, RATE, Duration::from_secs(seconds)).await?;
        let then = drain(&store, 10_000, 100).await?;
        let dead = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'jobs'";
        let dead: i64 = connect(url).await?.query_one(dead, &[]).await?.get(0);
        println!("| {name} | {rate:.1} | {then:.0} | {dead} |");
        match free {
            None => free = Some((rate, then)),
            Some((free, then_free)) => {
                println!("| ratio | {:.3} | {:.2} | |", rate / free, then / then_free,)
            }
        }
    }
    Ok(())
}

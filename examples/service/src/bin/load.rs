//! The load generator, a process of its own, so that it takes no time from what it
//! measures but that of the machine.
//!
//! ```text
//! cargo run --release -p microbatch-service --bin load -- --callers 64 --seconds 10
//! ```
//!
//! Each caller has one connection and one request on its way. Without `--rate` it sends
//! the next when the answer is there. With it, requests start on a schedule, and latency
//! counts from when a request was due, so that a slow service cannot hide its waiting.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use microbatch_service::flight::Flight;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep, timeout};

/// Loads the service from outside, and says what its callers see.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// Where the service listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
    address: SocketAddr,

    /// Which way to insert; each in turn by default.
    #[arg(long, value_enum)]
    way: Option<Way>,

    /// Callers at a time, each with a connection of its own.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    callers: u32,

    /// For how long to measure each way.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,

    /// For how long to load each way before that.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(0..=3600))]
    warm_up: u64,

    /// Requests a second of all callers; as fast as they are answered by default.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Way {
    RowByRow,
    Batched,
}

impl Way {
    fn path(self) -> &'static str {
        match self {
            Self::RowByRow => "/flights/row-by-row",
            Self::Batched => "/flights",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::RowByRow => "row by row",
            Self::Batched => "batched",
        }
    }
}

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the callers of one way saw.
struct Seen {
    /// Of the stored, in microseconds.
    latency: Histogram<u64>,
    statuses: BTreeMap<StatusCode, u64>,
    /// From the start of measuring to the last answer, which may be long after the last
    /// request was due.
    took: Duration,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> anyhow::Result<()> {
    let flights = Flight::samples()?;
    let bodies = flights.iter().map(serde_json::to_vec);
    let bodies = bodies.map(|body| body.map(Bytes::from));
    let bodies: Arc<[Bytes]> = bodies.collect::<Result<_, _>>()?;
    let ways = match &options.way {
        Some(way) => std::slice::from_ref(way),
        None => &[Way::RowByRow, Way::Batched],
    };
    let mut lines = Vec::new();
    for &way in ways {
        lines.push((way, load(options, way, &bodies).await?));
    }
    print(options, &lines)?;
    for (way, seen) in &lines {
        let stored = !seen.latency.is_empty();
        ensure!(stored, "nothing was stored {}", way.name());
        let allowed = [StatusCode::CREATED, StatusCode::SERVICE_UNAVAILABLE];
        if let Some((status, count)) = seen
            .statuses
            .iter()
            .find(|(status, _)| !allowed.contains(status))
        {
            bail!("{count} requests were answered {status}");
        }
    }
    Ok(())
}

/// Has all callers send for as long as is asked.
async fn load(options: &Options, way: Way, bodies: &Arc<[Bytes]>) -> anyhow::Result<Seen> {
    let answered = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let measured = start + Duration::from_secs(options.warm_up);
    let end = measured + Duration::from_secs(options.seconds);
    let mut callers = JoinSet::new();
    for number in 0..options.callers {
        let caller = Caller {
            connection: connect(options.address).await?,
            address: options.address,
            way,
            number,
            measured,
            end,
            answered: Arc::clone(&answered),
        };
        callers.spawn(caller.run(options.clone(), Arc::clone(bodies)));
    }
    let progress = tokio::spawn(show(way, answered, start));
    let mut all = Seen::new()?;
    while let Some(seen) = callers.join_next().await {
        all.add(&seen??)?;
    }
    progress.abort();
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    Ok(all)
}

struct Caller {
    connection: SendRequest<Full<Bytes>>,
    address: SocketAddr,
    way: Way,
    number: u32,
    measured: Instant,
    end: Instant,
    answered: Arc<AtomicU64>,
}

impl Caller {
    async fn run(mut self, options: Options, bodies: Arc<[Bytes]>) -> anyhow::Result<Seen> {
        let mut seen = Seen::new()?;
        let mut schedule = options.rate.map(|rate| {
            let period = Duration::from_secs(1) * options.callers / rate;
            // The callers take turns.
            let first = Instant::now() + period * self.number / options.callers;
            let mut schedule = interval_at(first, period.max(Duration::from_nanos(1)));
            schedule.set_missed_tick_behavior(MissedTickBehavior::Burst);
            schedule
        });
        let own = (self.number as usize..).step_by(options.callers as usize);
        for index in own {
            let due = match &mut schedule {
                Some(schedule) => schedule.tick().await,
                None => Instant::now(),
            };
            if due >= self.end {
                break;
            }
            let body = bodies[index % bodies.len()].clone();
            let answer = timeout(PATIENCE, self.send(body)).await;
            let status = answer.context("no answer within 30 s")??;
            let latency = due.elapsed();
            self.answered.fetch_add(1, Ordering::Relaxed);
            if due >= self.measured {
                seen.record(status, latency);
                seen.took = self.measured.elapsed();
            }
            if status == StatusCode::SERVICE_UNAVAILABLE && schedule.is_none() {
                // Less than the service asks for, so that it stays loaded.
                sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(seen)
    }

    async fn send(&mut self, body: Bytes) -> anyhow::Result<StatusCode> {
        let request = Request::post(self.way.path())
            .header(header::HOST, self.address.to_string())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let lost = "the service closed the connection";
        self.connection.ready().await.context(lost)?;
        let response = self.connection.send_request(request).await.context(lost)?;
        let status = response.status();
        // The answer is there when its last byte is.
        response.into_body().collect().await.context(lost)?;
        Ok(status)
    }
}

async fn connect(address: SocketAddr) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await;
    let stream = stream.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its errors reach the requests.
    tokio::spawn(connection);
    Ok(sender)
}

/// A line that shows how far it is: over and over on a terminal, every second elsewhere.
async fn show(way: Way, answered: Arc<AtomicU64>, start: Instant) {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.tick().await;
    let mut before = 0;
    loop {
        seconds.tick().await;
        let now = answered.load(Ordering::Relaxed);
        let line = format!(
            "{}: {} s, {now} answered, {}/s",
            way.name(),
            start.elapsed().as_secs(),
            now - before
        );
        before = now;
        if io::stderr().is_terminal() {
            eprint!("\r\x1b[K{line}");
        } else {
            eprintln!("{line}");
        }
    }
}

impl Seen {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            // Up to an hour. One that grows by itself would not do so to saturate.
            latency: Histogram::new_with_bounds(1, 3_600_000_000, 3)?,
            statuses: BTreeMap::new(),
            took: Duration::ZERO,
        })
    }

    fn record(&mut self, status: StatusCode, latency: Duration) {
        *self.statuses.entry(status).or_default() += 1;
        if status == StatusCode::CREATED {
            let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
            self.latency.saturating_record(micros);
        }
    }

    fn add(&mut self, other: &Self) -> anyhow::Result<()> {
        self.latency.add(&other.latency)?;
        self.took = self.took.max(other.took);
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        Ok(())
    }
}

fn print(options: &Options, lines: &[(Way, Seen)]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let pace = match options.rate {
        Some(rate) => format!("{rate} requests/s on a schedule"),
        None => "each the next when answered".to_owned(),
    };
    let (callers, seconds) = (options.callers, options.seconds);
    writeln!(out, "{callers} callers, {pace}, {seconds} s a way\n")?;
    writeln!(
        out,
        "| way | stored/s | p50, ms | p99, ms | max, ms | stored | refused |"
    )?;
    writeln!(out, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |")?;
    for (way, seen) in lines {
        let stored = seen.latency.len();
        let refused = seen.statuses.get(&StatusCode::SERVICE_UNAVAILABLE);
        let millis = |quantile| seen.latency.value_at_quantile(quantile) as f64 / 1000.0;
        writeln!(
            out,
            "| {} | {:.0} | {:.1} | {:.1} | {:.1} | {stored} | {} |",
            way.name(),
            stored as f64 / seen.took.as_secs_f64(),
            millis(0.5),
            millis(0.99),
            millis(1.0),
            refused.unwrap_or(&0),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A histogram that was made without bounds has told 2 ms of everything.
    #[test]
    fn long_latencies_are_told_as_they_are() {
        let mut seen = Seen::new().unwrap();
        for seconds in 1..=10 {
            seen.record(StatusCode::CREATED, Duration::from_secs(seconds));
        }
        let median = seen.latency.value_at_quantile(0.5) as f64 / 1e6;
        assert!((median - 5.0).abs() < 0.01, "{median}");
        assert!(seen.latency.max() >= 10_000_000);
    }
}

//! A Prometheus of its own scrapes the exporter, and every query of the dashboard gives a
//! number. Needs the program `prometheus`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener as FreePort, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use microbatch::{CancellationToken, MicroBatch};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const DASHBOARD: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../examples/grafana/microbatch.json"
);

/// How long Prometheus may take to have two scrapes, and to answer.
const PATIENCE: Duration = Duration::from_secs(60);

type Rows = MicroBatch<u32, u32>;

/// Installs the recorder, whose histograms are such only with buckets.
fn install() -> PrometheusHandle {
    let seconds = [
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    ];
    let sizes = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];
    let of = |name: &str| Matcher::Full(format!("microbatch_batch_{name}"));
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(of("size"), &sizes)
        .and_then(|builder| builder.set_buckets_for_metric(of("wait_seconds"), &seconds))
        .and_then(|builder| builder.set_buckets_for_metric(of("duration_seconds"), &seconds))
        .expect("there are buckets")
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).expect("the only one");
    handle
}

/// One that is busy, with some of everything.
fn busy() -> Rows {
    let process = |rows: Vec<u32>| async move {
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(!rows.contains(&13), "bad luck");
        match rows.contains(&7) {
            true => Err("no more rows"),
            false => Ok(rows),
        }
    };
    let builder = MicroBatch::builder(process).name("rows").queue_capacity(20);
    let builder = builder
        .interval(Duration::from_millis(5))
        .max_batch_size(10);
    let built = builder.build_running(CancellationToken::new());
    built.expect("valid options")
}

/// One whose processor hangs, so that only a scrape tells of it.
fn hung() -> Rows {
    let builder = MicroBatch::builder(|_: Vec<u32>| std::future::pending::<Result<_, String>>());
    let built = builder.name("mail").build_running(CancellationToken::new());
    built.expect("valid options")
}

async fn load(rows: Rows) {
    for turn in 0.. {
        let jobs = 30 + turn % 20;
        let handles: Vec<_> = (0..jobs).map(|_| rows.submit(turn % 25)).collect();
        // The queue is full.
        let _ = rows.try_submit(1);
        for handle in handles {
            let _ = handle.await;
        }
        let _ = rows.submit(1).await;
    }
}

/// Answers every request with the metrics as they are then.
async fn serve(listener: TcpListener, handle: PrometheusHandle, told: Vec<Rows>) {
    loop {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut bytes = [0; 1024];
            match stream.read(&mut bytes).await {
                Ok(0) | Err(_) => break,
                Ok(read) => request.extend(&bytes[..read]),
            }
        }
        told.iter().for_each(MicroBatch::record_metrics);
        handle.run_upkeep();
        let body = handle.render();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all((head + &body).as_bytes()).await;
    }
}

/// A Prometheus that ends with the test.
struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    fn start(folder: &Path, target: SocketAddr) -> Self {
        let free = FreePort::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("bound");
        drop(free);
        let config = folder.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}\n\
             scrape_configs: [{{job_name: microbatch, static_configs: [{{targets: ['{target}']}}]}}]\n"
        );
        fs::write(&config, text).expect("written");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=error")
            .stdout(Stdio::null())
            .spawn()
            .expect("the program `prometheus`, of the Debian package of that name");
        Self { child, address }
    }

    /// Returns what the query gives, a value for each series.
    fn query(&self, query: &str) -> Option<Vec<f64>> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        let query: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let request = format!(
            "GET /api/v1/query?query={query} HTTP/1.0\r\nHost: {}\r\n\r\n",
            self.address
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        let body: Value = serde_json::from_str(body).ok()?;
        assert_ne!(body["status"], "error", "{body}");
        let series = body["data"]["result"].as_array()?;
        let values = series
            .iter()
            .map(|one| one["value"][1].as_str()?.parse().ok());
        values.collect()
    }

    /// Asks until a series satisfies the condition.
    fn expect(&self, query: &str, satisfies: impl Fn(f64) -> bool) -> f64 {
        let begun = Instant::now();
        loop {
            let values = self.query(query);
            let found = values.iter().flatten().find(|value| satisfies(**value));
            if let Some(value) = found {
                return *value;
            }
            assert!(begun.elapsed() < PATIENCE, "{query} gives {values:?}");
            thread::sleep(Duration::from_millis(250));
        }
    }
}

/// Returns the queries, wherever they are in the file.
fn queries(value: &Value) -> Vec<String> {
    let own = value.get("expr").and_then(Value::as_str).map(str::to_owned);
    let nested = match value {
        Value::Object(fields) => fields.values().flat_map(queries).collect(),
        Value::Array(values) => values.iter().flat_map(queries).collect(),
        _ => Vec::new(),
    };
    own.into_iter().chain(nested).collect()
}

#[test]
fn every_query_of_the_dashboard_gives_a_number() {
    let dashboard = fs::read_to_string(DASHBOARD).expect("the dashboard");
    let queries = queries(&serde_json::from_str(&dashboard).expect("JSON"));
    assert!(queries.len() > 10, "{queries:?}");

    let handle = install();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _entered = runtime.enter();
    let (rows, mail) = (busy(), hung());
    let _hanging = [
        mail.submit(1),
        mail.submit(2),
        mail.submit(3),
        mail.submit(4),
    ];
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
    let listener = listener.expect("a free port");
    let target = listener.local_addr().expect("bound");
    runtime.spawn(serve(listener, handle, vec![rows.clone(), mail]));
    runtime.spawn(load(rows.clone()));

    let folder = tempfile::tempdir().expect("a folder");
    let prometheus = Prometheus::start(folder.path(), target);
    for query in &queries {
        let query = query.replace("$__rate_interval", "10s");
        let query = query.replace("$batcher", ".+");
        let value = prometheus.expect(&query, f64::is_finite);
        println!("{value:>12.4}  {query}");
    }

    // The numbers mean what they say.
    let positive = |value: f64| value > 0.0;
    for busy in [
        r#"rate(microbatch_jobs_total{batcher="rows",outcome="completed"}[10s])"#,
        r#"rate(microbatch_jobs_refused_total{batcher="rows",why="full"}[10s])"#,
        r#"rate(microbatch_batch_failures_total{batcher="rows",kind="error"}[10s])"#,
        r#"rate(microbatch_batch_failures_total{batcher="rows",kind="panic"}[10s])"#,
        r#"rate(microbatch_batches_total{batcher="rows",reason="size"}[10s])"#,
        r#"rate(microbatch_batches_total{batcher="rows",reason="interval"}[10s])"#,
    ] {
        prometheus.expect(busy, positive);
    }
    let hung = r#"microbatch_jobs{batcher="mail",state="processing"}"#;
    prometheus.expect(hung, |jobs| jobs == 3.0);
    let limit = r#"microbatch_batch_size_limit{batcher="rows"}"#;
    prometheus.expect(limit, |jobs| jobs == 10.0);
    // A change of settings shows with the next scrape.
    let changed = rows.reconfigure(|settings| settings.max_batch_size = 12);
    changed.expect("valid");
    prometheus.expect(limit, |jobs| jobs == 12.0);
    let counted = r#"microbatch_jobs_total{batcher="rows",outcome="failed"}"#;
    let failed = prometheus.expect(counted, positive);
    assert!(failed <= rows.stats().failed as f64);
    runtime.shutdown_background();
}

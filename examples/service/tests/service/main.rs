//! What the routes promise, by their router and over real connections, on SQLite and on
//! PostgreSQL; and what the programs say.

#[cfg(unix)]
mod postgres;
#[cfg(unix)]
mod program;
#[cfg(unix)]
mod server;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt;
use microbatch::CancellationToken;
use microbatch_durable::RedbStore;
use microbatch_service::app::App;
use microbatch_service::routes::router;
use microbatch_service::serve::{own_origins, serve};
use microbatch_service::store::{Sqlite, Store};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tower::ServiceExt;

const ORIGIN: &str = "http://127.0.0.1:3000";

struct Service {
    app: Arc<App>,
    /// Removed last.
    _folder: TempDir,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Service {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = sqlite(&folder.path().join("flights.db")).await;
        Self::with(store, folder).await
    }

    async fn with(store: Store, folder: TempDir) -> Self {
        let origins = vec![ORIGIN.to_owned()];
        let jobs = RedbStore::open(folder.path().join("jobs")).await.unwrap();
        let app = App::start(store, jobs, origins, CancellationToken::new()).await;
        Self {
            app: app.unwrap(),
            _folder: folder,
        }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = router(Arc::clone(&self.app))
            .oneshot(request)
            .await
            .unwrap();
        let (parts, body) = response.into_parts();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap())
            .await
    }

    async fn post(&self, path: &str, body: impl ToString) -> Answer {
        self.send(post(path, body)).await
    }

    async fn refuses_plain_text(&self, path: &str, body: impl ToString) {
        let mut plain = post(path, body);
        plain
            .headers_mut()
            .insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
        self.send(plain)
            .await
            .is_refused(StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
}

async fn sqlite(file: &Path) -> Store {
    Store::Sqlite(Sqlite::open(file).await.unwrap())
}

fn post(path: &str, body: impl ToString) -> Request<Body> {
    Request::post(path)
        .header(header::ORIGIN, ORIGIN)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_string()))
        .unwrap()
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Checks that a caller is told in JSON what is wrong.
    #[track_caller]
    fn is_refused(&self, status: StatusCode) {
        assert_eq!(self.status, status, "{:?}", self.body);
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/json");
        assert_eq!(self.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert!(self.json()["error"].is_string());
    }
}

fn flight() -> Value {
    json!({
        "carrier": "UA", "flight": 1545, "tailnum": "N14228", "origin": "EWR", "dest": "IAH",
        "time_hour": "2013-01-01T10:00:00Z", "dep_delay": 2, "air_time": null, "distance": 1400
    })
}

fn changed(field: &str, value: impl Into<Value>) -> Value {
    let mut flight = flight();
    flight[field] = value.into();
    flight
}

#[tokio::test]
async fn what_is_on_disk_is_stored_once_in_sqlite() {
    what_is_on_disk_is_stored_once(Service::start().await).await;
}

async fn what_is_on_disk_is_stored_once(service: Service) {
    let path = "/flights/later";
    let with_key = |key: &str, flight: Value| {
        let mut request = post(path, flight);
        request
            .headers_mut()
            .insert("idempotency-key", key.parse().unwrap());
        request
    };
    let hostile = changed("dest", "'; DROP TABLE stored_jobs; --");
    let key = "'); DROP TABLE flights; --";
    for duplicate in [false, true, true] {
        let accepted = service.send(with_key(key, hostile.clone())).await;
        assert_eq!(accepted.status, StatusCode::ACCEPTED);
        assert_eq!(
            accepted.json(),
            json!({ "id": key, "duplicate": duplicate })
        );
    }
    let accepted = service.post(path, flight()).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED);
    assert_eq!(accepted.json()["duplicate"], false);
    // The order of two batches: first accepted, first stored.
    let stored = async { while service.get("/flights/2").await.status == StatusCode::NOT_FOUND {} };
    timeout(Duration::from_secs(30), stored)
        .await
        .expect("it is never stored");
    assert_eq!(service.get("/flights/1").await.json(), hostile);
    assert_eq!(service.get("/flights/2").await.json(), flight());
    let missing = service.get("/flights/3").await;
    missing.is_refused(StatusCode::NOT_FOUND);

    let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
    service
        .send(with_key("", flight()))
        .await
        .is_refused(unprocessable);
    service
        .send(with_key(&"x".repeat(256), flight()))
        .await
        .is_refused(unprocessable);
    service
        .post(path, changed("dest", ""))
        .await
        .is_refused(unprocessable);
    service.app.stop.cancel();
    service.app.drained().await.unwrap();
    service
        .post(path, flight())
        .await
        .is_refused(StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn both_ways_store_and_one_loads_in_sqlite() {
    both_ways_store_and_one_loads(Service::start().await).await;
}

async fn both_ways_store_and_one_loads(service: Service) {
    for path in ["/flights", "/flights/row-by-row"] {
        let stored = service.post(path, flight()).await;
        assert_eq!(stored.status, StatusCode::CREATED);
        let location = stored.headers[header::LOCATION].to_str().unwrap();
        assert_eq!(location, format!("/flights/{}", stored.json()["id"]));
        assert_eq!(service.get(location).await.json(), flight());
    }
    service
        .get("/flights/3")
        .await
        .is_refused(StatusCode::NOT_FOUND);
}

async fn callers_get_their_own_flights(service: Service) {
    let service = Arc::new(service);
    let callers = (0..200).map(|number| {
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let flight = changed("flight", number);
            let stored = service.post("/flights", &flight).await.json();
            let loaded = service.get(&format!("/flights/{}", stored["id"])).await;
            assert_eq!(loaded.json(), flight);
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    assert!(service.app.batched.batcher.stats().batches < 200);
}

#[tokio::test]
async fn callers_in_one_batch_get_their_own_flights() {
    callers_get_their_own_flights(Service::start().await).await;
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong_on_sqlite() {
    bad_requests_are_told_what_is_wrong(Service::start().await).await;
}

async fn bad_requests_are_told_what_is_wrong(service: Service) {
    for path in ["/flights", "/flights/row-by-row"] {
        let bad = [
            ("{".to_owned(), StatusCode::BAD_REQUEST),
            ("[]".to_owned(), StatusCode::UNPROCESSABLE_ENTITY),
            ("{}".to_owned(), StatusCode::UNPROCESSABLE_ENTITY),
            (
                changed("more", 1).to_string(),
                StatusCode::UNPROCESSABLE_ENTITY,
            ),
            (
                changed("flight", "seven").to_string(),
                StatusCode::UNPROCESSABLE_ENTITY,
            ),
            (
                changed("flight", 1_u64 << 40).to_string(),
                StatusCode::UNPROCESSABLE_ENTITY,
            ),
            (
                changed("distance", -1).to_string(),
                StatusCode::UNPROCESSABLE_ENTITY,
            ),
            (
                changed("dest", "").to_string(),
                StatusCode::UNPROCESSABLE_ENTITY,
            ),
            (
                changed("dest", "a\0b").to_string(),
                StatusCode::UNPROCESSABLE_ENTITY,
            ),
            (
                changed("dest", "x".repeat(65)).to_string(),
                StatusCode::UNPROCESSABLE_ENTITY,
            ),
            (
                changed("dest", "x".repeat(20_000)).to_string(),
                StatusCode::PAYLOAD_TOO_LARGE,
            ),
        ];
        for (body, status) in bad {
            service.post(path, body).await.is_refused(status);
        }
        service.refuses_plain_text(path, flight()).await;
    }
    for path in [
        "/flights/seven",
        "/flights/1%20OR%201=1",
        "/flights/99999999999999999999",
    ] {
        service.get(path).await.is_refused(StatusCode::BAD_REQUEST);
    }
    service
        .get("/nothing")
        .await
        .is_refused(StatusCode::NOT_FOUND);
    service
        .get("/settings")
        .await
        .is_refused(StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(service.app.batched.batcher.stats().accepted, 0);
}

#[tokio::test]
async fn a_full_queue_is_answered_503_and_when_to_try_again() {
    let service = Service::start().await;
    service.post("/settings", json!({ "paused": true })).await;
    let mut refused_before = 0;
    loop {
        let burst = service.post("/burst", json!({ "jobs": 2000 })).await;
        let burst = burst.json();
        refused_before += burst["refused"].as_u64().unwrap();
        if burst["accepted"] == 0 {
            break;
        }
        // What is taken up for the next batch makes room again.
        tokio::task::yield_now().await;
    }

    let refused = service.post("/flights", flight()).await;
    refused.is_refused(StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers[header::RETRY_AFTER], "1");

    service.post("/settings", json!({ "paused": false })).await;
    service.app.batched.batcher.flush().await;
    let stored = service.post("/flights", flight()).await;
    assert_eq!(stored.status, StatusCode::CREATED);
    let metrics = String::from_utf8(service.get("/metrics").await.body.into()).unwrap();
    let refused = refused_before + 1;
    let mut lines = metrics.lines().filter(|line| {
        line.starts_with("microbatch_jobs_refused_total{")
            && line.contains("batcher=\"inserts\"")
            && line.contains("why=\"full\"")
    });
    let line = lines.next().unwrap();
    assert_eq!(
        line.rsplit(' ').next().unwrap(),
        refused.to_string(),
        "{line}"
    );
    let histogram = "microbatch_batch_size_bucket{batcher=\"inserts\"";
    assert!(metrics.contains(histogram), "{metrics}");
}

const HOSTILE: [&str; 7] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "'; DROP TABLE flights; --",
    "$1 ? %s {} \\ \u{7} \r\n",
    "\u{202e}\u{fffd}\u{feff}",
    "🛩\u{301}",
    "</script><!--",
];

async fn hostile_texts_come_back(service: &Service) {
    for text in HOSTILE {
        for path in ["/flights", "/flights/row-by-row"] {
            let flight = changed("dest", text);
            let id = service.post(path, &flight).await.json()["id"].clone();
            let loaded = service.get(&format!("/flights/{id}")).await;
            assert_eq!(loaded.json(), flight);
            assert_eq!(loaded.headers[header::CONTENT_TYPE], "application/json");
        }
    }
}

#[tokio::test]
async fn hostile_texts_are_data_and_never_part_of_the_page() {
    let service = Service::start().await;
    let page = service.get("/").await;
    hostile_texts_come_back(&service).await;
    assert_eq!(service.get("/").await.body, page.body);
    let policy = page.headers[header::CONTENT_SECURITY_POLICY]
        .to_str()
        .unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"));
    assert!(!policy.contains("unsafe"));
    let metrics = service.get("/metrics").await.body;
    assert!(!metrics.windows(5).any(|part| part == b"alert"));
}

#[tokio::test]
async fn settings_take_effect() {
    let service = Service::start().await;
    let change = json!({ "max_batch_size": 7, "interval_ms": 33, "flush_when_idle": false });
    let now = service.post("/settings", change).await.json();
    let expected = json!({
        "max_batch_size": 7, "interval_ms": 33, "max_in_flight": 1, "flush_when_idle": false,
        "paused": false
    });
    assert_eq!(now, expected);
    service.post("/burst", json!({ "jobs": 70 })).await;
    service.app.batched.batcher.flush().await;
    let stats = service.app.batched.batcher.stats();
    assert_eq!((stats.completed, stats.batches), (70, 10));
}

#[tokio::test]
async fn nonsense_settings_change_nothing() {
    let service = Service::start().await;
    let before = service.app.batched.batcher.settings();
    let nonsense = [
        json!({ "max_batch_size": 0 }),
        json!({ "max_batch_size": 1001 }),
        json!({ "max_batch_size": -1 }),
        json!({ "max_batch_size": 8, "interval_ms": 0 }),
        json!({ "interval_ms": 10_001 }),
        json!({ "max_in_flight": 5 }),
        json!({ "max_batch_size": 8, "unknown": 1 }),
        json!({ "flush_when_idle": "yes" }),
        json!({ "max_batch_size": 0, "paused": true }),
    ];
    for change in nonsense {
        let refused = service.post("/settings", change).await;
        refused.is_refused(StatusCode::UNPROCESSABLE_ENTITY);
    }
    let unprocessable = StatusCode::UNPROCESSABLE_ENTITY;
    service
        .post("/load", json!({ "callers": 257 }))
        .await
        .is_refused(unprocessable);
    service
        .post("/burst", json!({ "jobs": 2001 }))
        .await
        .is_refused(unprocessable);
    assert_eq!(service.app.batched.batcher.settings(), before);
    assert!(!service.app.batched.batcher.is_paused());
}

#[tokio::test]
async fn only_the_own_origin_controls() {
    let service = Service::start().await;
    let bodies = [
        ("/settings", json!({ "max_batch_size": 9 })),
        ("/load", json!({ "callers": 1 })),
        ("/burst", json!({ "jobs": 1 })),
        ("/stop", json!({})),
    ];
    for (path, body) in bodies {
        let foreign = [
            None,
            Some("null"),
            Some("http://evil.example"),
            Some("http://127.0.0.1:3001"),
            Some("https://127.0.0.1:3000"),
            Some("http://127.0.0.1:3000.evil.example"),
        ];
        for origin in foreign {
            let mut request = post(path, &body);
            let headers = request.headers_mut();
            headers.remove(header::ORIGIN);
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
                // As where the name of a foreign page leads here.
                let host = origin.split("//").last().unwrap();
                headers.insert(header::HOST, host.parse().unwrap());
            }
            service
                .send(request)
                .await
                .is_refused(StatusCode::FORBIDDEN);
        }
        service.refuses_plain_text(path, &body).await;
    }
    assert_eq!(service.app.batched.batcher.stats().accepted, 0);
    assert!(!service.app.stop.is_cancelled());
}

#[test]
fn nobody_controls_a_public_address_unless_named() {
    assert!(own_origins("0.0.0.0:3000".parse().unwrap()).is_empty());
    assert!(own_origins("127.0.0.1:3000".parse().unwrap()).contains(&ORIGIN.to_owned()));
}

/// An open event stream has held up a graceful stop for ever.
#[tokio::test]
async fn a_stop_drains_into_sqlite_with_an_event_stream_open() {
    a_stop_drains_with_an_event_stream_open(Service::start().await).await;
}

async fn a_stop_drains_with_an_event_stream_open(service: Service) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve(listener, Arc::clone(&service.app)));

    let mut events = TcpStream::connect(address).await.unwrap();
    let request = "GET /events HTTP/1.1\r\nhost: here\r\n\r\n";
    events.write_all(request.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(events).lines();
    while !lines
        .next_line()
        .await
        .unwrap()
        .unwrap()
        .starts_with("data:")
    {}

    // Even the end of a pause is the stop's.
    service.post("/settings", json!({ "paused": true })).await;
    service.post("/burst", json!({ "jobs": 300 })).await;
    let waiting = service.post("/flights", flight());
    let stop = async {
        while service.app.batched.batcher.stats().accepted < 301 {
            tokio::task::yield_now().await;
        }
        service.post("/stop", json!({})).await
    };
    let (stored, stop) = tokio::join!(waiting, stop);
    assert_eq!(
        (stored.status, stop.status),
        (StatusCode::CREATED, StatusCode::ACCEPTED)
    );

    let mut last = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.starts_with("data:") || line.starts_with("event: end") {
            last = line;
        }
    }
    let last: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(
        (&last["accepted"], &last["completed"]),
        (&json!(301), &json!(301))
    );
    assert_eq!(last["ended"], json!(true));
    let stopped = timeout(Duration::from_secs(30), server).await;
    stopped.expect("the stop is held up").unwrap().unwrap();

    let late = service.post("/flights", flight()).await;
    late.is_refused(StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn load_moves_both_ways_and_ends() {
    let service = Service::start().await;
    service.post("/load", json!({ "callers": 8 })).await;
    let mut samples = service.app.samples.clone();
    let both = samples.wait_for(|sample| {
        let sample = serde_json::to_value(&**sample).unwrap();
        let stored = |way: &str| sample[way]["jobs"].as_u64().unwrap() > 20;
        stored("row_by_row") && stored("batched")
    });
    timeout(Duration::from_secs(20), both)
        .await
        .unwrap()
        .unwrap();
    service.post("/load", json!({ "callers": 0 })).await;
    assert_eq!(service.app.callers.count(), 0);
}

//! The programs as their users run them.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::flight;

const PATIENCE: Duration = Duration::from_secs(30);

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_remove("DATABASE_URL")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn service() -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_microbatch-service"));
    command.args(["--listen", "127.0.0.1:0"]);
    command
}

async fn end(child: Child) -> Output {
    let end = timeout(PATIENCE, child.wait_with_output()).await;
    end.expect("the program hangs").unwrap()
}

/// Checks that it ends with 1 and says why in one line that contains `why`.
async fn fails(command: &mut Command, why: &str) {
    let output = end(command.spawn().unwrap()).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(output.stdout, b"", "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("error: ") && text.contains(why), "{text}");
    assert!(text.ends_with('\n') && text.lines().count() == 1, "{text}");
}

#[tokio::test]
async fn what_cannot_start_is_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let text = folder.join("text.db");
    std::fs::write(&text, "this is not a database, but is long enough").unwrap();

    let program = env!("CARGO_BIN_EXE_microbatch-service");
    let listen = ["--listen", &taken];
    fails(command(program).args(listen), "cannot listen on").await;
    let database = |path: &Path| {
        let mut command = service();
        command.arg("--database").arg(path);
        command
    };
    let cannot = "cannot open the database";
    fails(&mut database(folder), cannot).await;
    fails(&mut database(&folder.join("missing/flights.db")), cannot).await;
    fails(&mut database(&text), "not a database").await;
    let mut jobs = service();
    jobs.arg("--jobs").arg(&text);
    fails(&mut jobs, "cannot open the jobs").await;
    fails(service().env("DATABASE_URL", "nonsense"), cannot).await;
    let nobody = "postgres://postgres@127.0.0.1:1/flights";
    fails(service().env("DATABASE_URL", nobody), cannot).await;
    fails(service().env("RUST_LOG", "a=b=c"), "cannot read RUST_LOG").await;
    fails(service().env("TMPDIR", folder.join("missing")), "temporary").await;
}

#[tokio::test]
async fn a_load_without_a_service_is_told_in_one_line() {
    // Nothing listens on it any more.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let mut load = command(env!("CARGO_BIN_EXE_load"));
    fails(load.args(["--address", &address]), "cannot connect to").await;
}

/// A terminal's ctrl-c, and what a supervisor sends, both store what was accepted.
#[tokio::test]
async fn a_signal_stops_it_gracefully() {
    for signal in ["INT", "TERM"] {
        starts_stores_and_stops(&mut service(), "SQLite", signal).await;
    }
}

/// By the environment, as the README says.
pub async fn stores_in_postgres(url: &str) {
    starts_stores_and_stops(service().env("DATABASE_URL", url), "PostgreSQL", "TERM").await;
}

async fn starts_stores_and_stops(command: &mut Command, store: &str, signal: &str) {
    let mut child = command.spawn().unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = address(&mut said, store).await;
    let answer = post(&address, "/flights", flight().to_string()).await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");

    let id = child.id().unwrap().to_string();
    let sent = Command::new("kill").args(["-s", signal, &id]).status();
    assert!(sent.await.unwrap().success());
    let output = end(child).await;
    assert!(output.status.success(), "{output:?}");
    let line = said.next_line().await.unwrap().unwrap();
    assert_eq!(
        line,
        "stopped; everything accepted is stored, or waits on disk"
    );
}

async fn address(said: &mut Lines<BufReader<ChildStdout>>, store: &str) -> String {
    let line = timeout(PATIENCE, said.next_line()).await;
    let line = line.expect("it does not start").unwrap().unwrap();
    let address = line.strip_prefix(&format!("{store}: http://"));
    address.expect(&line).split(' ').next().unwrap().to_owned()
}

async fn post(address: &str, path: &str, body: String) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Killed right after its last answer, five times: what was answered is stored, once.
#[tokio::test]
async fn what_is_accepted_survives_a_kill() {
    const ROUNDS: usize = 5;
    const JOBS: usize = 60;
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("flights.db");
    for round in 0..=ROUNDS {
        let mut child = service().arg("--database").arg(&database).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = address(&mut said, "SQLite").await;
        if round == ROUNDS {
            let stored = async {
                while count(&database) < ROUNDS * JOBS {
                    tokio::task::yield_now().await;
                }
            };
            timeout(PATIENCE, stored).await.expect("something is lost");
            let id = child.id().unwrap().to_string();
            let sent = Command::new("kill").args(["-s", "TERM", &id]).status();
            assert!(sent.await.unwrap().success());
            let output = end(child).await;
            assert!(output.status.success(), "{output:?}");
            break;
        }
        let jobs = (0..JOBS).map(|job| {
            let mut flight = flight();
            flight["flight"] = (round * JOBS + job).into();
            let address = address.clone();
            tokio::spawn(async move { post(&address, "/flights/later", flight.to_string()).await })
        });
        for answer in jobs.collect::<Vec<_>>() {
            let answer = answer.await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
        }
        child.kill().await.unwrap();
    }
    assert_eq!(count(&database), ROUNDS * JOBS, "something is stored twice");
}

/// Flights in the file, each counted as often as it is there; fails if one is not there.
fn count(database: &Path) -> usize {
    let connection = rusqlite::Connection::open(database).unwrap();
    connection.busy_timeout(PATIENCE).unwrap();
    let sql = "SELECT count(*), count(DISTINCT flight) FROM flights";
    let counts = connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)));
    let (all, different): (i64, i64) = counts.unwrap();
    assert_eq!(all, different, "something is stored twice");
    usize::try_from(all).unwrap()
}

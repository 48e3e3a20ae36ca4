//! The server itself: killed, started again, reached by socket and port.

#![cfg(unix)]

use std::net::TcpStream;
use std::process::Command;

use microbatch_postgres::{Server, programs};

/// What `psql` answers, or why it does not.
fn ask(server: &Server, url: &str, sql: &str) -> Result<String, String> {
    let psql = programs().next().unwrap().join("psql");
    let output = Command::new(psql)
        .current_dir(server.socket())
        .args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-c",
            sql,
            url,
        ])
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

#[test]
fn a_killed_server_starts_again_with_what_was_committed() {
    let Some(programs) = programs().next() else {
        println!("left out: PostgreSQL is not installed (Debian: `apt-get install postgresql`)");
        return;
    };
    let mut server = Server::start_on_port(programs).unwrap();
    let port = server.port().unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    ask(&server, &url, "CREATE TABLE kept (n int)").unwrap();
    for n in 1..=3 {
        ask(&server, &url, &format!("INSERT INTO kept VALUES ({n})")).unwrap();
        // A backend that is at work when its server is killed.
        let mut busy = Command::new(self::programs().next().unwrap().join("psql"))
            .current_dir(server.socket())
            .args(["-X", "-q", "-c", "SELECT pg_sleep(600)", &url])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while ask(&server, &url, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(6%' AND pid <> pg_backend_pid()").unwrap() != "1" {}
        server.kill().unwrap();
        TcpStream::connect(("127.0.0.1", port)).unwrap_err();
        busy.wait().unwrap();
        server.restart().unwrap();
        assert_eq!(server.port(), Some(port));
        assert_eq!(
            ask(&server, &url, "SELECT count(*) FROM kept"),
            Ok(n.to_string())
        );
    }
}

#[test]
fn a_user_with_a_password_needs_it() {
    let Some(programs) = programs().next() else {
        return;
    };
    let server = Server::start_on_port(programs).unwrap();
    let port = server.port().unwrap();
    server.add_user("careful", "s'cret").unwrap();
    server.add_user("second", "other").unwrap();
    let url = |password: &str| format!("postgres://careful:{password}@127.0.0.1:{port}/postgres");
    assert_eq!(
        ask(&server, &url("s%27cret"), "SELECT 1"),
        Ok("1".to_owned())
    );
    let refused = ask(&server, &url("other"), "SELECT 1").unwrap_err();
    assert!(
        refused.contains("password authentication failed"),
        "{refused}"
    );
}

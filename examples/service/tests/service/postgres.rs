//! The same requests as on SQLite, and what only a server can do: hang up.

use std::io::{self, Write};
use std::time::Duration;

use axum::http::StatusCode;
use microbatch_service::store::{Postgres, Store};
use serde_json::json;
use tokio::time::timeout;

use crate::server::{self, database};
use crate::{Service, flight};
use microbatch_postgres::Server;

async fn service(server: &Server, name: &str) -> Service {
    let url = database(server, name).await;
    let store = Store::Postgres(Postgres::connect(&url).await.unwrap());
    Service::with(store, tempfile::tempdir().unwrap()).await
}

/// One server for all of it, as its start takes longer than the rest.
#[tokio::test]
async fn postgres_answers_as_sqlite_does() {
    let Some(server) = server::start() else {
        // Not by a macro, whose output is kept from view where a test passes.
        let why = "skipped: PostgreSQL is not installed (apt-get install postgresql)\n";
        let _ = io::stderr().write_all(why.as_bytes());
        return;
    };
    crate::both_ways_store_and_one_loads(service(&server, "one").await).await;
    crate::callers_get_their_own_flights(service(&server, "two").await).await;
    crate::what_is_on_disk_is_stored_once(service(&server, "later").await).await;
    let four = service(&server, "four").await;
    four.post("/settings", json!({ "max_in_flight": 4 })).await;
    crate::callers_get_their_own_flights(four).await;
    crate::bad_requests_are_told_what_is_wrong(service(&server, "bad").await).await;
    crate::hostile_texts_come_back(&service(&server, "hostile").await).await;
    crate::a_stop_drains_with_an_event_stream_open(service(&server, "stop").await).await;
    lost_connections_are_replaced(&server, service(&server, "lost").await).await;
    crate::program::stores_in_postgres(&database(&server, "program").await).await;
}

async fn lost_connections_are_replaced(server: &Server, service: Service) {
    for path in ["/flights", "/flights/row-by-row"] {
        let stored = service.post(path, flight()).await;
        assert_eq!(stored.status, StatusCode::CREATED);
        server::hang_up(server).await;
        let again = async {
            loop {
                let stored = service.post(path, flight()).await;
                if stored.status == StatusCode::CREATED {
                    break;
                }
                // The pool has not yet heard of it.
                stored.is_refused(StatusCode::INTERNAL_SERVER_ERROR);
            }
        };
        let again = timeout(Duration::from_secs(30), again).await;
        again.expect("the pool keeps lost connections");
    }
}

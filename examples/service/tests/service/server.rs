//! What these tests want of a PostgreSQL.

use microbatch_postgres::{Server, programs};
use tokio_postgres::NoTls;

/// Starts a server; `None` where it is not installed.
pub fn start() -> Option<Server> {
    programs()
        .next()
        .map(|programs| Server::start(programs).unwrap())
}

/// Makes an empty database and returns its URL.
pub async fn database(server: &Server, name: &str) -> String {
    execute(server, &format!("CREATE DATABASE {name}")).await;
    url(server, name)
}

/// Ends all connections but our own, as a restart of the server would.
pub async fn hang_up(server: &Server) {
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
    execute(server, sql).await;
}

async fn execute(server: &Server, sql: &str) {
    let (client, connection) = tokio_postgres::connect(&url(server, "postgres"), NoTls)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    client.batch_execute(sql).await.unwrap();
    drop(client);
    connection.await.unwrap().unwrap();
}

fn url(server: &Server, database: &str) -> String {
    let folder = server.socket().to_str().unwrap();
    format!(
        "postgres://postgres@{}/{database}",
        folder.replace('/', "%2F")
    )
}

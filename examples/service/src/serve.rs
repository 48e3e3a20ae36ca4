//! From the first connection to the last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::app::App;
use crate::routes;

/// How long a stop waits for callers who are slow to send or to read.
const GRACE: Duration = Duration::from_secs(10);

/// Serves until the token of `app` is cancelled, and then until what was accepted is done
/// and all connections are closed.
///
/// # Errors
///
/// Says what was given up because time ran out.
pub async fn serve(listener: TcpListener, app: Arc<App>) -> anyhow::Result<()> {
    let stop = app.stop.clone();
    let server = axum::serve(listener, routes::router(Arc::clone(&app)))
        .with_graceful_shutdown(stop.clone().cancelled_owned());
    let patience = async {
        stop.cancelled().await;
        sleep(GRACE).await;
    };
    let closed = tokio::select! {
        served = server => {
            served.context("the server failed")?;
            true
        }
        () = patience => false,
    };
    app.drained().await?;
    if !closed {
        bail!("some connections were still open after {GRACE:?}");
    }
    Ok(())
}

/// The origins of a page that is opened on this machine; none where others can reach it,
/// as nobody knows by which name.
pub fn own_origins(address: SocketAddr) -> Vec<String> {
    if !address.ip().is_loopback() {
        return Vec::new();
    }
    let hosts = ["127.0.0.1", "localhost", "[::1]"];
    let port = address.port();
    hosts.map(|host| format!("http://{host}:{port}")).into()
}

//! Hears at once of what others append: a connection of its own that listens. Nothing depends
//! on it; while it is down, drains ask.

use std::sync::Weak;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use tokio::time::{sleep, timeout};
use tokio_postgres::{AsyncMessage, Client};
use tokio_util::sync::CancellationToken;

use super::error::PostgresError;
use super::face::Inner;
use super::link::{Listening, Messages};

/// The first and the longest pause after a failure.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Listens until the store is closed or dropped.
pub(super) async fn listen(listening: Listening, inner: Weak<Inner>, closed: CancellationToken) {
    let mut pause = PAUSES.0;
    let listen = async {
        loop {
            let Some(call_timeout) = inner.upgrade().map(|inner| inner.link.call_timeout) else {
                return;
            };
            let connected = timeout(call_timeout, listening.connect()).await;
            let error = match connected {
                Ok(Ok((client, messages))) => {
                    let ended = listen_on(client, messages, &inner, call_timeout, || {
                        pause = PAUSES.0;
                    });
                    ended.await
                }
                Ok(Err(error)) => Some(error),
                Err(_) => None,
            };
            let Some(inner) = inner.upgrade() else {
                return;
            };
            inner.set_listening(false);
            let error = match error {
                Some(error) => PostgresError::from_client(error, &inner.link.schema),
                None => PostgresError::TimedOut {
                    waited: call_timeout,
                },
            };
            drop(inner);
            tracing::debug!(error = &error as &dyn std::error::Error, "not listening");
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    };
    tokio::select! {
        () = closed.cancelled() => {}
        () = listen => {}
    }
}

/// Listens on one connection until it fails, or is silent for too long. `None` is the latter.
async fn listen_on(
    client: Client,
    mut messages: Messages,
    inner: &Weak<Inner>,
    call_timeout: Duration,
    heard: impl FnOnce(),
) -> Option<tokio_postgres::Error> {
    let hear = async {
        loop {
            match messages.next().await {
                Some(Ok(AsyncMessage::Notification(notice))) => {
                    let due = notice.payload().parse().map(Duration::from_micros);
                    if let Some(inner) = inner.upgrade() {
                        inner.set_listening(true);
                        inner.notice(due.ok().map(|due| SystemTime::UNIX_EPOCH + due));
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Some(error),
                None => return None,
            }
        }
    };
    let ask = async {
        let channel = {
            let inner = inner.upgrade()?;
            let rows = async {
                inner
                    .statements
                    .channel
                    .query(&client, &[&inner.queue])
                    .await
            };
            match timeout(call_timeout, rows).await {
                Ok(Ok(rows)) => rows.first()?.get::<_, String>(0),
                Ok(Err(error)) => return Some(error),
                Err(_) => return None,
            }
        };
        let mut heard = Some(heard);
        let mut sql = format!("LISTEN \"{channel}\"");
        loop {
            // A peer that is gone without a word is found out by asking only.
            match timeout(call_timeout, client.batch_execute(&sql)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Some(error),
                Err(_) => return None,
            }
            if let Some(heard) = heard.take() {
                heard();
            }
            sql.clear();
            let inner = inner.upgrade()?;
            if !inner.is_listening() {
                // Said on another connection, and not believed until it is heard: a pooler
                // between may take `LISTEN`, and carry nothing.
                if let Err(error) = inner.query(&inner.statements.hello, &[&inner.queue]).await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "not heard");
                }
            }
            drop(inner);
            sleep(call_timeout).await;
        }
    };
    tokio::select! {
        error = hear => error,
        error = ask => error,
    }
}

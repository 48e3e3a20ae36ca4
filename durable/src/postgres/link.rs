//! The way to the server: connections of a pool, calls that end in time, and what listens.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Timeouts};
use futures_util::Stream;
use futures_util::stream::poll_fn;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, Client, Config, Error, Socket};

use super::error::PostgresError;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
pub(super) type Messages = Pin<Box<dyn Stream<Item = Result<AsyncMessage, Error>> + Send>>;
type Connect = dyn Fn() -> BoxFuture<Result<(Client, Messages), Error>> + Send + Sync;

/// Opens a connection outside of the pool, whose messages can be listened to.
#[derive(Clone)]
pub(super) struct Listening(Arc<Connect>);

impl Listening {
    pub(super) fn new<T>(config: Config, tls: T) -> Self
    where
        T: MakeTlsConnect<Socket> + Clone + Sync + Send + 'static,
        T::Stream: Sync + Send,
        T::TlsConnect: Sync + Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        Self(Arc::new(move || {
            let (config, tls) = (config.clone(), tls.clone());
            Box::pin(async move {
                let (client, mut connection) = config.connect(tls).await?;
                let messages: Messages = Box::pin(poll_fn(move |cx| connection.poll_message(cx)));
                Ok((client, messages))
            })
        }))
    }

    pub(super) async fn connect(&self) -> Result<(Client, Messages), Error> {
        (self.0)().await
    }
}

/// Makes a pool that tests a connection before it hands it out: one that was open while the
/// server was started anew is dead.
pub(super) fn pool<T>(config: Config, tls: T, size: usize) -> Result<Pool, PostgresError>
where
    T: MakeTlsConnect<Socket> + Clone + Sync + Send + 'static,
    T::Stream: Sync + Send,
    T::TlsConnect: Sync + Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let recycling_method = RecyclingMethod::Verified;
    let manager = Manager::from_config(config, tls, ManagerConfig { recycling_method });
    Pool::builder(manager)
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|error| PostgresError::bad_option("pool", error.to_string()))
}

/// A pool, and how long a call may take.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) pool: Pool,
    pub(super) schema: String,
    pub(super) call_timeout: Duration,
}

impl Link {
    /// Takes a connection from the pool. All that is asked on it has to be answered within the
    /// time of one call from now on.
    pub(super) async fn borrow(&self) -> Result<Borrowed<'_>, PostgresError> {
        let waited = self.call_timeout;
        let until = Instant::now() + waited;
        let timeouts = Timeouts {
            // A call that gets a connection later has no time left for its answer.
            wait: Some(waited - waited / 16),
            ..Timeouts::default()
        };
        match timeout_at(until, self.pool.timeout_get(&timeouts)).await {
            Ok(Ok(client)) => Ok(Borrowed {
                client: Some(client),
                is_answered: AtomicBool::new(true),
                until,
                link: self,
            }),
            Ok(Err(error)) => Err(PostgresError::from_pool(error, &self.schema, waited)),
            Err(_) => Err(self.timed_out()),
        }
    }

    /// Awaits an answer on a connection that is not ours.
    pub(super) async fn in_time<T>(
        &self,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, PostgresError> {
        match timeout(self.call_timeout, answer).await {
            Ok(answer) => answer.map_err(|error| PostgresError::from_client(error, &self.schema)),
            Err(_) => Err(PostgresError::TimedOut {
                waited: self.call_timeout,
            }),
        }
    }

    fn timed_out(&self) -> PostgresError {
        // Idle connections may be as dead as this one was; each would cost as long.
        self.pool.retain(|_, _| false);
        PostgresError::TimedOut {
            waited: self.call_timeout,
        }
    }
}

/// A connection that goes back into the pool only if each call was answered: what was given up
/// may be waiting still, and the next one would wait behind it.
pub(super) struct Borrowed<'a> {
    /// There until it is dropped.
    client: Option<Object>,
    is_answered: AtomicBool,
    until: Instant,
    link: &'a Link,
}

impl Borrowed<'_> {
    /// Asks, and awaits the answer.
    pub(super) async fn ask<'c, T, F>(
        &'c self,
        question: impl FnOnce(&'c Client) -> F,
    ) -> Result<T, PostgresError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let Some(client) = &self.client else {
            return Err(PostgresError::Closed);
        };
        self.is_answered.store(false, Ordering::Relaxed);
        match timeout_at(self.until, question(client)).await {
            Ok(answer) => {
                self.is_answered.store(answer.is_ok(), Ordering::Relaxed);
                answer.map_err(|error| PostgresError::from_client(error, &self.link.schema))
            }
            Err(_) => Err(self.link.timed_out()),
        }
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if let Some(client) = self.client.take()
            && !*self.is_answered.get_mut()
        {
            drop(Object::take(client));
        }
    }
}

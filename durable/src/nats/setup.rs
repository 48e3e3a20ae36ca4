//! The streams and the consumer: made if they are missing, compared if they are there.
//!
//! # Invariants
//!
//! - What is there is asked for first, so that a user without the right to create anything
//!   can use what somebody else has created.
//! - Creating is repeated asking: of several processes that create at the same time one
//!   does, and the others find it.
//! - An option that the builder was not given is left as it is. One that was given is
//!   updated where the server can, and refused with an error where it cannot.

use std::time::Duration;

use serde_json::{Value, json};

use super::builder::Options;
use super::client::Connection;
use super::error::JetStreamError;
use super::names::Names;

/// Defaults of what is created.
const DEDUP_WINDOW: Duration = Duration::from_secs(120);
const LEASE_TIME: Duration = Duration::from_secs(30);
const MAX_LEASED: usize = 1_000_000;

/// How often a creation that somebody else was faster with is started again.
const TRIES: usize = 5;

/// Another stream has the name, or the consumer exists.
const NAME_TAKEN: [u64; 4] = [10058, 10148, 10013, 10105];

/// What a stream or consumer has to have; what it may be updated to.
struct Wanted {
    fixed: Vec<(&'static str, Value)>,
    updated: Vec<(&'static str, Value)>,
    /// What is created, beside these.
    defaults: Vec<(&'static str, Value)>,
}

impl Wanted {
    /// What to create.
    fn config(&self, mut config: Value) -> Value {
        let options = self.defaults.iter().chain(&self.fixed).chain(&self.updated);
        for (option, value) in options {
            config[*option] = value.clone();
        }
        config
    }
}

/// Makes or checks all, and returns the time of a lease.
pub(super) async fn run(
    connection: &Connection,
    names: &Names,
    options: &Options,
) -> Result<Duration, JetStreamError> {
    let replicas = options.replicas.map(|n| ("num_replicas", json!(n)));
    let wanted_window = options
        .dedup_window
        .map(|window| ("duplicate_window", nanos(window)));
    let live = Wanted {
        fixed: vec![
            ("retention", json!("workqueue")),
            ("storage", json!("file")),
            ("subjects", json!([names.job("*")])),
        ],
        updated: replicas.clone().into_iter().chain(wanted_window).collect(),
        defaults: vec![
            ("discard", json!("new")),
            ("duplicate_window", nanos(DEDUP_WINDOW)),
        ],
    };
    let config = stream(connection, &names.live, &live).await?;
    let window = &config["duplicate_window"];
    let kept = |subject: String, age: Option<&Value>| {
        let age = age.map(|age| ("max_age", age.clone()));
        Wanted {
            fixed: vec![
                ("retention", json!("limits")),
                ("storage", json!("file")),
                ("subjects", json!([subject])),
                ("max_msgs_per_subject", json!(1)),
            ],
            updated: [("duplicate_window", window.clone())]
                .into_iter()
                .chain(age)
                .chain(replicas.clone())
                .collect(),
            defaults: vec![("discard", json!("new"))],
        }
    };
    stream(connection, &names.dead, &kept(names.letter("*"), None)).await?;
    let freed = kept(names.free("*"), Some(window));
    stream(connection, &names.freed, &freed).await?;
    let time = consumer(connection, names, options).await?;
    check_not_ahead(connection, names).await?;
    Ok(time)
}

fn nanos(duration: Duration) -> Value {
    json!(u64::try_from(duration.as_nanos()).unwrap_or(i64::MAX as u64))
}

async fn stream(
    connection: &Connection,
    name: &str,
    wanted: &Wanted,
) -> Result<Value, JetStreamError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let (verb, call, config) = match connection.stream_info(name, &Value::Null).await {
            Ok(info) => match compare(name, wanted, &info["config"])? {
                None => return Ok(info["config"].clone()),
                Some(changed) => ("UPDATE", "update a stream", changed),
            },
            Err(JetStreamError::MissingStream { .. }) => {
                let config = wanted.config(json!({ "name": name }));
                ("CREATE", "create a stream", config)
            }
            Err(error) => return Err(error),
        };
        let subject = format!("STREAM.{verb}.{name}");
        match connection.api(call, &subject, &config).await? {
            Ok(info) => return Ok(info["config"].clone()),
            Err(refusal) if NAME_TAKEN.contains(&refusal.code) && tries < TRIES => {}
            Err(refusal) => return Err(connection.error_of(call, name, "", refusal)),
        }
    }
}

/// Returns what to update it to, if anything.
fn compare(stream: &str, wanted: &Wanted, found: &Value) -> Result<Option<Value>, JetStreamError> {
    for (option, expected) in &wanted.fixed {
        if found[*option] != *expected {
            return Err(JetStreamError::Differs {
                stream: stream.to_owned(),
                option,
                found: found[*option].to_string(),
                expected: expected.to_string(),
            });
        }
    }
    let mut changed = None;
    for (option, expected) in &wanted.updated {
        if found[*option] != *expected {
            let changed = changed.get_or_insert_with(|| found.clone());
            changed[*option] = expected.clone();
        }
    }
    Ok(changed)
}

async fn consumer(
    connection: &Connection,
    names: &Names,
    options: &Options,
) -> Result<Duration, JetStreamError> {
    let Names { live, consumer, .. } = names;
    let time = options.lease_time.map(|time| ("ack_wait", nanos(time)));
    let most = options
        .max_leased
        .map(|most| ("max_ack_pending", json!(most)));
    let wanted = Wanted {
        fixed: vec![
            ("ack_policy", json!("explicit")),
            ("durable_name", json!(consumer)),
            ("filter_subject", json!(names.job("*"))),
            ("deliver_policy", json!("all")),
        ],
        // Where it is reached, a message stays, and nobody gets it.
        updated: [("max_deliver", json!(-1))]
            .into_iter()
            .chain(time)
            .chain(most)
            .collect(),
        defaults: vec![
            ("replay_policy", json!("instant")),
            ("ack_wait", nanos(LEASE_TIME)),
            ("max_ack_pending", json!(MAX_LEASED)),
        ],
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let (call, config) = match connection.consumer_info(names).await {
            Ok(info) => match compare(live, &wanted, &info["config"])? {
                None => return Ok(time_of(&info["config"])),
                Some(changed) => ("update the consumer", changed),
            },
            Err(JetStreamError::MissingConsumer { .. }) => {
                ("create the consumer", wanted.config(json!({})))
            }
            Err(error) => return Err(error),
        };
        let subject = format!("CONSUMER.DURABLE.CREATE.{live}.{consumer}");
        let body = json!({ "stream_name": live, "config": config });
        match connection.api(call, &subject, &body).await? {
            Ok(info) => return Ok(time_of(&info["config"])),
            Err(refusal) if NAME_TAKEN.contains(&refusal.code) && tries < TRIES => {}
            Err(refusal) => return Err(connection.error_of(call, live, consumer, refusal)),
        }
    }
}

fn time_of(config: &Value) -> Duration {
    config["ack_wait"]
        .as_u64()
        .map_or(LEASE_TIME, Duration::from_nanos)
}

/// Fails if the consumer has seen more than its stream has. The consumer is asked first: both
/// only grow, so one that is ahead then is ahead of what the stream has now.
pub(super) async fn check_not_ahead(
    connection: &Connection,
    names: &Names,
) -> Result<(), JetStreamError> {
    let Names { live, consumer, .. } = names;
    let info = connection.consumer_info(names).await?;
    let delivered = info["delivered"]["stream_seq"].as_u64().unwrap_or(0);
    let info = connection.stream_info(live, &Value::Null).await?;
    let last = info["state"]["last_seq"].as_u64().unwrap_or(0);
    match delivered > last {
        false => Ok(()),
        true => Err(JetStreamError::ConsumerAhead {
            stream: live.clone(),
            consumer: (*consumer).to_owned(),
            delivered,
            last,
        }),
    }
}

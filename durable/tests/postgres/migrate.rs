//! The tables, made and found.

use microbatch_durable::{PostgresError, PostgresStore, Store};
use tokio::task::JoinSet;

use crate::job::job;
use crate::server::{connect, server, url};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_processes_may_migrate_at_once_and_again() {
    let Some(server) = server() else {
        return;
    };
    // A name that has to be quoted.
    let schema = "several \"at\" Noon's";
    let mut all = JoinSet::new();
    for _ in 0..8 {
        let url = url(&server);
        all.spawn(async move {
            let store = PostgresStore::builder()
                .schema(schema)
                .connect(&url)
                .await?;
            store.migrate().await?;
            store.migrate().await?;
            store.append(&[job("a")]).await
        });
    }
    let mut new = 0;
    while let Some(outcome) = all.join_next().await {
        new += usize::from(outcome.unwrap().unwrap() == [microbatch_durable::Appended::New]);
    }
    assert_eq!(new, 1, "one of eight appends of an id is new");
}

#[tokio::test]
async fn tables_of_a_later_version_are_refused_and_left_alone() {
    let Some(server) = server() else {
        return;
    };
    let store = PostgresStore::builder()
        .schema("later")
        .connect(&url(&server))
        .await
        .unwrap();
    store.migrate().await.unwrap();
    let client = connect(&server).await;
    client
        .batch_execute("UPDATE later.version SET number = 99")
        .await
        .unwrap();
    let error = store.migrate().await.unwrap_err();
    let PostgresError::Version {
        schema,
        found,
        known,
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!((&**schema, *found, *known), ("\"later\"", 99, 1));
    let number: i32 = client
        .query_one("SELECT number FROM later.version", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(number, 99);
    // The connection is as it was: no transaction is open.
    store.append(&[job("a")]).await.unwrap();
    assert_eq!(store.depth().await.unwrap().ready, 1);
}

#[tokio::test]
async fn a_migration_that_fails_leaves_nothing() {
    let Some(server) = server() else {
        return;
    };
    let client = connect(&server).await;
    client
        .batch_execute("CREATE SCHEMA half; CREATE TABLE half.jobs (id int)")
        .await
        .unwrap();
    let store = PostgresStore::builder()
        .schema("half")
        .connect(&url(&server))
        .await
        .unwrap();
    let error = store.migrate().await.unwrap_err();
    assert!(matches!(error, PostgresError::Database { .. }), "{error:?}");
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'half'";
    let tables: i64 = client.query_one(tables, &[]).await.unwrap().get(0);
    assert_eq!(tables, 1);
}

#[tokio::test]
async fn a_database_of_another_encoding_is_refused() {
    let Some(server) = server() else {
        return;
    };
    let client = connect(&server).await;
    let sql = "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0";
    client.batch_execute(sql).await.unwrap();
    let url = format!("{} dbname=latin", url(&server));
    let store = PostgresStore::connect(&url).await.unwrap();
    let error = store.migrate().await.unwrap_err();
    assert!(
        matches!(&error, PostgresError::Encoding { found } if found == "LATIN1"),
        "{error:?}"
    );
}

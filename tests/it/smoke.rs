use microbatch::*;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn size_and_interval() {
    let sizes = Arc::new(Mutex::new(vec![]));
    let log = sizes.clone();
    let token = CancellationToken::new();
    let mb = MicroBatch::builder(|jobs: Vec<u64>| async move {
        Ok::<_, String>(jobs.iter().map(|j| j + 1).collect())
    })
    .on_batch(move |r| log.lock().unwrap().push((r.size, r.reason, r.waited)))
    .build_running(token.clone())
    .unwrap();
    assert!(mb.is_running());
    let hs: Vec<_> = (0..7).map(|i| mb.submit(i)).collect();
    for (i, h) in hs.into_iter().enumerate() {
        assert_eq!(h.await.unwrap(), i as u64 + 1);
    }
    println!("{:?}", sizes.lock().unwrap());
    let h = mb.submit(1);
    mb.flush().await;
    assert!(h.is_finished());
    let h = mb.submit(1);
    mb.shutdown().await.unwrap();
    assert_eq!(h.await.unwrap(), 2);
    assert!(matches!(mb.submit(1).await, Err(JobError::Closed)));
    println!("{:?} {:?}", sizes.lock().unwrap(), mb.stats());
    assert!(!mb.is_running());
}

#[tokio::test(start_paused = true)]
async fn backpressure() {
    let mb = MicroBatch::builder(|jobs: Vec<u64>| async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok::<_, String>(jobs)
    })
    .queue_capacity(2)
    .max_batch_size(2)
    .build_running(CancellationToken::new())
    .unwrap();
    let out = mb.submit_all(0..50).await;
    assert_eq!(
        out.into_iter().map(|r| r.unwrap()).collect::<Vec<_>>(),
        (0..50).collect::<Vec<_>>()
    );
    let p = mb.reserve().await.unwrap();
    assert_eq!(p.submit(3).await.unwrap(), 3);
    println!("{:?}", mb.stats());
}

#[tokio::test(start_paused = true)]
async fn panics_and_deadline() {
    let mb = MicroBatch::builder(|jobs: Vec<u64>| async move {
        if jobs[0] == 0 {
            panic!("boom {}", jobs[0])
        }
        if jobs[0] == 1 {
            std::future::pending::<()>().await
        }
        Ok::<_, String>(jobs)
    })
    .max_batch_size(1)
    .build_running(CancellationToken::new())
    .unwrap();
    println!("{:?}", mb.submit(0).await);
    let h = mb.submit(1);
    let h2 = mb.submit(2);
    tokio::task::yield_now().await;
    println!("{:?}", mb.stats());
    println!("{:?}", mb.shutdown().await);
    println!("{:?} {:?}", h.await, h2.await);
    println!("{:?}", mb.stats());
    let mb = MicroBatch::new(|jobs: Vec<u64>| async move { Ok::<_, String>(jobs) });
    let h = mb.submit(1);
    println!("{:?} {:?}", mb.shutdown().await, h.await);
    println!("{:?}", mb.start(CancellationToken::new()).await);
}

//! A relay of TCP between a client and a server, whose network can be cut.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToClient,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Pass,
    /// Bytes in this direction are kept until it passes again.
    Pause(Way),
    PauseBoth,
    /// Connections are closed in this direction, and go on in the other.
    HalfClose(Way),
    /// Open connections end. New ones pass.
    Cut,
    /// New connections are refused. Open ones pass.
    Refuse,
    /// Open connections end and new ones are refused.
    Gone,
}

pub(crate) const TROUBLES: [Mode; 8] = [
    Mode::Pause(Way::ToServer),
    Mode::Pause(Way::ToClient),
    Mode::PauseBoth,
    Mode::HalfClose(Way::ToServer),
    Mode::HalfClose(Way::ToClient),
    Mode::Cut,
    Mode::Refuse,
    Mode::Gone,
];

/// Ports that no connection gets as its own end, so that one is free whenever a relay is to
/// listen again.
const PORTS: std::ops::Range<u16> = 10_000..15_000;

/// Relays until it is dropped.
pub(crate) struct Relay {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    relaying: JoinHandle<()>,
    /// Connections that were relayed.
    pub(crate) connections: Arc<AtomicU32>,
}

impl Relay {
    /// Listens on a port of this machine.
    pub(crate) async fn start(server: SocketAddr) -> Self {
        // One that refuses is not listening, and its port is not free for another of them.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let first = std::process::id().wrapping_mul(61);
        let (address, listener) = loop {
            let at = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            let port = PORTS.start + (at % PORTS.len() as u32) as u16;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if let Ok(listener) = TcpListener::bind(address).await {
                break (address, listener);
            }
        };
        let (mode, _) = watch::channel(Mode::Pass);
        let connections = Arc::default();
        let relaying = relay(
            listener,
            address,
            server,
            mode.clone(),
            Arc::clone(&connections),
        );
        Self {
            address,
            mode,
            relaying: tokio::spawn(relaying),
            connections,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Passes, and returns once it takes connections.
    pub(crate) async fn pass(&self) -> TcpStream {
        self.set(Mode::Pass);
        loop {
            match TcpStream::connect(self.address).await {
                Ok(client) => return client,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.relaying.abort();
    }
}

async fn relay(
    listener: TcpListener,
    address: SocketAddr,
    server: SocketAddr,
    mode: watch::Sender<Mode>,
    connections: Arc<AtomicU32>,
) {
    let mut listener = Some(listener);
    let mut modes = mode.subscribe();
    let mut tasks = JoinSet::new();
    loop {
        let now = *modes.borrow_and_update();
        if matches!(now, Mode::Cut | Mode::Gone) {
            // Each is closed by being dropped.
            tasks.shutdown().await;
        }
        if matches!(now, Mode::Refuse | Mode::Gone) {
            listener = None;
        } else if listener.is_none() {
            listener = Some(TcpListener::bind(address).await.expect("the port is free"));
        }
        let accept = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = modes.changed() => changed.expect("the sender is here"),
            accepted = accept => {
                let (client, _) = accepted.expect("it listens");
                connections.fetch_add(1, Ordering::Relaxed);
                tasks.spawn(connect(client, server, mode.subscribe()));
            }
        }
        while tasks.try_join_next().is_some() {}
    }
}

async fn connect(client: TcpStream, server: SocketAddr, modes: watch::Receiver<Mode>) {
    // A server that is down refuses, and so does the relay, by closing the connection.
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("it is a socket");
        // What is dropped is reset, as by a router that forgot it.
        stream.set_zero_linger().expect("it is a socket");
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let to_server = pass(from_client, to_server, Way::ToServer, modes.clone());
    let to_client = pass(from_server, to_client, Way::ToClient, modes);
    tokio::join!(to_server, to_client);
}

/// Passes bytes on in one direction, until either end closes it.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    mut modes: watch::Receiver<Mode>,
) {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let len = tokio::select! {
            biased;
            _ = modes.wait_for(|mode| *mode == Mode::HalfClose(way)) => 0,
            len = from.read(&mut bytes) => len.unwrap_or(0),
        };
        let is_open = |mode: &Mode| *mode != Mode::PauseBoth && *mode != Mode::Pause(way);
        let is_closed = match modes.wait_for(is_open).await {
            Ok(mode) => *mode == Mode::HalfClose(way),
            Err(_) => true,
        };
        if len == 0 || is_closed || to.write_all(&bytes[..len]).await.is_err() {
            // The end is passed on, and nothing after it.
            let _ = to.shutdown().await;
            return;
        }
    }
}

/// Whether a relay does what its modes say.
#[tokio::test]
async fn each_mode_does_what_it_says() {
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let relay = Relay::start(server.local_addr().unwrap()).await;
    let long = Duration::from_secs(20);
    let short = Duration::from_millis(50);
    let byte = async |stream: &mut TcpStream, time| {
        let mut bytes = [0; 1];
        match timeout(time, stream.read(&mut bytes)).await {
            Ok(Ok(1)) => Some(bytes[0]),
            Ok(Ok(_)) => Some(0),
            Ok(Err(_)) => Some(255),
            Err(_) => None,
        }
    };
    let connect = async || {
        let client = TcpStream::connect(relay.address()).await.unwrap();
        (client, server.accept().await.unwrap().0)
    };
    for trouble in TROUBLES {
        let mut client = timeout(long, relay.pass()).await.unwrap();
        let (mut at_server, _) = server.accept().await.unwrap();
        client.write_all(b"a").await.unwrap();
        at_server.write_all(b"b").await.unwrap();
        assert_eq!(byte(&mut at_server, long).await, Some(b'a'));
        assert_eq!(byte(&mut client, long).await, Some(b'b'));
        relay.set(trouble);
        if matches!(trouble, Mode::Refuse | Mode::Gone) {
            while TcpStream::connect(relay.address()).await.is_ok() {}
        }
        if !matches!(trouble, Mode::Refuse) {
            // Until it is seen by the tasks.
            tokio::time::sleep(short).await;
        }
        let _ = client.write_all(b"c").await;
        let _ = at_server.write_all(b"d").await;
        let arrived = |mode| match mode {
            // Whether it is reset before the end is seen, nobody knows.
            Some(0 | 255) => Some(0),
            arrived => arrived,
        };
        let (c, d, closed) = (Some(b'c'), Some(b'd'), Some(0));
        let expected = match trouble {
            Mode::Pause(Way::ToServer) => (None, d),
            Mode::Pause(Way::ToClient) => (c, None),
            Mode::PauseBoth => (None, None),
            Mode::HalfClose(Way::ToServer) => (closed, d),
            Mode::HalfClose(Way::ToClient) => (c, closed),
            Mode::Cut | Mode::Gone => (closed, closed),
            Mode::Pass | Mode::Refuse => (c, d),
        };
        let times = [expected.0, expected.1].map(|byte| byte.map_or(short, |_| long));
        let found = (
            arrived(byte(&mut at_server, times[0]).await),
            arrived(byte(&mut client, times[1]).await),
        );
        assert_eq!(found, expected, "{trouble:?}");
        relay.set(Mode::Pass);
        if matches!(trouble, Mode::Pause(_) | Mode::PauseBoth) {
            if expected.0.is_none() {
                assert_eq!(byte(&mut at_server, long).await, c, "{trouble:?}");
            }
            if expected.1.is_none() {
                assert_eq!(byte(&mut client, long).await, d, "{trouble:?}");
            }
        }
        drop((client, at_server));
        if trouble == Mode::Cut {
            let (mut client, mut at_server) = connect().await;
            client.write_all(b"e").await.unwrap();
            assert_eq!(byte(&mut at_server, long).await, Some(b'e'));
        }
    }
    assert!(relay.connections.load(Ordering::Relaxed) > 8);
}

//! A TCP proxy that can cut, delay, fall silent, and hold back the acks.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// What the proxy does to what passes.
#[derive(Debug, Clone, Copy, Default)]
struct Mode {
    cuts: u64,
    delay: Duration,
    mute: bool,
    /// Connections below this number stay silent for good.
    deaf_below: u64,
    hold_acks: bool,
}

impl Mode {
    fn is_mute_to(&self, number: u64) -> bool {
        self.mute || number < self.deaf_below
    }
}

/// The proxy, until it goes out of scope.
pub struct Proxy {
    /// The broker's URL by way of the proxy.
    pub url: String,
    mode: watch::Sender<Mode>,
    accepted: watch::Receiver<u64>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn to(broker: &str) -> Self {
        let authority = broker.split('@').nth(1).and_then(|rest| rest.split('/').next()).unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = broker.replace(&authority, &listener.local_addr().unwrap().to_string());
        let (mode, modes) = watch::channel(Mode::default());
        let (count, accepted) = watch::channel(0);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = *count.borrow();
                count.send_replace(number + 1);
                tokio::spawn(serve(number, client, authority.clone(), modes.clone()));
            }
        });
        Self { url, mode, accepted, accepting }
    }

    /// Closes both sides of every connection; new ones work.
    pub fn cut(&self) {
        self.mode.send_modify(|mode| mode.cuts += 1);
    }

    /// Lets everything pass so much later, each way.
    pub fn delay(&self, delay: Duration) {
        self.mode.send_modify(|mode| mode.delay = delay);
    }

    /// Accepts, and forwards nothing any more.
    pub fn fall_silent(&self) {
        self.mode.send_modify(|mode| mode.mute = true);
    }

    /// Serves new connections again; the ones of before stay silent.
    pub fn serve_new_connections(&self) {
        let deaf_below = *self.accepted.borrow();
        self.mode.send_modify(|mode| (mode.mute, mode.deaf_below) = (false, deaf_below));
    }

    /// Keeps back, for good, what the worker says on the connections it consumes by.
    pub fn hold_acks(&self) {
        self.mode.send_modify(|mode| mode.hold_acks = true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn serve(number: u64, client: TcpStream, broker: String, mut modes: watch::Receiver<Mode>) {
    let cuts = modes.borrow().cuts;
    let Ok(server) = TcpStream::connect(broker).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(number, from_client, to_server, modes.clone(), true) => {}
        () = pump(number, from_server, to_client, modes.clone(), false) => {}
        _ = modes.wait_for(|mode| mode.cuts != cuts) => {}
    }
}

/// Carries bytes one way until an end closes.
async fn pump(
    number: u64,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut modes: watch::Receiver<Mode>,
    from_worker: bool,
) {
    let (sender, mut passing) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let delays = modes.clone();
    let reading = async move {
        let mut chunk = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut chunk).await {
            let _ = sender.send((Instant::now() + delays.borrow().delay, chunk[..read].to_vec()));
        }
        // The other end of a silent connection does not hear of the close either.
        if delays.borrow().is_mute_to(number) {
            std::future::pending::<()>().await;
        }
    };
    let writing = async move {
        let mut consumes = false;
        while let Some((due, bytes)) = passing.recv().await {
            sleep_until(due).await;
            // A client tells its connection's name when it opens it.
            consumes |= from_worker && bytes.windows(17).any(|window| window == b"deckswain consume");
            let free = |mode: &Mode| !(mode.is_mute_to(number) || mode.hold_acks && consumes);
            let is_open = modes.wait_for(free).await.is_ok();
            if !is_open || to.write_all(&bytes).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(reading, writing);
}

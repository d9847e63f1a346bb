//! Reading from the broker so that no message can end a connection, or the process.
//!
//! The client library gives a connection up when a short string is not UTF-8 or a frame is larger than
//! agreed, and a header that nests deep enough overflows its stack. So each connection reads through a
//! [`Guard`], which passes frames on as they are and mends those that would do harm.

mod mend;
mod scan;

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_lite::{AsyncRead, AsyncWrite, Stream};
use lapin::types::{ChannelId, DeliveryTag};
use reactor_trait::{AsyncIOHandle, IOHandle, Reactor, TimeReactor};
use tokio_reactor_trait::Tokio;

use scan::Scanner;

/// Bytes that are read at once; bodies are read straight into the client library's buffer.
const CHUNK_BYTES: usize = 16 * 1024;

type Key = (ChannelId, DeliveryTag);

/// The deliveries of one connection that were mended, each with the reason in words.
#[derive(Debug, Clone, Default)]
pub struct Flaws(Arc<Mutex<HashMap<Key, String>>>);

impl Flaws {
    /// Returns why a delivery cannot be read as it was published, if so; asked once for each delivery.
    pub fn take(&self, channel: ChannelId, tag: DeliveryTag) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&(channel, tag))
    }

    fn note(&self, key: Key, flaw: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, flaw);
    }
}

/// A reactor for the client library whose streams are guarded.
pub struct GuardedReactor {
    inner: Tokio,
    frame_bytes_max: u32,
    kept_free: u32,
    flaws: Flaws,
}

impl GuardedReactor {
    /// A reactor on the current runtime for a client that asks for frames of at most `frame_bytes_max` and
    /// wants `kept_free` bytes of them free of properties.
    pub fn new(frame_bytes_max: u32, kept_free: u32, flaws: Flaws) -> Self {
        Self { inner: Tokio::current(), frame_bytes_max, kept_free, flaws }
    }
}

impl Reactor for GuardedReactor {
    fn register(&self, socket: IOHandle) -> io::Result<Box<dyn AsyncIOHandle + Send>> {
        let inner = Box::into_pin(self.inner.register(socket)?);
        let scanner = Scanner::new(self.frame_bytes_max, self.kept_free, self.flaws.clone());
        let chunk = vec![0; CHUNK_BYTES].into();
        Ok(Box::new(Guard { inner, scanner, chunk, mended: Vec::new(), handed_out: 0 }))
    }
}

impl TimeReactor for GuardedReactor {
    fn sleep<'a, 'b>(&'a self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        self.inner.sleep(time)
    }

    fn interval(&self, time: Duration) -> Box<dyn Stream<Item = Instant>> {
        self.inner.interval(time)
    }
}

/// A connection's stream: bytes go out as they are, and come in mended.
struct Guard {
    inner: Pin<Box<dyn AsyncIOHandle + Send>>,
    scanner: Scanner,
    chunk: Box<[u8]>,
    /// Frames to be handed out, from `handed_out` on.
    mended: Vec<u8>,
    handed_out: usize,
}

impl AsyncRead for Guard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            let waiting = &this.mended[this.handed_out..];
            if !waiting.is_empty() {
                let count = waiting.len().min(into.len());
                into[..count].copy_from_slice(&waiting[..count]);
                this.handed_out += count;
                return Poll::Ready(Ok(count));
            }
            this.mended.clear();
            this.handed_out = 0;
            let direct = this.scanner.body_bytes_left().min(into.len());
            if direct > 0 {
                let count = ready!(this.inner.as_mut().poll_read(context, &mut into[..direct]))?;
                this.scanner.skip_body(count);
                return Poll::Ready(Ok(count));
            }
            let count = ready!(this.inner.as_mut().poll_read(context, &mut this.chunk))?;
            if count == 0 {
                return Poll::Ready(Ok(0));
            }
            this.scanner.scan(&this.chunk[..count], &mut this.mended);
        }
    }
}

impl AsyncWrite for Guard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.inner.as_mut().poll_write(context, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.inner.as_mut().poll_write_vectored(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_close(context)
    }
}

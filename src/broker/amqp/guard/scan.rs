//! The broker's bytes cut into frames.

use std::collections::HashMap;

use lapin::types::{ChannelId, DeliveryTag};

use super::Flaws;
use super::mend::{Mended, Method, mend_header, mend_method};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xCE;
/// A frame's type, channel and length.
const PREFIX_BYTES: usize = 7;
/// The same and the byte at its end.
const OVERHEAD_BYTES: usize = PREFIX_BYTES + 1;
/// A larger method or header comes from no broker: RabbitMQ's own limit is 128 KiB, to which a message's
/// deaths add.
const FRAME_BYTES_LIMIT: usize = 4 * 1024 * 1024;

/// A delivery whose header is still to come.
struct Begun {
    tag: DeliveryTag,
    flaws: Vec<String>,
}

/// Reads frames from pieces of any size, and mends them.
pub struct Scanner {
    /// The beginning of a frame that is not complete.
    rest: Vec<u8>,
    /// The frame size that the broker offered and the client library keeps to.
    frame_bytes_max: usize,
    /// How much of a frame is to be free of a delivery's properties.
    kept_free: usize,
    /// How much is still to come of a body's frame, which is passed on as it is.
    body_bytes_left: usize,
    /// Set where the peer does not speak AMQP: the client library tells so.
    is_foreign: bool,
    begun: HashMap<ChannelId, Begun>,
    flaws: Flaws,
}

impl Scanner {
    /// Scans for a client that asks for frames of at most `frame_bytes_max` and wants `kept_free` bytes of
    /// them free of properties.
    pub fn new(frame_bytes_max: u32, kept_free: u32, flaws: Flaws) -> Self {
        Self {
            rest: Vec::new(),
            frame_bytes_max: frame_bytes_max as usize,
            kept_free: kept_free as usize,
            body_bytes_left: 0,
            is_foreign: false,
            begun: HashMap::new(),
            flaws,
        }
    }

    /// How many of the next bytes belong to a body and can be read without [`Scanner::scan`].
    pub fn body_bytes_left(&self) -> usize {
        self.body_bytes_left
    }

    /// Tells that so many bytes of the body were read.
    pub fn skip_body(&mut self, count: usize) {
        self.body_bytes_left = self.body_bytes_left.saturating_sub(count);
    }

    /// Takes the next bytes and appends all frames that are complete to `mended`.
    pub fn scan(&mut self, bytes: &[u8], mended: &mut Vec<u8>) {
        if self.rest.is_empty() {
            let used = self.pass(bytes, mended);
            self.rest.extend_from_slice(&bytes[used..]);
        } else {
            let mut rest = std::mem::take(&mut self.rest);
            rest.extend_from_slice(bytes);
            let used = self.pass(&rest, mended);
            rest.drain(..used);
            self.rest = rest;
        }
    }

    /// Passes on what is complete, and tells how many bytes that were.
    fn pass(&mut self, bytes: &[u8], mended: &mut Vec<u8>) -> usize {
        let mut used = 0;
        loop {
            let left = &bytes[used..];
            if self.body_bytes_left > 0 || self.is_foreign {
                let count = if self.is_foreign { left.len() } else { left.len().min(self.body_bytes_left) };
                mended.extend_from_slice(&left[..count]);
                self.skip_body(count);
                used += count;
                if used == bytes.len() {
                    return used;
                }
                continue;
            }
            let Some(&[kind, high, low, a, b, c, d]) = left.first_chunk::<PREFIX_BYTES>() else {
                return used;
            };
            let length = OVERHEAD_BYTES + u32::from_be_bytes([a, b, c, d]) as usize;
            match kind {
                BODY => self.body_bytes_left = length,
                METHOD | HEADER if length <= FRAME_BYTES_LIMIT => {
                    let Some(frame) = left.get(..length) else { return used };
                    self.mend(kind, ChannelId::from_be_bytes([high, low]), frame, mended);
                    used += length;
                }
                HEARTBEAT if length == OVERHEAD_BYTES => self.body_bytes_left = length,
                _ => self.is_foreign = true,
            }
        }
    }

    fn mend(&mut self, kind: u8, channel: ChannelId, frame: &[u8], mended: &mut Vec<u8>) {
        let payload = frame.get(PREFIX_BYTES..frame.len() - 1).unwrap_or_default();
        let new_payload = match kind {
            METHOD => self.mend_method(channel, payload),
            _ => self.mend_header(channel, payload),
        };
        let Some(payload) = new_payload else {
            mended.extend_from_slice(frame);
            return;
        };
        mended.extend_from_slice(&frame[..3]);
        mended.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
        mended.extend_from_slice(&payload);
        mended.push(FRAME_END);
    }

    fn mend_method(&mut self, channel: ChannelId, payload: &[u8]) -> Option<Vec<u8>> {
        match mend_method(payload) {
            Method::Tune { frame_bytes_max } => {
                if frame_bytes_max > 0 {
                    self.frame_bytes_max = self.frame_bytes_max.min(frame_bytes_max);
                }
                None
            }
            Method::Deliver { tag, mended } => {
                let (payload, flaws) = split(mended);
                self.begun.insert(channel, Begun { tag, flaws });
                payload
            }
            Method::Other { mended } => split(mended).0,
        }
    }

    fn mend_header(&mut self, channel: ChannelId, payload: &[u8]) -> Option<Vec<u8>> {
        let bytes_max = self.frame_bytes_max.saturating_sub(OVERHEAD_BYTES);
        let properties_bytes = payload.len();
        let properties_bytes_max = bytes_max.saturating_sub(self.kept_free.min(bytes_max / 4));
        let (payload, mut new_flaws) = split(mend_header(payload, bytes_max));
        if properties_bytes > properties_bytes_max && new_flaws.is_empty() {
            new_flaws.push(format!("the properties are too large ({properties_bytes} bytes)"));
        }
        // A returned message has a header too, but is no delivery.
        if let Some(Begun { tag, mut flaws }) = self.begun.remove(&channel) {
            flaws.extend(new_flaws);
            if !flaws.is_empty() {
                // Noted before the client library can hand the delivery out.
                self.flaws.note((channel, tag), flaws.join("; "));
            }
        }
        payload
    }
}

fn split(mended: Option<Mended>) -> (Option<Vec<u8>>, Vec<String>) {
    mended.map_or((None, Vec::new()), |Mended { payload, flaws }| (Some(payload), flaws))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of this type on channel 1.
    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1][..], &length, payload, &[FRAME_END]].concat()
    }

    fn short(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()], text].concat()
    }

    fn long(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    fn delivery(tag: u8, routing_key: &[u8], properties: &[u8], body: &[u8]) -> Vec<u8> {
        let start = [&[0, 60, 0, 60][..], &short(b"c"), &[0, 0, 0, 0, 0, 0, 0, tag, 0]].concat();
        let deliver = [start, short(b"x"), short(routing_key)].concat();
        let length = u64::try_from(body.len()).unwrap().to_be_bytes();
        let header = [&[0, 60, 0, 0][..], &length, properties].concat();
        [frame(METHOD, &deliver), frame(HEADER, &header), frame(BODY, body)].concat()
    }

    /// A `message_id`, and a table of headers behind it in the flags and before it on the wire.
    fn properties(headers: &[u8], message_id: &[u8]) -> Vec<u8> {
        [&[0b0010_0000, 0b1000_0000][..], &long(headers), &short(message_id)].concat()
    }

    fn text_header(name: &[u8], text: &[u8]) -> Vec<u8> {
        [short(name), b"S".to_vec(), long(text)].concat()
    }

    /// Scans in pieces of so many bytes, bodies past the scanner where they can go there.
    fn scanned(bytes: &[u8], piece: usize, flaws: &Flaws) -> Vec<u8> {
        let mut scanner = Scanner::new(16 * 1024, 4 * 1024, flaws.clone());
        let (mut mended, mut left) = (Vec::new(), bytes);
        while !left.is_empty() {
            let body = scanner.body_bytes_left().min(piece).min(left.len());
            let count = if body > 0 { body } else { piece.min(left.len()) };
            let (read, rest) = left.split_at(count);
            match body {
                0 => scanner.scan(read, &mut mended),
                _ => {
                    mended.extend_from_slice(read);
                    scanner.skip_body(body);
                }
            }
            left = rest;
        }
        mended
    }

    #[test]
    fn readable_frames_pass_unchanged_in_pieces_of_any_size() {
        let headers =
            [text_header(b"a", b"\xff is any byte"), [short(b"v"), b"V".to_vec()].concat()].concat();
        let stream = [
            delivery(1, b"k", &properties(&headers, b"id"), b"body"),
            frame(HEARTBEAT, b""),
            delivery(2, b"k", &[0, 0], &[7; 1000]),
            frame(METHOD, &[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
        ]
        .concat();
        for piece in (1..50).chain([stream.len()]) {
            let flaws = Flaws::default();
            assert!(scanned(&stream, piece, &flaws) == stream, "in pieces of {piece}");
            assert_eq!((flaws.take(1, 1), flaws.take(1, 2)), (None, None));
        }
    }

    #[test]
    fn a_peer_that_does_not_speak_amqp_is_heard_unchanged() {
        for said in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"AMQP\x00\x00\x09\x01", b"SSH-2.0-x\r\n"] {
            assert_eq!(scanned(said, 3, &Flaws::default()), said);
        }
    }

    #[test]
    fn unreadable_strings_are_spelled_and_what_cannot_be_kept_is_dropped_and_named() {
        let inner = [short(b"in"), b"F".to_vec(), long(&[short(b"\xfe"), b"V".to_vec()].concat())].concat();
        let deep = (0..40).fold(b"V".to_vec(), |value, _| [b"A".to_vec(), long(&value)].concat());
        let deep = [short(b"deep"), deep].concat();
        let wide = text_header(b"wide", &[b'x'; 20_000]);
        let kept = text_header(b"kept", b"x");
        let headers = [kept.clone(), inner, wide, text_header(b"n\xff", b"y"), deep].concat();
        let stream = [
            delivery(1, b"k\xff", &properties(&headers, b"\xc3\xa9\xff"), b"b"),
            delivery(2, b"k", &[0, 0], b""),
        ];
        let flaws = Flaws::default();
        let kept = [kept, text_header(b"n\\xff", b"y")].concat();
        let expected = [
            delivery(1, b"k\\xff", &properties(&kept, "\u{e9}\\xff".as_bytes()), b"b"),
            delivery(2, b"k", &[0, 0], b""),
        ];
        assert!(scanned(&stream.concat(), 100, &flaws) == expected.concat());
        assert_eq!(
            flaws.take(1, 1).unwrap(),
            "routing key is not UTF-8; header \"in\" holds a name that is not UTF-8; the name of header \"n\\\\xff\" is not UTF-8; header \"deep\" nests too deep; message_id is not UTF-8; header \"wide\" is too large (20005 bytes)"
        );
        assert_eq!((flaws.take(1, 1), flaws.take(1, 2)), (None, None));
    }

    #[test]
    fn properties_that_leave_too_little_room_for_further_headers_are_named_and_stay() {
        let stream = delivery(1, b"k", &properties(&text_header(b"a", &[b'x'; 13_000]), b"id"), b"b");
        let flaws = Flaws::default();
        assert!(scanned(&stream, 1000, &flaws) == stream);
        assert_eq!(flaws.take(1, 1).unwrap(), "the properties are too large (13028 bytes)");
    }

    #[test]
    fn properties_that_end_too_early_or_are_unknown_are_dropped() {
        let cut = &properties(&text_header(b"a", b"x"), b"id")[..12];
        for damaged in [cut, &[0, 1, 0, 0], &[0x20, 0, 0, 0, 0, 3, 1, b'a', b'?'], &[0, 0, 9]] {
            let flaws = Flaws::default();
            let expected = delivery(1, b"k", &[0, 0], b"b");
            assert!(scanned(&delivery(1, b"k", damaged, b"b"), 1000, &flaws) == expected, "{damaged:?}");
            assert_eq!(flaws.take(1, 1).unwrap(), "the properties cannot be read");
        }
    }
}

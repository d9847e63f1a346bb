//! AMQP written byte by byte, for messages that no client library writes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use super::PATIENCE;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xCE;
/// The most channels that RabbitMQ grants.
const CHANNEL_MAX: u16 = 2047;
/// RabbitMQ's own limit, which the widest headers need.
const FRAME_BYTES_MAX: u32 = 128 * 1024;

/// The bit of the flag of a message's headers.
const HEADERS_BIT: u8 = 13;

/// A message's properties as they stand on the wire.
#[derive(Clone, Default)]
pub struct RawProperties {
    /// By the bit of the flag, the highest first on the wire.
    fields: std::collections::BTreeMap<std::cmp::Reverse<u8>, Vec<u8>>,
    headers: Vec<Vec<u8>>,
}

impl RawProperties {
    /// The names of the short strings, each with the bit of its flag.
    pub const SHORT: [(&'static str, u8); 10] = [
        ("content_type", 15),
        ("content_encoding", 14),
        ("correlation_id", 10),
        ("reply_to", 9),
        ("expiration", 8),
        ("message_id", 7),
        ("type", 5),
        ("user_id", 4),
        ("app_id", 3),
        ("cluster_id", 2),
    ];

    pub fn short(mut self, name: &str, value: &[u8]) -> Self {
        let (_, bit) = Self::SHORT.into_iter().find(|(known, _)| *known == name).expect("a short string");
        self.fields.insert(std::cmp::Reverse(bit), short(value));
        self
    }

    pub fn persistent(mut self) -> Self {
        self.fields.insert(std::cmp::Reverse(12), vec![2]);
        self
    }

    pub fn priority(mut self, priority: u8) -> Self {
        self.fields.insert(std::cmp::Reverse(11), vec![priority]);
        self
    }

    /// Each value begins with the byte of its type.
    pub fn headers(mut self, headers: &[(&[u8], Vec<u8>)]) -> Self {
        self.fields.insert(std::cmp::Reverse(HEADERS_BIT), table(headers));
        self.headers = headers.iter().map(|(name, value)| [short(name), value.clone()].concat()).collect();
        self
    }

    /// Whether these are among the properties that a broker handed out; it adds headers of its own.
    pub fn are_among(&self, properties: &[u8]) -> bool {
        let others = self.fields.iter().filter(|(bit, _)| bit.0 != HEADERS_BIT).map(|(_, field)| field);
        let is_there = |field: &Vec<u8>| properties.windows(field.len()).any(|window| window == field);
        others.chain(&self.headers).all(is_there)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let flags = self.fields.keys().fold(0_u16, |flags, bit| flags | 1 << bit.0);
        [flags.to_be_bytes().to_vec(), self.fields.values().flatten().copied().collect()].concat()
    }
}

pub fn short(value: &[u8]) -> Vec<u8> {
    [&[u8::try_from(value.len()).expect("a short string")], value].concat()
}

/// A length of four bytes, and the bytes.
pub fn long(value: &[u8]) -> Vec<u8> {
    [&u32::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

pub fn table(fields: &[(&[u8], Vec<u8>)]) -> Vec<u8> {
    long(&fields.iter().flat_map(|(name, value)| [short(name), value.clone()].concat()).collect::<Vec<u8>>())
}

/// A header's value that is a string.
pub fn text(value: &[u8]) -> Vec<u8> {
    [b"S".to_vec(), long(value)].concat()
}

/// A connection to the broker with one channel on which publishes are confirmed.
pub struct RawConnection(TcpStream);

impl RawConnection {
    pub fn open(url: &str) -> Self {
        let (_, rest) = url.split_once("://").unwrap();
        let (user, rest) = rest.split_once('@').unwrap_or(("guest:guest", rest));
        let authority = rest.split('/').next().unwrap();
        let stream = TcpStream::connect(authority).expect("the broker answers");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut raw = Self(stream);
        raw.0.write_all(b"AMQP\x00\x00\x09\x01").unwrap();
        raw.expect(0, (10, 10));
        let response = format!("\0{}", user.replace(':', "\0"));
        let start = [table(&[]), short(b"PLAIN"), long(response.as_bytes()), short(b"en_US")].concat();
        raw.call(0, (10, 11), &start, (10, 30));
        let tuned = [&CHANNEL_MAX.to_be_bytes()[..], &FRAME_BYTES_MAX.to_be_bytes(), &[0, 0]].concat();
        raw.method(0, (10, 31), &tuned);
        raw.call(0, (10, 40), &[short(b"/"), vec![0, 0]].concat(), (10, 41));
        raw.call(1, (20, 10), &[0], (20, 11));
        raw.call(1, (85, 10), &[0], (85, 11));
        raw
    }

    /// Publishes one message and waits for its confirm.
    pub fn publish(&mut self, exchange: &str, routing_key: &[u8], properties: &RawProperties, body: &[u8]) {
        let publish = [&[0, 0][..], &short(exchange.as_bytes()), &short(routing_key), &[0]].concat();
        self.method(1, (60, 40), &publish);
        let length = u64::try_from(body.len()).unwrap().to_be_bytes();
        let header = [&[0, 60, 0, 0][..], &length, &properties.bytes()].concat();
        self.frame(HEADER, 1, &header);
        for part in body.chunks(64 * 1024) {
            self.frame(BODY, 1, part);
        }
        self.expect(1, (60, 80));
    }

    /// Takes the next message from a queue: its properties and its body.
    pub fn take(&mut self, queue: &str) -> (Vec<u8>, Vec<u8>) {
        let get = [&[0, 0][..], &short(queue.as_bytes()), &[1]].concat();
        self.call(1, (60, 70), &get, (60, 71));
        let (_, _, header) = self.read();
        let length = usize::try_from(u64::from_be_bytes(header[4..12].try_into().unwrap())).unwrap();
        let mut body = Vec::new();
        while body.len() < length {
            body.extend(self.read().2);
        }
        (header[12..].to_vec(), body)
    }

    fn call(&mut self, channel: u16, method: (u16, u16), arguments: &[u8], answer: (u16, u16)) {
        self.method(channel, method, arguments);
        self.expect(channel, answer);
    }

    fn method(&mut self, channel: u16, (class, method): (u16, u16), arguments: &[u8]) {
        let payload = [&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat();
        self.frame(METHOD, channel, &payload);
    }

    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let frame = [&[kind][..], &channel.to_be_bytes(), &long(payload), &[FRAME_END]].concat();
        self.0.write_all(&frame).unwrap();
    }

    fn expect(&mut self, channel: u16, (class, method): (u16, u16)) {
        let (kind, on, payload) = self.read();
        let told = String::from_utf8_lossy(&payload).into_owned();
        let expected = [class.to_be_bytes(), method.to_be_bytes()].concat();
        assert_eq!((kind, on, &payload[..4]), (METHOD, channel, expected.as_slice()), "{told}");
    }

    fn read(&mut self) -> (u8, u16, Vec<u8>) {
        loop {
            let mut start = [0; 7];
            self.0.read_exact(&mut start).expect("the broker answers");
            let length = u32::from_be_bytes(start[3..].try_into().unwrap());
            let mut payload = vec![0; length as usize + 1];
            self.0.read_exact(&mut payload).unwrap();
            payload.pop();
            if start[0] != 8 {
                return (start[0], u16::from_be_bytes([start[1], start[2]]), payload);
            }
        }
    }
}

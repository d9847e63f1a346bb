//! Methods and properties that the client library cannot read, made readable.

/// Tables and lists nested deeper than this are dropped: the client library reads them by recursion.
const DEPTH_MAX: u8 = 32;
/// The longest short string, in bytes.
const SHORT_BYTES_MAX: usize = 255;
/// Names of headers are cut to so many characters where a flaw names them.
const NAME_CHARS_MAX: usize = 64;

const CONNECTION_TUNE: (u16, u16) = (10, 30);
const CONNECTION_CLOSE: (u16, u16) = (10, 50);
const CHANNEL_CLOSE: (u16, u16) = (20, 40);
const BASIC_RETURN: (u16, u16) = (60, 50);
const BASIC_DELIVER: (u16, u16) = (60, 60);
const BASIC_GET_OK: (u16, u16) = (60, 71);

/// How a property is written.
#[derive(Clone, Copy)]
enum Form {
    Short,
    Table,
    Bytes(usize),
}

/// A message's properties in the order in which they are written; the first has the highest flag.
const PROPERTIES: [(&str, Form); 14] = [
    ("content_type", Form::Short),
    ("content_encoding", Form::Short),
    ("headers", Form::Table),
    ("delivery_mode", Form::Bytes(1)),
    ("priority", Form::Bytes(1)),
    ("correlation_id", Form::Short),
    ("reply_to", Form::Short),
    ("expiration", Form::Short),
    ("message_id", Form::Short),
    ("timestamp", Form::Bytes(8)),
    ("type", Form::Short),
    ("user_id", Form::Short),
    ("app_id", Form::Short),
    ("cluster_id", Form::Short),
];
/// The flags of no property: a second word of flags, and one that is reserved.
const FLAGS_UNKNOWN: u16 = 0b11;

/// A frame's payload in readable form, and what was wrong with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Mended {
    pub payload: Vec<u8>,
    pub flaws: Vec<String>,
}

/// A method as far as it concerns the mending; `mended` is `None` where it can stay as it is.
#[derive(Debug, PartialEq, Eq)]
pub enum Method {
    Tune { frame_bytes_max: usize },
    Deliver { tag: u64, mended: Option<Mended> },
    Other { mended: Option<Mended> },
}

/// What is still to be read of a payload; every read is `None` beyond its end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.number().map(u16::from_be_bytes)
    }

    fn short(&mut self) -> Option<&'a [u8]> {
        let [length] = self.number()?;
        self.take(length.into())
    }

    /// A short string, if it is UTF-8.
    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.short()?).ok()
    }

    fn long(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_be_bytes(self.number()?);
        self.take(usize::try_from(length).ok()?)
    }
}

/// A payload as it is written anew.
struct Output {
    payload: Vec<u8>,
    flaws: Vec<String>,
}

impl Output {
    fn short(&mut self, name: &str, bytes: &[u8]) {
        if std::str::from_utf8(bytes).is_ok() {
            self.put_short(bytes);
        } else {
            self.flaws.push(format!("{name} is not UTF-8"));
            self.put_short(spelled(bytes).as_bytes());
        }
    }

    fn put_short(&mut self, bytes: &[u8]) {
        // What `spelled` returns is no longer than a short string may be.
        self.payload.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
        self.payload.extend_from_slice(bytes);
    }

    fn mended(self) -> Option<Mended> {
        let Self { payload, flaws } = self;
        (!flaws.is_empty()).then_some(Mended { payload, flaws })
    }
}

/// Spells bytes that are not UTF-8 as `\xff`.
fn spelled(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    let end = (0..=SHORT_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text
}

/// Reads a method and mends its short strings.
pub fn mend_method(payload: &[u8]) -> Method {
    known_method(payload).unwrap_or(Method::Other { mended: None })
}

fn known_method(payload: &[u8]) -> Option<Method> {
    let mut input = Input(payload);
    let method = (input.u16()?, input.u16()?);
    if method == CONNECTION_TUNE {
        input.u16()?;
        let frame_bytes_max = usize::try_from(u32::from_be_bytes(input.number()?)).ok()?;
        return Some(Method::Tune { frame_bytes_max });
    }
    // The usual delivery is read without a copy.
    if method == BASIC_DELIVER
        && let Some(tag) = readable_delivery(Input(input.0))
    {
        return Some(Method::Deliver { tag, mended: None });
    }
    let (has_tag, names) = match method {
        BASIC_DELIVER | BASIC_GET_OK => (true, &["exchange", "routing key"][..]),
        BASIC_RETURN => (false, &["reply text", "exchange", "routing key"][..]),
        // The broker quotes names here and may cut them within a character.
        CONNECTION_CLOSE | CHANNEL_CLOSE => (false, &["reply text"][..]),
        _ => return None,
    };
    let mut output = Output { payload: payload[..4].to_vec(), flaws: Vec::new() };
    if method == BASIC_DELIVER {
        output.short("consumer tag", input.short()?);
    }
    let tag = match has_tag {
        true => {
            let number = input.number()?;
            output.payload.extend_from_slice(&number);
            // Whether it is a redelivery.
            output.payload.extend_from_slice(input.take(1)?);
            Some(u64::from_be_bytes(number))
        }
        false => {
            output.payload.extend_from_slice(input.take(2)?);
            None
        }
    };
    for name in names {
        output.short(name, input.short()?);
    }
    output.payload.extend_from_slice(input.0);
    let mended = output.mended();
    Some(match tag {
        Some(tag) => Method::Deliver { tag, mended },
        None => Method::Other { mended },
    })
}

/// The tag of a delivery whose short strings are UTF-8.
fn readable_delivery(mut arguments: Input<'_>) -> Option<u64> {
    arguments.text()?;
    let tag = arguments.number()?;
    arguments.take(1)?;
    arguments.text()?;
    arguments.text()?;
    Some(u64::from_be_bytes(tag))
}

/// Whether all properties can be read as they are; `None` is another no.
fn are_readable(properties: &[u8]) -> Option<bool> {
    let mut input = Input(properties);
    let flags = input.u16()?;
    for (at, (_, form)) in PROPERTIES.into_iter().enumerate() {
        if flags & (1 << (15 - at)) == 0 {
            continue;
        }
        match form {
            Form::Short => input.text().map(|_| ())?,
            Form::Bytes(count) => input.take(count).map(|_| ())?,
            Form::Table => skip_items(input.long()?, true, DEPTH_MAX).ok()?,
        }
    }
    Some(flags & FLAGS_UNKNOWN == 0 && input.0.is_empty())
}

/// Mends the properties of a message, in at most `bytes_max`; `None` where they can stay as they are.
pub fn mend_header(payload: &[u8], bytes_max: usize) -> Option<Mended> {
    // The class, a weight, and the size of the body.
    let (start, properties) = payload.split_at_checked(12)?;
    if payload.len() <= bytes_max && are_readable(properties) == Some(true) {
        return None;
    }
    properties_mended(start, properties, bytes_max).unwrap_or_else(|| {
        let payload = [start, &[0, 0]].concat();
        Some(Mended { payload, flaws: vec!["the properties cannot be read".to_owned()] })
    })
}

/// The outer `None` stands for properties that are none of AMQP's.
fn properties_mended(start: &[u8], properties: &[u8], bytes_max: usize) -> Option<Option<Mended>> {
    let mut input = Input(properties);
    let flags = input.u16()?;
    if flags & FLAGS_UNKNOWN != 0 {
        return None;
    }
    let mut output = Output { payload: start.to_vec(), flaws: Vec::new() };
    output.payload.extend_from_slice(&flags.to_be_bytes());
    let (mut headers, mut table_at) = (Vec::new(), None);
    for (at, (name, form)) in PROPERTIES.into_iter().enumerate() {
        if flags & (1 << (15 - at)) == 0 {
            continue;
        }
        match form {
            Form::Short => output.short(name, input.short()?),
            Form::Bytes(count) => output.payload.extend_from_slice(input.take(count)?),
            Form::Table => {
                headers = headers_mended(input.long()?, &mut output.flaws)?;
                table_at = Some(output.payload.len());
            }
        }
    }
    if !input.0.is_empty() {
        return None;
    }
    if let Some(at) = table_at {
        let room = bytes_max.saturating_sub(output.payload.len() + 4);
        let table = table_within(headers, room, &mut output.flaws);
        output.payload.splice(at..at, table);
    }
    Some(output.mended())
}

/// A header as it is written: its name, its value with the type before it.
struct Header<'a> {
    name: Vec<u8>,
    value: &'a [u8],
}

impl Header<'_> {
    fn bytes(&self) -> usize {
        1 + self.name.len() + self.value.len()
    }
}

/// Reads the headers without those whose value cannot be read; `None` where they are no table.
fn headers_mended<'a>(table: &'a [u8], flaws: &mut Vec<String>) -> Option<Vec<Header<'a>>> {
    let mut input = Input(table);
    let mut headers = Vec::new();
    while !input.0.is_empty() {
        let raw_name = input.short()?;
        let name = spelled(raw_name);
        if name.as_bytes() != raw_name {
            flaws.push(format!("the name of header {} is not UTF-8", in_short(&name)));
        }
        let before = input.0;
        match skip_value(&mut input, DEPTH_MAX)? {
            Ok(()) => {
                let value = &before[..before.len() - input.0.len()];
                headers.push(Header { name: name.into_bytes(), value });
            }
            Err(flaw) => flaws.push(format!("header {} {flaw}", in_short(&name))),
        }
    }
    Some(headers)
}

fn in_short(name: &str) -> String {
    format!("{:?}", name.chars().take(NAME_CHARS_MAX).collect::<String>())
}

/// Passes over a value and tells why the client library could not read it; `None` where it does not end.
fn skip_value(input: &mut Input<'_>, depth_max: u8) -> Option<Result<(), &'static str>> {
    let [kind] = input.number()?;
    let count = match kind {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'U' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'l' | b'L' | b'd' | b'T' => 8,
        b'D' => 5,
        b'S' | b'x' => return input.long().map(|_| Ok(())),
        b'A' => return Some(skip_items(input.long()?, false, depth_max)),
        b'F' => return Some(skip_items(input.long()?, true, depth_max)),
        _ => return None,
    };
    input.take(count).map(|_| Ok(()))
}

fn skip_items(items: &[u8], is_table: bool, depth_max: u8) -> Result<(), &'static str> {
    let Some(depth_max) = depth_max.checked_sub(1) else { return Err("nests too deep") };
    let mut input = Input(items);
    while !input.0.is_empty() {
        if is_table {
            let name = input.short().ok_or("cannot be read")?;
            std::str::from_utf8(name).map_err(|_| "holds a name that is not UTF-8")?;
        }
        skip_value(&mut input, depth_max).ok_or("cannot be read")??;
    }
    Ok(())
}

/// Writes the headers as a table, without the largest ones where it would take more than `room`.
fn table_within(mut headers: Vec<Header<'_>>, room: usize, flaws: &mut Vec<String>) -> Vec<u8> {
    let mut bytes: usize = headers.iter().map(Header::bytes).sum();
    while bytes > room
        && let Some(largest) = (0..headers.len()).max_by_key(|at| headers[*at].bytes())
    {
        let header = headers.remove(largest);
        bytes -= header.bytes();
        let name = in_short(&String::from_utf8_lossy(&header.name));
        flaws.push(format!("header {name} is too large ({} bytes)", header.value.len()));
    }
    let mut table = u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    for Header { name, value } in headers {
        table.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        table.extend_from_slice(&name);
        table.extend_from_slice(value);
    }
    table
}

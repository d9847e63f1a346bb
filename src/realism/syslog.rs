//! The edits of system logs: one line more, in the form of the lines that are there.

use chrono::{DateTime, FixedOffset, Timelike};

use super::draw::Draw;
use super::phrases::{self, phrase};
use super::{append_line, holds_forbidden_word};

/// How many of the last lines are read for their form.
const LINES_READ_MAX: usize = 200;
/// The largest process id of a 64-bit Linux.
const PID_MAX: u32 = 4_194_304;
/// Programs that run once for long, so that their process id stays.
const LONG_LIVED: [&str; 7] =
    ["systemd", "systemd-logind", "rsyslogd", "systemd-timesyncd", "chronyd", "ntpd", "dbus-daemon"];

#[derive(Clone, Copy)]
enum Stamp {
    Classic,
    Iso { offset: FixedOffset, digits: usize, zulu: bool },
}

struct Entry<'a> {
    stamp: Stamp,
    host: &'a str,
    tag: &'a str,
    pid: Option<u32>,
    message: &'a str,
}

fn stamp(line: &str) -> Option<(Stamp, &str)> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    if line.get(..3).is_some_and(|month| MONTHS.contains(&month)) {
        let clock = line.get(3..16)?.as_bytes();
        let fits = clock.iter().zip(b" dd dd:dd:dd ").all(|(b, form)| match form {
            b'd' => b.is_ascii_digit() || *b == b' ',
            form => b == form,
        });
        return fits.then_some((Stamp::Classic, &line[16..]));
    }
    let (token, rest) = line.split_once(' ')?;
    if token.len() > 40 || token.as_bytes().get(10) != Some(&b'T') {
        return None;
    }
    let offset = *DateTime::parse_from_rfc3339(token).ok()?.offset();
    let digits =
        token.split_once('.').map_or(0, |(_, tail)| tail.bytes().take_while(u8::is_ascii_digit).count());
    Some((Stamp::Iso { offset, digits: digits.min(9), zulu: token.ends_with('Z') }, rest))
}

fn entry(line: &str) -> Option<Entry<'_>> {
    let (stamp, rest) = stamp(line)?;
    let (host, rest) = rest.split_once(' ')?;
    let (head, message) = rest.split_once(": ")?;
    let (tag, pid) = match head.split_once('[') {
        Some((tag, pid)) => (tag, Some(pid.strip_suffix(']')?.parse().ok().filter(|pid| *pid <= PID_MAX)?)),
        None => (head, None),
    };
    let plain = |text: &str, extra: &str| {
        (1..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    (plain(host, "._:-") && plain(tag, "._/@()-")).then_some(Entry { stamp, host, tag, pid, message })
}

/// The entries among the last lines, the last first.
fn entries(body: &str) -> Vec<Entry<'_>> {
    body.lines().rev().take(LINES_READ_MAX).filter_map(entry).collect()
}

/// `when` by the clock of the machine that wrote the log: a stamp without an offset leaves it as it is.
fn local_time(stamp: Stamp, when: DateTime<FixedOffset>) -> DateTime<FixedOffset> {
    match stamp {
        Stamp::Classic => when,
        Stamp::Iso { offset, .. } => when.with_timezone(&offset),
    }
}

fn clock(stamp: Stamp, when: DateTime<FixedOffset>, draw: &mut Draw) -> String {
    let Stamp::Iso { offset, digits, zulu } = stamp else {
        return when.format("%b %e %H:%M:%S").to_string();
    };
    let mut out = when.format("%Y-%m-%dT%H:%M:%S").to_string();
    if digits > 0 {
        // An action's time has whole seconds; a log full of round ones would look staged.
        let drawn = draw.between(1_000, 999_998_999);
        let nanos = if when.nanosecond() == 0 { drawn } else { when.nanosecond() % 1_000_000_000 };
        out.push('.');
        out.push_str(&format!("{nanos:09}")[..digits]);
    }
    out.push_str(&if zulu { "Z".to_owned() } else { offset.to_string() });
    out
}

fn pid_after(last: Option<u32>, draw: &mut Draw) -> u32 {
    match last {
        Some(last) if last < PID_MAX - 200 => last + draw.between(2, 140),
        Some(_) => draw.between(400, 2_000),
        None => draw.between(1_100, 28_000),
    }
}

fn reusable(message: &str) -> bool {
    message.len() <= 200
        && message.bytes().all(|b| (b' '..=b'~').contains(&b))
        && !holds_forbidden_word(message)
}

fn form<'a>(entries: &[Entry<'a>]) -> (Stamp, &'a str) {
    entries.first().map_or((Stamp::Classic, "localhost"), |last| (last.stamp, last.host))
}

pub(super) fn cron(body: &str, when: DateTime<FixedOffset>, draw: &mut Draw) -> String {
    let entries = entries(body);
    let (stamp, host) = form(&entries);
    let when = local_time(stamp, when);
    let jobs: Vec<&Entry<'_>> = entries
        .iter()
        .filter(|entry| {
            entry.message.starts_with('(')
                && entry.message.contains(") CMD (")
                && !holds_forbidden_word(entry.tag)
        })
        .collect();
    let tag = jobs.first().map_or("CRON", |job| job.tag);
    let last = jobs.iter().find_map(|job| job.pid).or_else(|| entries.iter().find_map(|entry| entry.pid));
    let known: Vec<&str> = jobs
        .iter()
        .map(|job| job.message)
        .filter(|message| reusable(message) && (!message.contains("hourly") || when.minute() == 17))
        .collect();
    let message = if !known.is_empty() && draw.chance(60) {
        draw.pick(&known).to_owned()
    } else {
        match when.minute() {
            17 if tag == "CRON" => "(root) CMD (cd / && run-parts --report /etc/cron.hourly)".to_owned(),
            5 | 15 | 25 | 35 | 45 | 55 if tag == "CRON" => {
                "(root) CMD (command -v debian-sa1 > /dev/null && debian-sa1 1 1)".to_owned()
            }
            _ => format!("(root) CMD ({})", phrase(phrases::CRON, draw)),
        }
    };
    let pid = pid_after(last, draw);
    let clock = clock(stamp, when, draw);
    append_line(body, &format!("{clock} {host} {tag}[{pid}]: {message}"))
}

pub(super) fn daemon(body: &str, when: DateTime<FixedOffset>, draw: &mut Draw) -> String {
    let entries = entries(body);
    let (stamp, host) = form(&entries);
    let when = local_time(stamp, when);
    let usable: Vec<&Entry<'_>> =
        entries.iter().filter(|entry| entry.tag != "kernel" && !holds_forbidden_word(entry.tag)).collect();
    let model = usable.get(draw.index(usable.len()));
    let (tag, pid) = model.map_or(("systemd", Some(1)), |entry| (entry.tag, entry.pid));
    let same: Vec<&&Entry<'_>> = usable.iter().filter(|entry| entry.tag == tag).collect();
    let stays = LONG_LIVED.contains(&tag) || (same.len() > 1 && same.iter().all(|entry| entry.pid == pid));
    let head = match pid {
        Some(pid) if stays => format!("{tag}[{pid}]"),
        Some(_) => format!("{tag}[{}]", pid_after(same.iter().find_map(|entry| entry.pid), draw)),
        None => tag.to_owned(),
    };
    let clock = clock(stamp, when, draw);
    let seen: Vec<&str> =
        same.iter().map(|entry| entry.message).filter(|message| reusable(message)).collect();
    let line = super::phrases::fresh(body, draw, |draw| {
        let message = match tag {
            "systemd" => phrase(phrases::SYSTEMD, draw),
            "systemd-logind" => phrase(phrases::LOGIND, draw),
            "sshd" => phrase(phrases::SSHD, draw),
            _ if !seen.is_empty() && draw.chance(60) => draw.pick(&seen).to_owned(),
            _ => phrase(phrases::DAEMON, draw),
        };
        format!("{clock} {host} {head}: {message}")
    });
    append_line(body, &line)
}

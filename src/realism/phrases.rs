//! The words of everyday operation: templates and what fills them.

use super::draw::Draw;

pub(super) const NOTE: &[&str] = &[
    "{host} backup took {n} min last night, normally about half of that",
    "restored one file from {host} for {person}, took {n} minutes",
    "{path} on {host} at {pct}%, cleared old logs",
    "{path} on {host} back up to {pct}%, look again {day}",
    "cert for {site} runs out in {n} days, renewal asked for",
    "renewed the cert for {site}, reloaded {svc} on {host}",
    "{person} called about slow logins on {host}, nothing in the logs so far",
    "ticket {ticket}: waiting for {vendor}",
    "ticket {ticket} closed, {person} confirmed it works",
    "reopened {ticket}, same error on {host} as before",
    "{svc} on {host} restarted by hand after the update, ok since",
    "maintenance window for {host} moved to {day}, told {person}",
    "{vendor} called back, replacement disk arrives {day}",
    "asked {vendor} for a quote, {n} licences",
    "new account for {person}'s trainee, access to {site} only",
    "{person} is away until {day}, questions go to {person2}",
    "{host}: {n} packages held back, kernel needs a reboot",
    "rebooted {host} at lunch, {svc} came up clean",
    "firewall rule for {host} to {host2} still missing, see {ticket}",
    "switch port of {host} flapped {n} times, cable swapped",
    "{host} console password is in the safe now, {person} has the key",
    "call with {vendor} {day}, have the contract number ready",
    "moved {site} to {host}, dns follows {day}",
    "snapshot of {host} taken before the {svc} upgrade, delete after {day}",
    "load on {host} around {n} this morning, {svc} workers piling up",
    "mail queue on {host} was at {n}0, one full mailbox, sorted with {person}",
];

pub(super) const TODO: &[&str] = &[
    "renew cert for {site}",
    "test restore from {host}",
    "clean up {path} on {host}",
    "call {vendor} about {ticket}",
    "answer {person} on {ticket}",
    "update {svc} on {host}",
    "reboot {host} into the new kernel ({day})",
    "ask {person} whether {host} is still needed",
    "extend {path} on {host} by {n}G",
    "remove {person}'s old account from {host}",
    "move {site} off {host}",
    "order {n} disks for {host}",
    "check why the {svc} backup on {host} skips {path}",
    "write down the restore steps for {svc}",
    "rotate the {svc} password on {host}",
    "plan the {host} downtime with {person}",
    "delete the {host} snapshot after {day}",
    "monitoring for {svc} on {host}",
    "label the new cables at {host}",
    "send {person} the access list for {site}",
    "close {ticket} if quiet until {day}",
    "ntp on {host} is off, fix",
];

pub(super) const SCRIPT: &[&str] = &[
    "{host} is slow here, allow {n} minutes before calling it stuck",
    "{ticket}: leave {path} out until {host} has more space",
    "checked on {host}, works with the current {svc}",
    "ask {person} before changing the schedule",
    "TODO: handle a full {path} on {host}",
    "TODO: same for {host} once {ticket} is done",
    "keep {n} days, {person} needs them for the audit",
    "fails when {svc} on {host} is down, rerun by hand",
    "paths differ on {host}, see {ticket}",
    "last full run on {host} took {n} min",
    "old location on {host} goes away, {person} knows",
    "{svc} must be reloaded afterwards on {host}",
    "not needed on {host}, {svc} does this itself now",
    "see {ticket} for why {host} is treated differently",
    "raised the limit for {host} to {n}, was too tight",
    "runs from cron on {host}, mind the PATH",
];

pub(super) const DRAFT: [&[&str]; 3] = [
    &[
        "The move of {site} to {host} is planned for {day}.",
        "After the outage of {svc} on {host} we went through the logs with {person}.",
        "Storage on {host} remains the main concern: {path} is at {pct}%.",
        "{person} asked for a short section on {svc}.",
        "The restore test on {host} finished in {n} minutes.",
        "The offer from {vendor} covers {n} machines, among them {host}.",
        "Access to {site} should be reviewed before the audit.",
        "For {host} we still depend on {vendor}.",
    ],
    &[
        "A second run on {host} gave the same result.",
        "Until then {host} stays in service, with {svc} read-only.",
        "The details are in {ticket}.",
        "We expect a downtime of about {n} minutes, outside office hours.",
        "{person} will check the figures for {host}.",
        "The current contract with {vendor} does not cover this.",
        "The backup of {path} has to be complete before we start.",
        "Roughly {n} users work with it every day, most of them in accounting.",
    ],
    &[
        "To be confirmed with {person} by {day}.",
        "Costs are still open, {vendor} has promised an answer by {day}.",
        "If it fails we go back to {host} and try again {day}.",
        "The next step is a trial with {n} users.",
        "{person} and I will go over this part again {day}.",
        "Numbers for {host} to follow.",
    ],
];

pub(super) const CRON: &[&str] = &[
    "/usr/local/bin/backup.sh {path}",
    "/usr/local/sbin/check_disk {path}",
    "/usr/bin/find /tmp -xdev -type f -mtime +{n} -delete",
    "/usr/local/bin/sync-{host}.sh >/dev/null 2>&1",
    "/usr/sbin/logrotate /etc/logrotate.conf",
    "test -x /usr/sbin/anacron || run-parts --report /etc/cron.daily",
    "/usr/local/bin/report-{svc}.sh",
];

pub(super) const SYSTEMD: &[&str] = &[
    "Starting Daily apt download activities...",
    "Finished Daily apt download activities.",
    "Starting Rotate log files...",
    "Finished Rotate log files.",
    "logrotate.service: Succeeded.",
    "Starting Cleanup of Temporary Directories...",
    "Finished Cleanup of Temporary Directories.",
    "Starting Daily man-db regeneration...",
    "man-db.service: Succeeded.",
    "Started Session {session} of user root.",
    "Started Session {session} of user backup.",
    "session-{session}.scope: Succeeded.",
    "Started Discard unused blocks on filesystems from /etc/fstab.",
    "apt-daily.service: Succeeded.",
    "Started Run anacron jobs.",
    "anacron.service: Succeeded.",
];

pub(super) const LOGIND: &[&str] = &[
    "New session {session} of user root.",
    "Session {session} logged out. Waiting for processes to exit.",
    "Removed session {session}.",
];

pub(super) const SSHD: &[&str] = &[
    "Connection closed by 10.0.{n}.{n} port 5{ticketno} [preauth]",
    "Received disconnect from 10.0.{n}.{n} port 4{ticketno}:11: disconnected by user",
];

pub(super) const DAEMON: &[&str] = &[
    "configuration reloaded",
    "reloading configuration",
    "housekeeping done, {n} entries removed",
    "closed {n} idle connections",
    "reopening log files",
    "statistics: {n} requests, {pct}% from cache",
    "timeout waiting for peer, retrying in {n}s",
];

fn fill(slot: &str, draw: &mut Draw) -> String {
    let list: &[&str] = match slot {
        "host" | "host2" => &[
            "db01", "db02", "web01", "web02", "web03", "mail01", "backup01", "nas02", "build01", "app01",
            "app02", "proxy01", "mon01", "ldap01", "files01",
        ],
        "svc" => &[
            "nginx", "postgres", "postfix", "apache", "mysql", "redis", "grafana", "haproxy", "rsyslog",
            "slapd", "gitlab", "dovecot",
        ],
        "person" => &["Marta", "Tom", "Ines", "Paul", "Karin", "Luis", "Anna"],
        "person2" => &["Dave", "Priya", "Jens", "Olga", "Mark"],
        "vendor" => &[
            "the ISP",
            "Dell support",
            "the hosting people",
            "the datacentre",
            "the registrar",
            "the printer company",
        ],
        "day" => &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "next week"],
        "path" => &["/var", "/var/log", "/srv", "/home", "/opt", "/var/backups", "/data"],
        "site" => &["webmail", "the vpn", "the wiki", "intranet", "git", "the shop", "the portal"],
        "pct" => return draw.between(71, 96).to_string(),
        "ticket" => return format!("#{}", draw.between(21_000, 48_999)),
        "session" => return draw.between(112, 987).to_string(),
        "ticketno" => return draw.between(1000, 9999).to_string(),
        _ => return draw.between(3, 48).to_string(),
    };
    draw.pick(list).to_owned()
}

/// One phrase drawn from `templates`, its slots filled.
pub(super) fn phrase(templates: &[&str], draw: &mut Draw) -> String {
    let mut out = String::new();
    let mut rest = draw.pick(templates);
    while let Some((before, after)) = rest.split_once('{') {
        let (slot, tail) = after.split_once('}').unwrap_or((after, ""));
        out.push_str(before);
        out.push_str(&fill(slot, draw));
        rest = tail;
    }
    out.push_str(rest);
    out
}

/// A phrase that `body` does not hold yet, after at most 33 attempts.
pub(super) fn fresh(body: &str, draw: &mut Draw, make: impl Fn(&mut Draw) -> String) -> String {
    let mut text = make(draw);
    for _ in 0..32 {
        if !body.contains(&text) {
            break;
        }
        text = make(draw);
    }
    text
}

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn submission(n: usize) -> Submission {
    Submission { id: Uuid::from_u128(n as u128), replays: 0, body: 7 }
}

fn seen(n: usize, connection: u64) -> Seen {
    let key = Key { submission: submission(n), attempt: 1, deferrals: 0 };
    Seen { key, redelivered: connection > 0, connection }
}

fn answer(bytes: usize) -> Arc<Answer> {
    Arc::new(Answer {
        id: Uuid::nil(),
        routing_key: "".into(),
        finished_at: DateTime::UNIX_EPOCH,
        body: vec![0; bytes].into(),
    })
}

fn is_answered(memory: &Memory, submission: Submission) -> bool {
    let key = Key { submission, attempt: 9, deferrals: 3 };
    matches!(
        memory.recall(&Seen { key, redelivered: false, connection: 0 }, Instant::now()),
        Known::Answered(_)
    )
}

/// What is known of a redelivery that comes by the next connection.
fn ack_known(memory: &Memory, n: usize, now: Instant) -> Option<Ack> {
    match memory.recall(&seen(n, 1), now) {
        Known::Replaced { ack, .. } => Some(ack),
        Known::Nothing | Known::Answered(_) => None,
    }
}

#[test]
fn the_oldest_goes_when_there_are_too_many_too_large_or_too_old() {
    let (memory, now) = (Memory::default(), Instant::now());
    for n in 0..=ENTRIES_MAX {
        memory.answered(submission(n), answer(0), now);
    }
    assert!(memory.lock().entries.len() * OVERHEAD_BYTES <= BYTES_MAX);
    assert!(!is_answered(&memory, submission(0)) && is_answered(&memory, submission(ENTRIES_MAX)));
    memory.answered(submission(ENTRIES_MAX + 1), answer(0), now + AGE_MAX + SECOND);
    assert!(!is_answered(&memory, submission(ENTRIES_MAX)));
    for n in 0..9 {
        memory.answered(submission(n), answer(BYTES_MAX / 8 - OVERHEAD_BYTES), now + AGE_MAX);
    }
    assert!(!is_answered(&memory, submission(0)) && is_answered(&memory, submission(8)));
    memory.answered(submission(10), answer(BYTES_MAX), now + AGE_MAX);
    assert!(!is_answered(&memory, submission(10)), "one result does not push out all others");
    memory.answered(submission(11), answer(0), now + AGE_MAX + AGE_MAX + SECOND);
    assert_eq!(memory.lock().bytes, OVERHEAD_BYTES, "what is forgotten takes nothing");
}

#[test]
fn a_result_belongs_to_one_body_at_one_count_of_replays_and_to_all_its_attempts() {
    let (memory, now, first) = (Memory::default(), Instant::now(), submission(1));
    assert!(!memory.answered(first, answer(1), now));
    assert!(is_answered(&memory, first));
    let (other_body, replayed) = (Submission { body: 8, ..first }, Submission { replays: 1, ..first });
    assert!(!is_answered(&memory, other_body) && !is_answered(&memory, replayed));
    assert!(memory.answered(other_body, answer(2), now), "its id has a result of another body");
    assert!(!memory.answered(other_body, answer(3), now) || memory.lock().entries.len() == 1);
    assert!(is_answered(&memory, first) && is_answered(&memory, other_body));
}

#[test]
fn a_replaced_message_may_come_again_until_its_ack_is_sure_to_have_arrived() {
    let (memory, now) = (Memory::default(), Instant::now());
    for n in 0..4 {
        memory.replacing(&seen(n, 0), Successor::Retry, now).send_replace(true);
        assert!(matches!(memory.recall(&seen(n, 0), now), Known::Nothing), "not by the same connection");
        assert_eq!(ack_known(&memory, n, now), Some(Ack::Pending));
    }
    memory.settled(&seen(0, 0), Ack::NotSent, now);
    memory.settled(&seen(1, 0), Ack::Sent(now), now);
    memory.settled(&seen(2, 0), Ack::Sent(now + ACK_DOUBT_TIME), now + ACK_DOUBT_TIME);
    let lost_at = now + ACK_DOUBT_TIME + SECOND;
    memory.connection_lost(lost_at);
    // An ack that ends only now was sent on the connection that is lost.
    memory.settled(&seen(3, 0), Ack::Sent(lost_at), lost_at);
    let known = |now| [0, 1, 2, 3].map(|n| ack_known(&memory, n, now));
    let in_doubt = Some(Ack::InDoubt(lost_at));
    assert_eq!(known(lost_at), [Some(Ack::NotSent), None, in_doubt, in_doubt]);
    let later = lost_at + REDELIVERY_TIME_MAX + SECOND;
    assert_eq!(known(later), [Some(Ack::NotSent), None, None, None]);
    // The redelivery is acked, and no older news of the first delivery counts.
    memory.settled(&seen(0, 1), Ack::Sent(later), later);
    memory.settled(&seen(0, 0), Ack::NotSent, later);
    assert_eq!(ack_known(&memory, 0, later), None);
}

#[test]
fn a_message_whose_successor_was_given_up_is_run_again() {
    let (memory, now) = (Memory::default(), Instant::now());
    let confirming = memory.replacing(&seen(1, 0), Successor::DeadLetter, now);
    assert_eq!(ack_known(&memory, 1, now), Some(Ack::Pending));
    drop(confirming);
    assert_eq!(ack_known(&memory, 1, now), None);
}

#[test]
fn the_end_of_an_action_settles_what_is_in_doubt_of_its_earlier_attempts() {
    let (memory, now) = (Memory::default(), Instant::now());
    memory.replacing(&seen(1, 0), Successor::Retry, now).send_replace(true);
    memory.settled(&seen(1, 0), Ack::Sent(now), now);
    memory.connection_lost(now);
    assert_eq!(ack_known(&memory, 1, now), Some(Ack::InDoubt(now)));
    let mut last = seen(1, 1);
    last.key.attempt = 2;
    memory.replacing(&last, Successor::DeadLetter, now).send_replace(true);
    assert_eq!(ack_known(&memory, 1, now), None, "an equal message may be a new submission");
}

#[test]
fn an_action_that_is_deferred_for_an_hour_takes_little() {
    let (memory, now) = (Memory::default(), Instant::now());
    for n in 0..3600 {
        let mut seen = seen(1, 0);
        seen.key.deferrals = n;
        let now = now + SECOND * u32::try_from(n).unwrap();
        memory.replacing(&seen, Successor::Deferral, now).send_replace(true);
        memory.settled(&seen, Ack::Sent(now), now);
    }
    let inner = memory.lock();
    assert!(inner.bytes < 10_000 && inner.order.len() < 6, "{} {}", inner.bytes, inner.order.len());
}

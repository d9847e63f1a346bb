//! Which message of a group a returned message is.

use lapin::message::BasicReturnMessage;

use super::convert::properties_from;
use crate::broker::{Properties, Publication, PublishError};

/// A message that came back because no queue takes it.
pub struct Returned {
    routing_key: String,
    properties: Properties,
    body: Vec<u8>,
    why: String,
}

impl From<BasicReturnMessage> for Returned {
    fn from(message: BasicReturnMessage) -> Self {
        Self {
            routing_key: message.delivery.routing_key.to_string(),
            properties: properties_from(&message.delivery.properties),
            why: message.reply_text.to_string(),
            body: message.delivery.data,
        }
    }
}

impl Returned {
    fn is(&self, publication: &Publication<'_>) -> bool {
        self.properties.message_id == publication.properties.message_id
            && self.routing_key == publication.routing_key
            && self.body == publication.body
    }

    /// Whether the headers are equal as well; a broker's interceptors may have added some.
    fn is_exactly(&self, publication: &Publication<'_>) -> bool {
        self.is(publication) && self.properties.headers == publication.properties.headers
    }
}

/// Marks each message that came back, whichever confirm the client library attached it to.
///
/// A message is told from others by `message_id`, routing key, body and headers. Two that are equal in all
/// of these take the same way through the broker, so either of them may be marked first. When no message
/// of the group is equal, none of them is known to be in a queue.
pub fn note_returned(
    publications: &[Publication<'_>],
    returned: impl Iterator<Item = Returned>,
    outcomes: &mut [Result<(), PublishError>],
) {
    for returned in returned {
        let unmarked =
            (0..outcomes.len()).filter(|index| !matches!(outcomes[*index], Err(PublishError::Returned(_))));
        let of = |is: fn(&Returned, &Publication<'_>) -> bool| {
            unmarked.clone().find(|index| is(&returned, &publications[*index]))
        };
        let only = (publications.len() == 1).then_some(0);
        match of(Returned::is_exactly).or_else(|| of(Returned::is)).or(only) {
            Some(index) => outcomes[index] = Err(PublishError::Returned(returned.why)),
            None => {
                let unknown = "a message came back that cannot be told from the others".to_owned();
                let confirmed = outcomes.iter_mut().filter(|outcome| outcome.is_ok());
                confirmed.for_each(|outcome| *outcome = Err(PublishError::Failed(unknown.clone())));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::HeaderValue;

    fn properties(id: Option<&str>, delay: Option<&str>) -> Properties {
        let headers = delay.map(|delay| ("delay".to_owned(), HeaderValue::from(delay)));
        Properties {
            message_id: id.map(ToOwned::to_owned),
            headers: headers.into_iter().collect(),
            ..Properties::default()
        }
    }

    fn marked(sent: &[(Properties, &str)], came_back: &[(Properties, &str)]) -> Vec<usize> {
        let publications: Vec<_> = sent
            .iter()
            .map(|(properties, body)| Publication {
                exchange: "x",
                routing_key: "k",
                properties,
                body: body.as_bytes(),
            })
            .collect();
        let mut outcomes = vec![Ok(()); sent.len()];
        let returned = came_back.iter().map(|(properties, body)| Returned {
            routing_key: "k".to_owned(),
            properties: properties.clone(),
            body: body.as_bytes().to_owned(),
            why: "NO_ROUTE".to_owned(),
        });
        note_returned(&publications, returned, &mut outcomes);
        (0..outcomes.len()).filter(|index| outcomes[*index].is_err()).collect()
    }

    #[test]
    fn a_returned_message_is_found_by_id_body_and_headers_and_equal_ones_are_each_marked_once() {
        let (a, b, none) = (properties(Some("a"), None), properties(Some("b"), None), properties(None, None));
        let alike = [(a.clone(), "1"), (b.clone(), "1"), (none.clone(), "1"), (a.clone(), "2")];
        for (index, one) in alike.iter().enumerate() {
            assert_eq!(marked(&alike, std::slice::from_ref(one)), [index]);
        }
        let delayed = [(properties(None, Some("1s")), "1"), (properties(None, Some("5s")), "1")];
        assert_eq!(marked(&delayed, &delayed[1..]), [1]);
        // A broker's interceptor adds headers to each message that it takes.
        assert_eq!(marked(&alike, &[(properties(Some("b"), Some("added")), "1")]), [1]);
        let equal = [(none.clone(), "1"), (none.clone(), "1"), (none.clone(), "1")];
        assert_eq!(marked(&equal, &equal[..2]), [0, 1]);
    }

    #[test]
    fn when_a_returned_message_is_of_no_publication_none_of_them_counts_as_taken() {
        let sent = [(properties(Some("a"), None), "1"), (properties(Some("b"), None), "2")];
        assert_eq!(marked(&sent, &[(properties(Some("c"), None), "3")]), [0, 1]);
    }
}

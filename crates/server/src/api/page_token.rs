//! Order and page tokens of `GET /v2/sandboxes` (control-plane 3.3).

use std::cmp::{Ordering, Reverse};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use time::OffsetDateTime;

use super::error::ApiError;

/// In which order a list comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SortOrder {
    /// Exactly the reverse of the other.
    Ascending,
    /// Newest first, and of the same instant the smaller id first.
    Descending,
}

impl SortOrder {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ascending => "asc",
            Self::Descending => "desc",
        }
    }
}

/// Where an entry stands in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    micros: i64,
    id: String,
}

impl Position {
    pub(super) fn new(at: OffsetDateTime, id: impl ToString) -> Self {
        let micros = at.unix_timestamp_nanos() / 1000;
        Self {
            // A year 294000 is not reached; it would only sort last.
            micros: i64::try_from(micros).unwrap_or(i64::MAX),
            id: id.to_string(),
        }
    }

    pub(super) fn compare(&self, other: &Self, order: SortOrder) -> Ordering {
        let key = |position: &Self| (Reverse(position.micros), position.id.clone());
        let descending = key(self).cmp(&key(other));
        match order {
            SortOrder::Descending => descending,
            SortOrder::Ascending => descending.reverse(),
        }
    }

    /// The token of the page that begins behind this position.
    pub(super) fn to_token(&self, order: SortOrder) -> String {
        let text = format!("{}__{}__{}", self.micros, self.id, order.as_str());
        URL_SAFE_NO_PAD.encode(text)
    }

    /// Reads a token of the same order.
    pub(super) fn from_token(token: &str, order: SortOrder) -> Result<Self, ApiError> {
        let refused = || {
            ApiError::validation(
                "nextToken",
                "it is not one that this list gave out for this order",
            )
        };
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| refused())?;
        let text = String::from_utf8(bytes).map_err(|_| refused())?;
        // The id between may have underscores of its own.
        let (micros, rest) = text.split_once("__").ok_or_else(refused)?;
        let (id, its_order) = rest.rsplit_once("__").ok_or_else(refused)?;
        if its_order != order.as_str() {
            return Err(refused());
        }
        Ok(Self { micros: micros.parse().map_err(|_| refused())?, id: id.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position(micros: i64, id: &str) -> Position {
        Position { micros, id: id.to_owned() }
    }

    #[test]
    fn newest_first_then_the_smaller_id_and_the_other_order_is_the_reverse() {
        let mut all = [position(1, "a"), position(2, "b"), position(2, "a"), position(3, "a")];
        all.sort_by(|a, b| a.compare(b, SortOrder::Descending));
        let descending = [position(3, "a"), position(2, "a"), position(2, "b"), position(1, "a")];
        assert_eq!(all, descending);
        all.sort_by(|a, b| a.compare(b, SortOrder::Ascending));
        let mut ascending = descending;
        ascending.reverse();
        assert_eq!(all, ascending);
    }

    #[test]
    fn garbage_and_the_other_orders_token_are_refused() {
        let token = position(5, "a").to_token(SortOrder::Ascending);
        assert!(Position::from_token(&token, SortOrder::Descending).is_err());
        let four = URL_SAFE_NO_PAD.encode("1__a__desc__x");
        for bad in ["", "x", "%%%", "AAAA", &four] {
            assert!(Position::from_token(bad, SortOrder::Descending).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_token_leads_back_to_its_position(micros in any::<i64>(), id in "[a-z0-9_:/-]{1,21}") {
            let position = position(micros, &id);
            for order in [SortOrder::Ascending, SortOrder::Descending] {
                let token = position.to_token(order);
                prop_assert_eq!(Position::from_token(&token, order).ok(), Some(position.clone()));
            }
        }

        #[test]
        fn no_token_panics(token in ".{0,64}") {
            let _ = Position::from_token(&token, SortOrder::Descending);
        }
    }
}

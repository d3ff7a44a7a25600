//! A customer's row as bytes, as the ledger keeps it: a form number, what the form says, a checksum.
//! Ledgers outlive releases: every form that was ever written is read for good.

use sha2::{Digest, Sha256};

use super::row::Row;

/// What rows begin with that are written now.
const FORM: u8 = 2;
/// What rows began with that release 0.1 wrote.
const FORM_1: u8 = 1;
/// Bytes at the end of a row of form 2 that tell it from a damaged one.
const CHECKSUM_BYTES: usize = 4;

/// A row that is not what we write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It was overwritten, cut, or damaged on its disk.
    #[error("the row is damaged")]
    Damaged,
    /// It has a form that this release does not know.
    #[error("a newer relay wrote the row, in form {0}")]
    Newer(u8),
}

impl Row {
    /// As bytes.
    pub fn pack(&self) -> Vec<u8> {
        let mut bytes = postcard::to_extend(self, vec![FORM])
            .expect("numbers, texts and lists can all be written, and memory grows");
        let checksum = checksum(&bytes);
        bytes.extend(checksum);
        bytes
    }

    /// From bytes; none at all are an empty row.
    pub fn unpack(bytes: &[u8]) -> Result<Row, Unreadable> {
        match bytes {
            [] => Ok(Row::default()),
            [FORM, ..] => {
                let (row, told) = bytes.split_last_chunk().ok_or(Unreadable::Damaged)?;
                if checksum(row) == *told { whole(&row[1..]) } else { Err(Unreadable::Damaged) }
            }
            [FORM_1, packed @ ..] => whole::<form_1::Row>(packed).map(Row::from),
            [form, ..] if *form > FORM => Err(Unreadable::Newer(*form)),
            [..] => Err(Unreadable::Damaged),
        }
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash: [u8; 32] = Sha256::digest(bytes).into();
    *hash.first_chunk().expect("a SHA-256 has 32 bytes")
}

/// All of the bytes, and nothing behind them.
fn whole<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Unreadable> {
    match postcard::take_from_bytes(bytes) {
        Ok((row, [])) => Ok(row),
        Ok(_) | Err(_) => Err(Unreadable::Damaged),
    }
}

/// What release 0.1 wrote: eight fields in one byte, one mark, an event named by its id alone.
mod form_1 {
    use jiff::Timestamp;
    use serde::Deserialize;

    use crate::domain::field::FieldSet;
    use crate::domain::row;
    use crate::domain::version::{EventRef, UNKNOWN_SOURCE, Version};

    #[derive(Deserialize)]
    pub(super) struct Row {
        entries: Vec<Entry>,
        mark: Option<Mark>,
        superseded: u64,
    }

    #[derive(Deserialize)]
    struct Entry {
        version: Version,
        fields: u8,
    }

    #[derive(Deserialize)]
    struct Mark {
        #[serde(with = "jiff::fmt::serde::timestamp::nanosecond::required")]
        until: Timestamp,
        event: Option<String>,
    }

    impl From<Row> for row::Row {
        fn from(Row { entries, mark, superseded }: Row) -> row::Row {
            let entries: Vec<(Version, FieldSet)> =
                entries.into_iter().map(|entry| (entry.version, fields(entry.fields))).collect();
            let mark = mark.map(|mark| {
                let of = |id| EventRef { id, source: UNKNOWN_SOURCE, revision: 0 };
                (mark.event.map(of), mark.until)
            });
            row::Row::from_parts(entries, mark, superseded)
        }
    }

    fn fields(bits: u8) -> FieldSet {
        FieldSet::try_from(u32::from(bits)).expect("the first eight fields are known for good")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::row::tests::any_row;

    #[test]
    fn no_bytes_are_an_empty_row_and_unknown_forms_are_refused() {
        assert_eq!(Row::unpack(&[]), Ok(Row::default()));
        assert_eq!(Row::unpack(&[0]), Err(Unreadable::Damaged));
        assert_eq!(Row::unpack(&[FORM]), Err(Unreadable::Damaged));
        assert_eq!(Row::unpack(&[FORM_1, 255, 255]), Err(Unreadable::Damaged));
        assert_eq!(Row::unpack(&[FORM + 1, 0]), Err(Unreadable::Newer(FORM + 1)));
    }

    proptest! {
        #[test]
        fn whatever_can_be_built_comes_out_as_it_went_in(row in any_row()) {
            prop_assert_eq!(Row::unpack(&row.pack()), Ok(row));
        }

        #[test]
        fn one_wrong_bit_or_a_missing_end_is_noticed(row in any_row(), at in any::<usize>()) {
            let packed = row.pack();
            let (byte, bit) = (at % packed.len(), at % 8);
            let mut wrong = packed.clone();
            wrong[byte] ^= 1 << bit;
            prop_assert!(Row::unpack(&wrong).is_err());
            prop_assert!(byte == 0 || Row::unpack(&packed[..byte]).is_err());
        }

        #[test]
        fn no_bytes_panic(form in 0_u8..4, bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            drop(Row::unpack(&bytes));
            drop(Row::unpack(&[vec![form], bytes].concat()));
        }
    }
}

//! Hash tags of a Redis Cluster (redis.io, "Redis cluster specification", hash tags).
//!
//! A script may only touch keys of one slot, so what belongs to a channel has to lie in the
//! channel's slot. The channel's own name cannot be put in braces: others publish to it, and a name
//! may hold braces itself. So the other keys bear one of 16,384 short texts, one for each slot.

use std::sync::OnceLock;

use fred::util::redis_keyslot;

const SLOTS: usize = 16_384;
const LETTERS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// The shortest text of each slot. Every version must make the same ones: they are part of names.
#[derive(Debug, Default)]
pub(super) struct Slots(OnceLock<Box<[Tag]>>);

/// A short text, and its length.
type Tag = ([u8; 6], u8);

impl Slots {
    /// What goes in braces to lie in the slot of this key.
    pub(super) fn tag_for(&self, key: &str) -> &str {
        let tags = self.0.get_or_init(table);
        let (text, length) = &tags[usize::from(redis_keyslot(key.as_bytes())) % SLOTS];
        // Letters and digits are UTF-8.
        text.get(..usize::from(*length))
            .and_then(|text| std::str::from_utf8(text).ok())
            .unwrap_or_default()
    }
}

/// Counts up in letters and digits until every slot has its text: about 170,000 steps, once.
fn table() -> Box<[Tag]> {
    let mut tags: Vec<Tag> = vec![([0; 6], 0); SLOTS];
    let mut missing = SLOTS;
    let mut number = 0_usize;
    while missing > 0 {
        let (text, length) = spell(number);
        number += 1;
        let slot = usize::from(redis_keyslot(&text[..usize::from(length)])) % SLOTS;
        if tags[slot].1 == 0 {
            tags[slot] = (text, length);
            missing -= 1;
        }
    }
    tags.into_boxed_slice()
}

/// The texts in order of their length: 36 of one character, 1,296 of two, and so on.
fn spell(number: usize) -> Tag {
    let (mut rest, mut length, mut count) = (number, 1, LETTERS.len());
    while rest >= count {
        rest -= count;
        length += 1;
        count *= LETTERS.len();
    }
    let mut text = [0; 6];
    for place in text[..length].iter_mut().rev() {
        *place = LETTERS[rest % LETTERS.len()];
        rest /= LETTERS.len();
    }
    (text, u8::try_from(length).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_a_short_text_of_its_own() {
        let tags = table();
        for (slot, (text, length)) in tags.iter().enumerate() {
            assert!((1..=4).contains(length), "{slot}");
            assert_eq!(usize::from(redis_keyslot(&text[..usize::from(*length)])), slot);
        }
    }

    /// They are part of names in Redis, which other versions read.
    #[test]
    fn the_texts_stay_the_same() {
        let slots = Slots::default();
        let all = ["a", "ws:user:alice", "ws:broadcast", "{}"].map(|key| slots.tag_for(key));
        assert_eq!(all, ["a", "382", "1da", "2ml"]);
    }
}

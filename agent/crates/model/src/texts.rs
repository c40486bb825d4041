//! Texts that messages repeat, held once by who reads them.
//!
//! Thousands of rules name the same namespaces, Gateways, host names and backends. Each message is decoded by itself, so a worker
//! would have a copy for every place that a text stands in. Fields that repeat are read by [`deserialize`], which shares them while
//! a [`Texts`] is in use on the thread, across messages too.

use std::{cell::RefCell, collections::HashSet, fmt, mem, sync::Arc};

use serde::{Deserializer, de};

thread_local! {
    static IN_USE: RefCell<Option<Texts>> = const { RefCell::new(None) };
}

/// Below so many texts nothing is looked through for those that are gone.
const FEW: usize = 1024;

/// Texts that have been read, with those among them that nobody uses any more until there are twice as many.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    held: HashSet<Arc<str>>,
    /// How many were in use when they were looked through.
    used: usize,
}

impl Texts {
    /// Runs `read` with these texts in use on this thread.
    pub(crate) fn share<R>(&mut self, read: impl FnOnce() -> R) -> R {
        /// Takes them back, also when reading panics.
        struct InUse<'a>(&'a mut Texts);
        impl Drop for InUse<'_> {
            fn drop(&mut self) {
                *self.0 = IN_USE.take().unwrap_or_default();
            }
        }
        IN_USE.replace(Some(mem::take(self)));
        let _in_use = InUse(self);
        read()
    }

    fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(held) = self.held.get(text) {
            return held.clone();
        }
        if self.held.len() >= FEW.max(2 * self.used) {
            self.held.retain(|held| Arc::strong_count(held) > 1);
            self.held.shrink_to(2 * self.held.len());
            self.used = self.held.len();
        }
        let new: Arc<str> = text.into();
        self.held.insert(new.clone());
        new
    }
}

/// Reads a text that is likely to be held already.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    struct Text;
    impl de::Visitor<'_> for Text {
        type Value = Arc<str>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Arc<str>, E> {
            Ok(IN_USE.with_borrow_mut(|texts| texts.as_mut().map_or_else(|| text.into(), |texts| texts.get(text))))
        }
    }
    deserializer.deserialize_str(Text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ObjectName, codec};

    #[test]
    fn a_text_is_held_once_across_messages_and_goes_when_nobody_has_it() {
        let mut decoder = codec::Decoder::default();
        let mut read = |names: &[ObjectName]| -> Vec<ObjectName> {
            let packets = codec::encode(&names.to_vec()).unwrap();
            packets.iter().find_map(|packet| decoder.push_packet(packet).unwrap()).unwrap()
        };
        let first = read(&[ObjectName::new("shop", "cart"), ObjectName::new("shop", "pay")]);
        let second = read(&[ObjectName::new("shop", "cart")]);
        assert!(Arc::ptr_eq(&first[0].namespace, &first[1].namespace));
        assert!(Arc::ptr_eq(&first[0].namespace, &second[0].namespace));
        assert!(Arc::ptr_eq(&first[0].name, &second[0].name));
        let gone = Arc::downgrade(&first[1].name);
        drop(first);
        // Others in their thousands, none of which is kept.
        for round in 0..2 {
            read(&(0..2 * FEW).map(|index| ObjectName::new("", format!("{round}-{index}"))).collect::<Vec<_>>());
        }
        assert_eq!(gone.strong_count(), 0);
        assert!(Arc::ptr_eq(&second[0].name, &read(&[ObjectName::new("", "cart")])[0].name));
    }

    #[test]
    fn texts_come_back_from_a_message_that_cannot_be_read() {
        let mut texts = Texts::default();
        let held = texts.share(|| postcard::from_bytes::<ObjectName>(&[1, b'a', 1, b'b'])).unwrap();
        assert!(texts.share(|| postcard::from_bytes::<ObjectName>(&[1, b'a', 9])).is_err());
        let again = texts.share(|| postcard::from_bytes::<ObjectName>(&[1, b'a', 1, b'b'])).unwrap();
        assert!(Arc::ptr_eq(&held.name, &again.name));
    }
}

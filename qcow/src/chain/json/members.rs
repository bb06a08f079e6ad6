//! The members of a JSON object, as QEMU takes them: nested ones have dotted keys.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::Members;

/// The members of a JSON object, nested ones with dotted keys. A key that comes twice is an error,
/// as in QEMU: two readers could take it in two ways. serde_json bounds the nesting.
pub(super) struct Options(pub(super) Members);

impl<'de> Deserialize<'de> for Options {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(OptionsVisitor)
    }
}

struct OptionsVisitor;

impl<'de> Visitor<'de> for OptionsVisitor {
    type Value = Options;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut members: A,
    ) -> std::result::Result<Options, A::Error> {
        let mut options: Members = Vec::new();
        while let Some(key) = members.next_key::<String>()? {
            let found = match members.next_value::<Member>()? {
                Member::Nested(Options(nested)) => nested
                    .into_iter()
                    .map(|(inner, value)| (format!("{key}.{inner}"), value))
                    .collect(),
                Member::Plain(value) => vec![(key, value)],
            };
            for (key, value) in found {
                if options.iter().any(|(known, _)| *known == key) {
                    return Err(A::Error::custom(format!("the key '{key}' comes twice")));
                }
                options.push((key, value));
            }
        }
        Ok(Options(options))
    }
}

/// The value of a member. Read by hand: a derived reader needs a procedural macro, which a program that only reads
/// images should not have to build.
enum Member {
    Nested(Options),
    Plain(Value),
}

impl<'de> Deserialize<'de> for Member {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(MemberVisitor)
    }
}

struct MemberVisitor;

impl<'de> Visitor<'de> for MemberVisitor {
    type Value = Member;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> std::result::Result<Member, A::Error> {
        OptionsVisitor.visit_map(members).map(Member::Nested)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> std::result::Result<Member, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = values.next_element()? {
            list.push(value);
        }
        Ok(Member::Plain(Value::Array(list)))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Member, E> {
        Ok(Member::Plain(text.into()))
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Member, E> {
        Ok(Member::Plain(value.into()))
    }

    fn visit_i64<E>(self, number: i64) -> std::result::Result<Member, E> {
        Ok(Member::Plain(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> std::result::Result<Member, E> {
        Ok(Member::Plain(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> std::result::Result<Member, E> {
        Ok(Member::Plain(number.into()))
    }

    fn visit_unit<E>(self) -> std::result::Result<Member, E> {
        Ok(Member::Plain(Value::Null))
    }
}

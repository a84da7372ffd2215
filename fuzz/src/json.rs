//! JSON as serde_json parses it, with the order of fields and with repeated fields, and its encoding as a Struct.

use prost_types::value::Kind;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`, or a Struct's value without a kind.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number without sign, fraction or exponent.
    Whole(u64),
    /// Any other number.
    Other(f64),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Self>),
    /// An object.
    Object(Vec<(String, Self)>),
}

impl Json {
    /// Returns whether the value contains a whole number that is not written like a port, such as 80.0. In a Struct, such a number
    /// equals a port.
    #[must_use]
    pub fn has_unusual_port(&self) -> bool {
        match self {
            Self::Other(number) => number.fract() == 0.0,
            Self::List(items) => items.iter().any(Self::has_unusual_port),
            Self::Object(fields) => fields.iter().any(|(_, value)| value.has_unusual_port()),
            _ => false,
        }
    }

    /// Converts a Struct that prost has decoded.
    #[must_use]
    pub fn of_struct(message: &prost_types::Struct) -> Self {
        Self::Object(message.fields.iter().map(|(name, value)| (name.clone(), Self::of_value(value))).collect())
    }

    fn of_value(value: &prost_types::Value) -> Self {
        match &value.kind {
            None | Some(Kind::NullValue(_)) => Self::Null,
            Some(Kind::BoolValue(flag)) => Self::Bool(*flag),
            Some(Kind::NumberValue(number)) => {
                let whole = *number as u64;
                if whole as f64 == *number { Self::Whole(whole) } else { Self::Other(*number) }
            }
            Some(Kind::StringValue(text)) => Self::Text(text.clone()),
            Some(Kind::ListValue(list)) => Self::List(list.values.iter().map(Self::of_value).collect()),
            Some(Kind::StructValue(fields)) => Self::of_struct(fields),
        }
    }

    /// Encodes an object as a `google.protobuf.Struct`, with its fields in their order.
    ///
    /// # Panics
    ///
    /// Panics if this is not an object.
    #[must_use]
    pub fn to_struct(&self) -> Vec<u8> {
        let Self::Object(fields) = self else { panic!("{self:?} is not an object") };
        let mut bytes = Vec::new();
        for (name, value) in fields {
            let name = delimited(0x0a, name.as_bytes());
            let value = delimited(0x12, &value.to_value());
            bytes.extend(delimited(0x0a, &[name, value].concat()));
        }
        bytes
    }

    fn to_value(&self) -> Vec<u8> {
        match self {
            Self::Null => vec![0x08, 0],
            Self::Bool(flag) => vec![0x20, (*flag).into()],
            Self::Whole(number) => [&[0x11][..], &(*number as f64).to_le_bytes()].concat(),
            Self::Other(number) => [&[0x11][..], &number.to_le_bytes()].concat(),
            Self::Text(text) => delimited(0x1a, text.as_bytes()),
            Self::List(items) => {
                let items: Vec<Vec<u8>> = items.iter().map(|item| delimited(0x0a, &item.to_value())).collect();
                delimited(0x32, &items.concat())
            }
            Self::Object(_) => delimited(0x2a, &self.to_struct()),
        }
    }
}

fn delimited(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    let mut length = content.len();
    while length >= 0x80 {
        bytes.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend(content);
    bytes
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Json, E> {
        Ok(Json::Bool(flag))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Whole(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Other(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        Ok(Json::Other(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Json, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = object.next_entry()? {
            fields.push(field);
        }
        Ok(Json::Object(fields))
    }
}

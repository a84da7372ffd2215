//! Compares the reader of `google.protobuf.Struct` with prost.

use crate::{
    configurations::{ACCEPTED, rejected},
    decision::configuration,
    struct_message::as_struct,
};
use proptest::prelude::*;
use prost::Message;
use prost_types::{Struct, value::Kind};
use serde_json::{Value, json};
use sluice::config;

const EXAMPLE: &str = include_str!("../data/example.json");

/// Skips two cases: a Struct cannot distinguish 80.0 from 80, and an empty Struct arrives as an empty configuration.
#[test]
fn a_struct_is_parsed_like_the_equivalent_json() {
    let mut compared = 0;
    for text in ACCEPTED.iter().map(|&text| text.to_owned()).chain(rejected().into_iter().map(|(text, ..)| text)) {
        let Ok(Value::Object(fields)) = serde_json::from_str(&text) else { continue };
        // Normalised, because a Struct does not keep the order of fields or repeated fields.
        let text = Value::Object(fields).to_string();
        if text == "{}" || text.contains("80.0") {
            continue;
        }
        assert_eq!(config::parse(&as_struct(&text)), config::parse(text.as_bytes()), "{text}");
        compared += 1;
    }
    assert!(compared > 50, "compared only {compared} configurations");
}

#[test]
fn a_truncated_or_extended_struct_is_rejected() {
    let bytes = as_struct(EXAMPLE);
    assert!(config::parse(&bytes).is_ok());
    for length in 1..bytes.len() {
        assert!(config::parse(&bytes[..length]).is_err(), "accepted the first {length} bytes");
    }
    assert!(config::parse(&[&bytes[..], b"\x12"].concat()).is_err());
}

/// Returns a tag, the length of `content` plus `excess`, and `content`.
fn message(tag: u8, excess: i8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap().wrapping_add_signed(excess);
    assert!(length < 0x80, "the length must fit in one byte");
    [&[tag, length], content].concat()
}

#[test]
fn inconsistent_lengths_are_rejected() {
    let key = |excess, key: &str| message(0x0a, excess, key.as_bytes());
    let string = |excess, text: &str| message(0x1a, excess, text.as_bytes());
    let value = |excess, content: &[u8]| message(0x12, excess, content);
    let entry = |excess, key: &[u8], value: &[u8]| message(0x0a, excess, &[key, value].concat());
    let preset = |excess_of: [i8; 4]| {
        let [whole, name, outer, inner] = excess_of;
        entry(whole, &key(name, "preset"), &value(outer, &string(inner, "standalone")))
    };
    assert!(config::parse(&preset([0; 4])).is_ok());
    for index in 0..4 {
        for excess in [-2, -1, 1, 2, 100] {
            let mut excess_of = [0; 4];
            excess_of[index] = excess;
            let bytes = preset(excess_of);
            assert!(config::parse(&bytes).is_err(), "accepted with the excess lengths {excess_of:?}");
        }
    }

    let port = |value_excess, cut: usize| {
        let number = [&[0x11_u8][..], &80_f64.to_le_bytes()[..8 - cut]].concat();
        let ports = value(0, &message(0x32, 0, &message(0x0a, value_excess, &number)));
        let criteria = value(0, &message(0x2a, 0, &entry(0, &key(0, "destination_ports"), &ports)));
        let action = entry(0, &key(0, "action"), &value(0, &string(0, "deny")));
        let route = message(0x2a, 0, &[entry(0, &key(0, "match"), &criteria), action.clone()].concat());
        let routes = value(0, &message(0x32, 0, &message(0x0a, 0, &route)));
        let otherwise = entry(0, &key(0, "otherwise"), &value(0, &string(0, "deny")));
        [entry(0, &key(0, "routes"), &routes), otherwise].concat()
    };
    assert!(config::parse(&port(0, 0)).is_ok());
    for (excess, cut) in [(-1, 0), (1, 0), (0, 1), (1, 1)] {
        assert!(config::parse(&port(excess, cut)).is_err(), "accepted with an excess of {excess} and {cut} bytes cut");
    }
}

/// Converts a Struct that prost has decoded to the equivalent JSON.
fn as_json(message: &Struct) -> Value {
    fn to_json(value: &prost_types::Value) -> Value {
        match &value.kind {
            None | Some(Kind::NullValue(_)) => Value::Null,
            Some(Kind::BoolValue(flag)) => json!(flag),
            Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() < 1e9 => json!(*number as i64),
            Some(Kind::NumberValue(number)) => json!(number),
            Some(Kind::StringValue(text)) => json!(text),
            Some(Kind::ListValue(list)) => list.values.iter().map(to_json).collect(),
            Some(Kind::StructValue(fields)) => as_json(fields),
        }
    }
    message.fields.iter().map(|(name, field)| (name.clone(), to_json(field))).collect()
}

/// Checks that the parser rejects these bytes or reads the same configuration as prost.
fn check_against_prost(bytes: &[u8]) -> Result<(), String> {
    let Ok(policy) = config::parse(bytes) else { return Ok(()) };
    let decoded = Struct::decode(bytes).map_err(|error| format!("accepted, but prost rejects it: {error}"))?;
    let json = as_json(&decoded).to_string();
    if config::parse(json.as_bytes()) == Ok(policy) { Ok(()) } else { Err(format!("parsed differently from {json}")) }
}

/// A part of an encoded Struct, and the positions of all bytes that belong to a length.
#[derive(Default)]
struct Encoded {
    bytes: Vec<u8>,
    lengths: Vec<usize>,
}

impl Encoded {
    fn append(mut self, other: Self) -> Self {
        self.lengths.extend(other.lengths.iter().map(|position| position + self.bytes.len()));
        self.bytes.extend(other.bytes);
        self
    }

    /// Prepends a tag and the length.
    fn delimited(self, tag: u8) -> Self {
        let mut head = Self { bytes: vec![tag], lengths: Vec::new() };
        let mut length = self.bytes.len();
        loop {
            head.lengths.push(head.bytes.len());
            let more = length >> 7 > 0;
            head.bytes.push(u8::try_from(length & 0x7f).unwrap() | if more { 0x80 } else { 0 });
            length >>= 7;
            if !more {
                return head.append(self);
            }
        }
    }

    fn text(text: &str) -> Self {
        Self { bytes: text.as_bytes().to_vec(), lengths: Vec::new() }
    }

    fn fields(json: &Value) -> Self {
        json.as_object().unwrap().iter().fold(Self::default(), |fields, (name, json)| {
            let entry = Self::text(name).delimited(0x0a).append(Self::value(json).delimited(0x12));
            fields.append(entry.delimited(0x0a))
        })
    }

    fn value(json: &Value) -> Self {
        match json {
            Value::String(text) => Self::text(text).delimited(0x1a),
            Value::Number(number) => {
                let number = number.as_f64().unwrap().to_le_bytes();
                Self { bytes: [&[0x11][..], &number].concat(), lengths: Vec::new() }
            }
            Value::Array(items) => {
                let items = items.iter().map(|item| Self::value(item).delimited(0x0a));
                items.fold(Self::default(), Self::append).delimited(0x32)
            }
            Value::Object(_) => Self::fields(json).delimited(0x2a),
            other => panic!("no test configuration contains {other}"),
        }
    }
}

#[test]
fn a_changed_length_byte_is_rejected_or_parsed_as_by_prost() {
    let example: Value = serde_json::from_str(EXAMPLE).unwrap();
    let Encoded { bytes, lengths } = Encoded::fields(&example);
    assert_eq!(config::parse(&bytes), config::parse(example.to_string().as_bytes()));
    assert!(lengths.len() > 80, "found only {} length bytes", lengths.len());
    for position in lengths {
        for value in 0..=255 {
            let mut changed = bytes.clone();
            changed[position] = value;
            if let Err(error) = check_against_prost(&changed) {
                panic!("byte {position} = {value:#x}: {error}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_changed_byte_is_rejected_or_parsed_as_by_prost(
        config in configuration(),
        position: prop::sample::Index,
        value: u8,
    ) {
        let Encoded { mut bytes, lengths } = Encoded::fields(&config);
        prop_assert!(config::parse(&bytes) == config::parse(config.to_string().as_bytes()));
        for position in [*position.get(&lengths), position.index(bytes.len())] {
            let before = std::mem::replace(&mut bytes[position], value);
            prop_assert_eq!(check_against_prost(&bytes), Ok(()), "byte {}", position);
            bytes[position] = before;
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(tail: Vec<u8>) {
        let _ = config::parse(&[b"\x0a", &tail[..], b"\x12"].concat());
    }
}

//! The wire bytes of a `google.protobuf.Struct` → the JSON that they stand for.
//!
//! Envoy's API says that a Wasm plugin gets such a configuration as JSON; those tried (1.36.4, 1.39.3 and the one of
//! .envoy-version) hand over its bytes.

use crate::line::append_decimal;
use alloc::vec::Vec;

/// Values that are nested deeper are none of ours; they become `null`.
const MAX_DEPTH: u32 = 8;

/// The JSON of these bytes; none where they are no struct, or one without fields, which has no bytes.
#[must_use]
pub fn to_json(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut json = Vec::new();
    (!bytes.is_empty()).then_some(())?;
    fields(bytes, MAX_DEPTH, &mut json)?;
    Some(json)
}

/// The entries of the map `fields`, number 1; each a message of a key, number 1, and a value, number 2.
fn fields(mut bytes: &[u8], depth: u32, json: &mut Vec<u8>) -> Option<()> {
    json.push(b'{');
    while !bytes.is_empty() {
        let mut entry = chunk(&mut bytes, 0x0a)?;
        string(chunk(&mut entry, 0x0a)?, json);
        json.push(b':');
        value(chunk(&mut entry, 0x12)?, depth, json)?;
        entry.is_empty().then_some(())?;
        if !bytes.is_empty() {
            json.push(b',');
        }
    }
    json.push(b'}');
    Some(())
}

/// A `google.protobuf.Value`.
fn value(mut bytes: &[u8], depth: u32, json: &mut Vec<u8>) -> Option<()> {
    match *bytes {
        [0x11, a, b, c, d, e, f, g, h] => number(f64::from_le_bytes([a, b, c, d, e, f, g, h]), json),
        [0x1a, ..] => string(chunk(&mut bytes, 0x1a)?, json),
        [0x20, flag] => json.extend_from_slice(if flag == 0 { b"false" } else { b"true" }),
        [0x2a | 0x32, ..] if depth > 0 => {
            let depth = depth.wrapping_sub(1);
            if bytes.first() == Some(&0x2a) {
                return fields(chunk(&mut bytes, 0x2a)?, depth, json);
            }
            let mut values = chunk(&mut bytes, 0x32)?;
            json.push(b'[');
            while !values.is_empty() {
                value(chunk(&mut values, 0x0a)?, depth, json)?;
                if !values.is_empty() {
                    json.push(b',');
                }
            }
            json.push(b']');
        }
        [0x08, 0] | [0x2a | 0x32, ..] => json.extend_from_slice(b"null"),
        _ => return None,
    }
    Some(())
}

/// What follows the tag, by the length that stands between.
fn chunk<'a>(bytes: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (&first, mut rest) = bytes.split_first()?;
    (first == tag).then_some(())?;
    let mut length = 0_usize;
    for shift in [0, 7, 14, 21] {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        length |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            let (chunk, after) = rest.split_at_checked(length)?;
            *bytes = after;
            return Some(chunk);
        }
    }
    None
}

fn string(text: &[u8], json: &mut Vec<u8>) {
    json.push(b'"');
    for &byte in text {
        if byte < b' ' {
            json.extend_from_slice(b"\\u00");
            json.push(b'0' | byte >> 4);
            json.push(b"0123456789abcdef".get(usize::from(byte & 15)).copied().unwrap_or_default());
            continue;
        }
        if byte == b'"' || byte == b'\\' {
            json.push(b'\\');
        }
        json.push(byte);
    }
    json.push(b'"');
}

/// Whole numbers as far as a configuration has them; any other as one that is not whole, which is refused by its field.
fn number(number: f64, json: &mut Vec<u8>) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "what is lost shows in the comparison")]
    let whole = number as u32;
    append_decimal(json, whole as usize);
    if f64::from(whole) != number {
        json.extend_from_slice(b".5");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use prost_types::{ListValue, Struct, Value, value::Kind};
    use serde_json::{Value as Json, json};
    use std::string::String;

    fn kind(json: &Json) -> Kind {
        match json {
            Json::Null => Kind::NullValue(0),
            Json::Bool(flag) => Kind::BoolValue(*flag),
            Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
            Json::String(text) => Kind::StringValue(text.clone()),
            Json::Array(items) => {
                let values = items.iter().map(|item| Value { kind: Some(kind(item)) }).collect();
                Kind::ListValue(ListValue { values })
            }
            Json::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| (name.clone(), Value { kind: Some(kind(value)) }));
                Kind::StructValue(Struct { fields: fields.collect() })
            }
        }
    }

    fn bytes(json: &Json) -> Vec<u8> {
        let Kind::StructValue(fields) = kind(json) else { panic!("no object: {json}") };
        fields.encode_to_vec()
    }

    fn transcoded(json: &Json) -> Option<Json> {
        to_json(&bytes(json)).map(|text| serde_json::from_slice(&text).unwrap())
    }

    #[test]
    fn a_struct_becomes_the_json_that_it_stands_for() {
        for json in [
            json!({"preset": "istio"}),
            json!({"routes": [{"match": {"destination_ports": [80, 65535, 0]}, "clusters": ["a\"\\\n\u{7f}é😀", ""]}], "on_error": null}),
            json!({"a": {"b": {"c": [[], {}, true, false, null]}}}),
            serde_json::from_str(include_str!("../tests/data/example.json")).unwrap(),
        ] {
            assert_eq!(transcoded(&json), Some(json));
        }
    }

    #[test]
    fn numbers_that_are_not_whole_stay_so() {
        for number in [0.5, -1.0, 1e10, f64::from(u32::MAX) + 1.0] {
            let text = String::from_utf8(to_json(&bytes(&json!({"n": number}))).unwrap()).unwrap();
            assert!(text.ends_with(".5}"), "{number}: {text}");
        }
    }

    #[test]
    fn what_is_nested_too_deep_becomes_null() {
        let mut json = json!({"a": 1});
        for _ in 0..100 {
            json = json!({"a": json});
        }
        let text = to_json(&bytes(&json)).unwrap();
        assert_eq!(text.iter().filter(|&&byte| byte == b'{').count(), 9);
        assert!(String::from_utf8(text).unwrap().contains("null"));
    }

    #[test]
    fn what_is_no_struct_is_none() {
        let whole = bytes(&json!({"routes": [{"clusters": ["a"]}]}));
        for cut in 1..whole.len() {
            assert_eq!(to_json(&whole[..cut]), None, "{cut}");
        }
        for text in
            [&b""[..], b"standalone", b"\n", b"\n{}", b"\n \n{}", b"{\"preset\":\"istio\"}", b"\n\x80\x80\x80\x80\x01"]
        {
            assert_eq!(to_json(text), None, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = to_json(&bytes);
            let _ = to_json(&[b"\x0a", &bytes[..]].concat());
        }
    }
}

//! Configurations in the wire format of `google.protobuf.Struct`.
//!
//! Model: prost decodes every accepted configuration, and a second implementation of the rules accepts the same object with the
//! same decisions. If prost decodes the bytes, `sluice` accepts prost's encoding of the result exactly if the second implementation
//! accepts the object.

use crate::{
    compare::{check, parse},
    input::Input,
    json::Json,
    model::Model,
};
use prost::Message;
use prost_types::Struct;
use sluice::config::MAX_SIZE;

/// Parses the data without changes if it begins like a Struct. Otherwise, the data consists of changes and JSON text. The changes
/// apply to the bytes of the equivalent Struct.
pub fn run(data: &[u8]) {
    if data.first() == Some(&0x0a) {
        return compare(data);
    }
    let mut input = Input(data);
    let changes: Vec<[u8; 4]> = (0..input.byte() % 8).map(|_| input.array()).collect();
    let Ok(json @ Json::Object(_)) = serde_json::from_slice(input.0) else { return };
    let mut bytes = json.to_struct();
    for [kind, low, high, value] in changes {
        if bytes.is_empty() {
            break;
        }
        let position = usize::from(u16::from_le_bytes([low, high])) % bytes.len();
        match kind % 8 {
            0..=3 => bytes[position] = value,
            4 => bytes[position] = bytes[position].wrapping_add_signed(value.cast_signed()),
            5 => bytes.insert(position, value),
            6 => drop(bytes.drain(position..bytes.len().min(position + usize::from(value)))),
            _ => {
                let copy = bytes[position..bytes.len().min(position + usize::from(value))].to_vec();
                bytes.extend(copy);
            }
        }
    }
    compare(&bytes);
}

fn compare(bytes: &[u8]) {
    let parsed = parse(bytes);
    let decoded = Struct::decode(bytes);
    // The library treats all other bytes as text or as an empty configuration.
    let is_struct = bytes.first() == Some(&0x0a) && bytes.contains(&0x12);
    if parsed.is_ok() && is_struct {
        let message = decoded.as_ref().expect("accepted, but prost rejects it");
        check(&parsed, Model::of(&Json::of_struct(message)).as_ref());
    } else if parsed.is_err() {
        check(&parsed, None);
    }

    let Ok(message) = decoded else { return };
    let canonical = message.encode_to_vec();
    if !canonical.is_empty() && canonical.len() <= MAX_SIZE {
        let model = Model::of(&Json::of_struct(&message));
        check(&parse(&canonical), model.as_ref());
    }
}

//! Encodes a configuration as a `google.protobuf.Struct`.

use prost::Message;
use prost_types::{ListValue, Struct, value::Kind};
use serde_json::Value;

/// Encodes a configuration that is given as JSON text.
pub fn as_struct(config: &str) -> Vec<u8> {
    fields(&serde_json::from_str(config).unwrap()).encode_to_vec()
}

fn fields(json: &Value) -> Struct {
    Struct { fields: json.as_object().unwrap().iter().map(|(name, json)| (name.clone(), value(json))).collect() }
}

fn value(json: &Value) -> prost_types::Value {
    let kind = match json {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(*flag),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => Kind::ListValue(ListValue { values: items.iter().map(value).collect() }),
        Value::Object(_) => Kind::StructValue(fields(json)),
    };
    prost_types::Value { kind: Some(kind) }
}

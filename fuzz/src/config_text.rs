//! Configurations as text.
//!
//! Model: serde_json parses the text, and a second implementation of the rules accepts the same texts with the same decisions. The
//! same object as a Struct yields the same policy or the same error.

use crate::{
    compare::{check, parse},
    json::Json,
    model::Model,
};
use sluice::config::MAX_SIZE;

/// Parses the data.
pub fn run(document: &[u8]) {
    // This is a Struct, which the target `config_struct` covers.
    if document.first() == Some(&0x0a) && document.contains(&0x12) {
        return;
    }
    let parsed = parse(document);
    let model = Model::of_text(document);
    check(&parsed, model.as_ref());
    if let Some(model) = &model {
        assert_eq!(parse(model.to_string().as_bytes()), parsed, "{model}");
    }
    let Ok(json @ Json::Object(_)) = serde_json::from_slice(document) else { return };
    // An empty Struct arrives as an empty configuration.
    let bytes = json.to_struct();
    if !bytes.is_empty() && document.len() <= MAX_SIZE && bytes.len() <= MAX_SIZE && !json.has_unusual_port() {
        assert_eq!(parse(&bytes), parsed, "{bytes:x?}");
    }
}

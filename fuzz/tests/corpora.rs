//! Replays the committed corpora without libFuzzer.

use std::{fs, path::Path};

macro_rules! replay {
    ($($target:ident),+ $(,)?) => {
        $(#[test]
        fn $target() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(stringify!($target));
            let mut count = 0;
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                println!("{}", path.display());
                sluice_fuzz::$target::run(&fs::read(path).unwrap());
                count += 1;
            }
            assert!(count > 0, "the corpus is empty");
        })+
    };
}

replay!(
    address,
    cidr,
    server_name,
    decision,
    config_text,
    config_struct,
    config_limits,
    native_boundary,
    wasm_boundary,
);

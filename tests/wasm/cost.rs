//! Instructions and memory of the shipped module, which are the same on every machine. `make bench` measures time.

use crate::{
    modules::{ROOT, STREAM, set_source},
    vm::Vm,
};
use std::{env, fmt::Write, fs};
use testbed::{config::table_of, module::shipped};

/// The permitted difference from the golden, in percent. Other compilers generate slightly different code.
const MARGIN: u64 = 3;

/// Returns one line per configuration: the fuel to load it, and to decide a connection that only its last route matches.
fn measure() -> String {
    let mut figures = String::new();
    for (name, configuration) in
        [("preset", "standalone".to_owned()), ("10-routes", table_of(10)), ("1000-routes", table_of(1_000))]
    {
        let mut vm = Vm::new(&shipped().unwrap());
        assert!(vm.configure(ROOT, configuration.as_bytes()));
        let load = vm.executed();
        set_source(&mut vm, b"10.0.0.2:12345");
        assert!(vm.connection(STREAM, ROOT));
        let before = vm.executed();
        assert!(vm.connection(STREAM, ROOT));
        let connection = vm.executed() - before;
        assert_eq!(vm.host().foreign().len(), 2);
        writeln!(figures, "{name}: load {load}, connection {connection}").unwrap();
    }
    figures
}

/// Returns the numbers of a text, and the words around them.
fn figures(text: &str) -> (Vec<u64>, Vec<&str>) {
    let (numbers, words): (Vec<_>, Vec<_>) =
        text.split([' ', ',', '\n']).partition(|word| word.bytes().all(|b| b.is_ascii_digit()) && !word.is_empty());
    (numbers.into_iter().map(|number| number.parse().unwrap()).collect(), words)
}

#[test]
fn fuel_matches_the_golden() {
    let path = testbed::root().join("tests/data/fuel");
    let measured = measure();
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, &measured).unwrap();
    }
    let golden = fs::read_to_string(path).unwrap();
    let ((numbers, words), (expected, expected_words)) = (figures(&measured), figures(&golden));
    assert_eq!(words, expected_words);
    for (number, expected) in numbers.into_iter().zip(expected) {
        let difference = number.abs_diff(expected);
        assert!(
            difference * 100 <= expected * MARGIN,
            "expected {expected}, measured {number}; UPDATE=1 accepts the measured numbers:\n{measured}"
        );
    }
}

#[test]
fn memory_does_not_grow_after_the_first_thousand_connections() {
    let mut vm = Vm::new(&shipped().unwrap());
    assert!(vm.configure(ROOT, b"istio"));
    vm.host().properties.insert("destination.address", b"198.51.100.7:443".to_vec());
    let mut size = 0;
    for connection in 0..200_000_u32 {
        if connection % 1_000 == 0 {
            // IPv4 and IPv6 addresses, and pipe paths of growing length.
            let source = match connection / 1_000 % 3 {
                0 => format!("10.0.{}.2:{}", connection % 256, connection % 65_536),
                1 => format!("[2001:db8::{:x}]:443", connection % 65_536),
                _ => format!("/run/{}", "x".repeat(connection as usize / 800)),
            };
            set_source(&mut vm, source.as_bytes());
            vm.take_calls();
        }
        if connection == 1_000 {
            size = vm.memory_size();
        }
        let is_pipe = connection / 1_000 % 3 == 2;
        assert_eq!(vm.connection(STREAM + connection, ROOT), !is_pipe, "{connection}");
    }
    assert_eq!(vm.memory_size(), size);
}

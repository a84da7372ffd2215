//! A proxy-wasm host for the module in `dist/`, which answers as a fuzzer specifies.

use crate::traffic::{Call, check_line};
use std::{fs, path::Path};
use wasmi::{
    AsContextMut, Caller, Engine, Extern, Instance, Linker, Memory, Module, Store, StoreLimits, StoreLimitsBuilder, Val,
};

/// The maximum size of the linear memory, in bytes.
const MEMORY: usize = 16 << 20;

/// The result of a host call.
#[derive(Clone, Default)]
pub struct Answer {
    /// The status.
    pub status: u32,
    /// The length that is returned with a null pointer if `memory` is `None`.
    pub length: u32,
    /// The bytes that are copied into the module's memory.
    pub memory: Option<Vec<u8>>,
}

impl Answer {
    /// Returns an answer with this status and these bytes.
    #[must_use]
    pub fn of(status: u32, bytes: &[u8]) -> Self {
        Self { status, length: 0, memory: Some(bytes.to_vec()) }
    }

    /// Returns the bytes that the module must read: none if the pointer is null, and `None` if the call fails.
    #[must_use]
    pub fn bytes(&self) -> Option<Vec<u8>> {
        (self.status == 0).then(|| self.memory.clone().unwrap_or_default())
    }
}

/// The answers of the host, and the calls that it received.
#[derive(Default)]
pub struct Host {
    /// The plugin configuration.
    pub configuration: Answer,
    /// `source.address`.
    pub source: Answer,
    /// `destination.address`.
    pub destination: Answer,
    /// `connection.requested_server_name`.
    pub server_name: Answer,
    /// The result of the foreign function.
    pub result: Answer,
    /// The status of the query for the log level, and the level.
    pub level: (u32, u32),
    /// The status of calls whose status the module ignores.
    pub ignored_status: u32,
    /// One bit for each counter of a configuration, which is set if the counter is refused. The last bit is for all further
    /// counters.
    pub refused: u8,
    /// The names of all counters that the module tried to define. Their indices are their ids.
    pub counters: Vec<String>,
    /// The recorded calls.
    pub calls: Vec<Call>,
    /// The number of counters that the current call has tried to define.
    attempted: u32,
    limits: StoreLimits,
}

struct Shipped {
    module: Module,
    linker: Linker<Host>,
}

thread_local! {
    static SHIPPED: Shipped = {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dist/sluice.wasm");
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{error}: {}: run make build-wasm", path.display()));
        let engine = Engine::default();
        let mut linker = Linker::new(&engine);
        define(&mut linker).unwrap();
        Shipped { module: Module::new(&engine, bytes).unwrap(), linker }
    };
}

/// An instance of the module. A trap panics.
pub struct Vm {
    store: Store<Host>,
    instance: Instance,
}

impl Vm {
    /// Creates a new instance.
    #[must_use]
    pub fn new() -> Self {
        SHIPPED.with(|shipped| {
            let limits = StoreLimitsBuilder::new().memory_size(MEMORY).build();
            let mut store = Store::new(shipped.linker.engine(), Host { limits, ..Host::default() });
            store.limiter(|host| &mut host.limits);
            let instance = shipped.linker.instantiate_and_start(&mut store, &shipped.module).unwrap();
            Self { store, instance }
        })
    }

    /// Returns the host.
    pub fn host(&mut self) -> &mut Host {
        self.store.data_mut()
    }

    /// Calls an export. Returns its result, or 0 if it has none.
    pub fn call(&mut self, export: &str, arguments: &[u32]) -> u32 {
        self.host().attempted = 0;
        let function = self.instance.get_func(&self.store, export).unwrap();
        let arguments: Vec<Val> = arguments.iter().map(|&argument| Val::I32(argument.cast_signed())).collect();
        let mut results = vec![Val::I32(0); function.ty(&self.store).results().len()];
        function.call(&mut self.store, &arguments, &mut results).unwrap_or_else(|error| panic!("{export}: {error}"));
        results.first().and_then(Val::i32).unwrap_or(0).cast_unsigned()
    }
}

impl Default for Vm {
    fn default() -> Self {
        Self::new()
    }
}

type Context<'a> = Caller<'a, Host>;

fn define(linker: &mut Linker<Host>) -> Result<(), wasmi::Error> {
    linker.func_wrap("env", "proxy_log", |mut caller: Context<'_>, level: u32, data: u32, size: u32| {
        check_line(&read(&caller, data, size));
        caller.data_mut().calls.push(Call::Log(level));
        caller.data().ignored_status
    })?;
    linker.func_wrap("env", "proxy_get_log_level", |mut caller: Context<'_>, to: u32| {
        let (status, level) = caller.data().level;
        write(&mut caller, to, &level.to_le_bytes());
        status
    })?;
    linker.func_wrap(
        "env",
        "proxy_get_property",
        |mut caller: Context<'_>, path: u32, path_size: u32, to: u32, to_size: u32| {
            let host = caller.data();
            let answer = match &*read(&caller, path, path_size) {
                b"source\0address" => host.source.clone(),
                b"destination\0address" => host.destination.clone(),
                b"connection\0requested_server_name" => host.server_name.clone(),
                other => panic!("the module read the unexpected property {other:?}"),
            };
            give(&mut caller, &answer, to, to_size)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_get_buffer_bytes",
        |mut caller: Context<'_>, buffer: u32, start: u32, _size: u32, to: u32, to_size: u32| {
            assert_eq!((buffer, start), (7, 0));
            let answer = caller.data().configuration.clone();
            give(&mut caller, &answer, to, to_size)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_call_foreign_function",
        |mut caller: Context<'_>, name: u32, name_size: u32, data: u32, size: u32, to: u32, to_size: u32| {
            assert_eq!(read(&caller, name, name_size), b"set_envoy_filter_state");
            let message = read(&caller, data, size);
            let value = message.strip_prefix(b"\x0a\x17envoy.tcp_proxy.cluster\x12").unwrap();
            let (length, value) = value.split_first().unwrap();
            assert_eq!(usize::from(*length), value.len(), "the length is one byte, and no field follows the value");
            let value = String::from_utf8(value.to_vec()).unwrap();
            caller.data_mut().calls.push(Call::Override(value));
            let answer = caller.data().result.clone();
            give(&mut caller, &answer, to, to_size)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_define_metric",
        |mut caller: Context<'_>, kind: u32, name: u32, size: u32, to: u32| {
            assert_eq!(kind, 0);
            let name = String::from_utf8(read(&caller, name, size)).unwrap();
            let host = caller.data_mut();
            let id = host.counters.len() as u32;
            host.counters.push(name);
            let refused = u32::from(host.refused >> host.attempted.min(7) & 1);
            host.attempted += 1;
            write(&mut caller, to, &id.to_le_bytes());
            refused
        },
    )?;
    linker.func_wrap("env", "proxy_increment_metric", |mut caller: Context<'_>, id: u32, by: i64| {
        assert_eq!(by, 1);
        let host = caller.data_mut();
        host.calls.push(Call::Count(host.counters[id as usize].clone()));
        host.ignored_status
    })?;
    linker.func_wrap("env", "proxy_close_stream", |mut caller: Context<'_>, stream: u32| {
        assert_eq!(stream, 2);
        caller.data_mut().calls.push(Call::Close);
        caller.data().ignored_status
    })?;
    Ok(())
}

fn memory(caller: &Context<'_>) -> Memory {
    caller.get_export("memory").and_then(Extern::into_memory).unwrap()
}

fn read(caller: &Context<'_>, data: u32, size: u32) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    memory(caller).read(caller, data as usize, &mut bytes).unwrap();
    bytes
}

fn write(caller: &mut Context<'_>, to: u32, bytes: &[u8]) {
    memory(caller).write(caller, to as usize, bytes).unwrap();
}

/// Passes an answer to the module, in memory from its own `malloc`.
fn give(caller: &mut Context<'_>, answer: &Answer, to: u32, to_size: u32) -> u32 {
    let (mut data, mut length) = (0, answer.length);
    if let Some(bytes) = &answer.memory {
        length = bytes.len() as u32;
        let malloc = caller.get_export("malloc").and_then(Extern::into_func).unwrap();
        let malloc = malloc.typed::<u32, u32>(&caller).unwrap();
        data = malloc.call(caller.as_context_mut(), length).unwrap();
        write(caller, data, bytes);
    }
    write(caller, to, &data.to_le_bytes());
    write(caller, to_size, &length.to_le_bytes());
    answer.status
}

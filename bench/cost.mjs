// What one connection costs in the module, in Node.js's V8 with a stub for a host:
//   node --no-liftoff bench/cost.mjs dist/sluice.wasm ROUTES
// ROUTES is a number of routes with a source prefix each, of which the last one alone matches.
import fs from "node:fs";

const [path, routes] = process.argv.slice(2);
const table = Array.from({ length: routes - 1 }, (_, i) => ({
  match: { source: [`172.${16 + (i >> 8)}.${i & 255}.0/24`] },
  clusters: ["a", "b"],
}));
const encode = (text) => new TextEncoder().encode(text);
const config = encode(JSON.stringify({ routes: [...table, { clusters: ["egress1", "egress2"] }] }));
const source = encode("10.0.0.2:12345");
const WARM_UP = 200_000, ROUNDS = 15, EACH = 50_000;

let module, overrides = 0;
const view = () => new DataView(module.memory.buffer);
const give = (bytes, to, toSize) => {
  const at = module.malloc(bytes.length);
  new Uint8Array(module.memory.buffer).set(bytes, at);
  view().setUint32(to, at, true);
  view().setUint32(toSize, bytes.length, true);
  return 0;
};
const set = (to, value) => (view().setUint32(to, value, true), 0);
const env = {
  proxy_log: (_, at, size) => (console.error(Buffer.from(module.memory.buffer, at, size).toString()), 0),
  proxy_get_log_level: (to) => set(to, 2),
  proxy_get_property: (_path, _size, to, toSize) => give(source, to, toSize),
  proxy_get_buffer_bytes: (_buffer, _start, _max, to, toSize) => give(config, to, toSize),
  proxy_call_foreign_function: () => (overrides++, 0),
  proxy_close_stream: () => 0,
  proxy_define_metric: (_kind, _name, _size, to) => set(to, 1),
  proxy_increment_metric: () => 0,
};
module = (await WebAssembly.instantiate(fs.readFileSync(path), { env })).instance.exports;
module.proxy_on_context_create(1, 0);
if (!module.proxy_on_configure(1, config.length)) process.exit(1);

const connections = (count) => {
  const start = process.hrtime.bigint();
  for (let i = 0; i < count; i++) {
    module.proxy_on_context_create(2, 1);
    module.proxy_on_new_connection(2);
    module.proxy_on_delete(2);
  }
  return Number(process.hrtime.bigint() - start) / count;
};
connections(WARM_UP);
const rounds = Array.from({ length: ROUNDS }, () => connections(EACH)).sort((a, b) => a - b);
if (overrides !== WARM_UP + ROUNDS * EACH) throw new Error(`${overrides} overrides`);
console.log(`${routes} routes: ${rounds[0].toFixed(0)} ns (fastest), ${rounds[ROUNDS >> 1].toFixed(0)} ns (median)`);

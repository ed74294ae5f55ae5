// SPDX-License-Identifier: MIT
// Runs a WebAssembly program under node with the files of this folder: node wasi.mjs PROGRAM.wasm ARGUMENT ...
import { readFileSync } from "node:fs";
import { WASI } from "node:wasi";

process.removeAllListeners("warning"); // "WASI is an experimental feature"
const wasi = (globalThis.wasi = new WASI({ // a global, because node would collect it while the program runs
    version: "preview1",
    args: process.argv.slice(2),
    env: process.env,
    preopens: { ".": "." },
    returnOnExit: true,
}));
const program = new WebAssembly.Module(readFileSync(process.argv[2]));
const instance = new WebAssembly.Instance(program, { wasi_snapshot_preview1: wasi.wasiImport });
process.exitCode = wasi.start(instance);

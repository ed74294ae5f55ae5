// SPDX-License-Identifier: MIT
// Runs janus.c off the page's thread: gives its WebAssembly the few system calls that it needs, and passes on what its
// callbacks say. A message is {call, ...arguments}; the last answer to it is {result}, {error} or {died}.
"use strict";

let wasm, info, ids, rgb; // the last two: rooms in its memory, for a picture's ids and all colours
let model, picture, temperature, candidates; // of the call that runs: the files, the setting, what the next id may be

const view = () => new DataView(wasm.memory.buffer); // another buffer whenever the memory has grown
const bytesAt = (at, size) => new Uint8Array(wasm.memory.buffer, at >>> 0, size);
const textAt = (at, size) => new TextDecoder().decode(bytesAt(at, size).slice());
const cString = (at) => textAt(at, bytesAt(at).indexOf(0));
const numbersAt = (at, count, type = Int32Array) => Array.from(new type(wasm.memory.buffer, at >>> 0, count));
const setNumber = (at, value) => { view().setUint32(at >>> 0, value, true); return OK; };
const setLong = (at, value) => { view().setBigUint64(at >>> 0, BigInt(value), true); return OK; };

// ---- The system calls of WASI: a clock, the file that is read, and the file that is written ----

const OK = 0, EBADF = 8, EINVAL = 28; // WASI's numbers
const FOLDER = 3, MODEL = 4, PICTURE = 5; // descriptors
const DEVICE = 2, REGULAR = 4; // kinds of files: a device is written in place

function stat(descriptor, out) {
    bytesAt(out, 64).fill(0);
    bytesAt(out + 16, 1)[0] = descriptor === MODEL ? REGULAR : DEVICE;
    return setLong(out + 32, descriptor === MODEL ? model.size : 0);
}

// From the file's slice straight to its place: nothing keeps a second copy.
function readAt(descriptor, list, count, offset, out) {
    const from = Number(offset), [at, size] = numbersAt(list, 2, Uint32Array);
    const slice = new Uint8Array(new FileReaderSync().readAsArrayBuffer(model.slice(from, from + Math.min(size, 1 << 24))));
    bytesAt(at, slice.length).set(slice);
    postMessage({ stage: "load", done: from + slice.length, total: model.size });
    return setNumber(out, slice.length);
}

function write(descriptor, list, count, out) {
    const parts = Array.from({ length: count }, (_, i) => bytesAt(...numbersAt(list + 8 * i, 2, Uint32Array)).slice());
    picture.push(...parts);
    return setNumber(out, parts.reduce((sum, part) => sum + part.length, 0));
}

const fileAt = (path, length) => (textAt(path, length) === "model.gguf" ? MODEL : PICTURE);
const wasi = {
    clock_time_get: (clock, precision, out) => setLong(out, Math.round(performance.now() * 1e6)),
    fd_close: () => OK,
    fd_fdstat_get: (descriptor, out) => { bytesAt(out, 24).fill(255); return setNumber(out, descriptor); }, // with every right
    fd_filestat_get: stat,
    fd_pread: readAt,
    fd_prestat_get: (descriptor, out) => (descriptor === FOLDER ? setLong(out, 1n << 32n) : EBADF), // a name of 1 byte
    fd_prestat_dir_name: (descriptor, out) => { bytesAt(out, 1)[0] = 47; return OK; }, // "/"
    fd_write: write,
    path_filestat_get: (folder, flags, path, length, out) => stat(fileAt(path, length), out),
    path_open: (folder, links, path, length, how, rights, inherited, flags, out) => setNumber(out, fileAt(path, length)),
};

// ---- The program's callbacks ----

// The most probable ids of softmax(logits / temperature), and their shares of it; temperature 0 counts as 1.
function likely(logits) {
    const best = logits.reduce((a, b) => Math.max(a, b));
    const weights = logits.map((logit) => Math.exp((logit - best) / (temperature || 1))), sum = weights.reduce((a, b) => a + b);
    const first = [...logits.keys()].sort((a, b) => logits[b] - logits[a]).slice(0, 8);
    return { ids: first, shares: first.map((id) => weights[id] / sum) };
}

const page = {
    progress: (user, stage, done, total) => { postMessage({ stage: cString(stage), done: Number(done), total: Number(total) }); return 0; },
    text: (user, text, length) => { postMessage({ text: textAt(text, length) }); return 0; },
    tap: (user, name, type, data, shape) => {
        const tensor = cString(name), count = numbersAt(shape, 1)[0];
        if (tensor === "text.token_ids") postMessage({ prompt: numbersAt(data, count).map((id) => ({ id, text: cString(wasm.web_token(id)) })) });
        if (tensor === "generation.logits.cond") candidates = { plain: likely(numbersAt(data, count, Float32Array)) };
        if (tensor === "generation.logits") candidates.guided = likely(numbersAt(data, count, Float32Array));
    },
    drawn: (user, drawing, count, done) => { postMessage({ id: numbersAt(drawing, Number(done)).at(-1), candidates }); return 0; },
};

// ---- Calls ----

// A module with i8x16.splat and i8x16.popcnt, valid where there is SIMD128.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

async function get(name, tell = () => {}) {
    try {
        const answer = await fetch(name), total = answer.headers.get("Content-Encoding") ? 0 : Number(answer.headers.get("Content-Length"));
        if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
        let done = 0;
        const transform = (part, out) => { out.enqueue(part); tell(done += part.length, total); };
        return await new Response(answer.body.pipeThrough(new TransformStream({ transform }))).blob();
    } catch (error) {
        throw new Error(`${name} could not be fetched: ${error.message}`);
    }
}

function put(bytes) {
    const at = wasm.malloc(bytes.length);
    if (at === 0) throw new RangeError("no memory left in this tab");
    bytesAt(at, bytes.length).set(bytes);
    return at;
}

// Calls a function of web.c. Strings, and byte arrays with their length, lie in its memory while it runs.
function run(name, ...values) {
    const rooms = values.map((value) => (typeof value === "string" ? put(new TextEncoder().encode(value + "\0")) : value.buffer ? put(value) : 0));
    picture = [];
    const status = wasm[name](...values.flatMap((value, i) => (rooms[i] === 0 ? [value] : value.buffer ? [rooms[i], value.length] : [rooms[i]])));
    rooms.forEach((at) => wasm.free(at));
    if (status !== 0) throw new Error(cString(wasm.web_message()));
    return new Blob(picture, { type: "image/png" });
}

const calls = {
    async load({ file, simd }) {
        const fast = simd && WebAssembly.validate(new Uint8Array(SIMD));
        const program = await get(fast ? "janus-simd.wasm" : "janus.wasm");
        model = file ?? await get("tiny.gguf", (done, total) => postMessage({ stage: "fetch", done, total }));
        const imports = { page, wasi_snapshot_preview1: new Proxy(wasi, { get: (own, call) => own[call] ?? (() => EINVAL) }) };
        wasm = (await WebAssembly.instantiate(await program.arrayBuffer(), imports)).instance.exports;
        wasm._initialize();
        run("web_load");
        const [version, side, tokens, codes, parameters, type, name] = cString(wasm.web_info()).split("\n");
        info = { version, side: +side, tokens: +tokens, codes: +codes, parameters: +parameters, type, name, isa: fast ? "SIMD" : "no SIMD" };
        [ids, rgb] = [put(new Uint8Array(4 * info.tokens)), put(new Uint8Array(3 * info.codes))];
        return { model, info };
    },
    colours() {
        run("web_colours", rgb);
        return bytesAt(rgb, 3 * info.codes).slice();
    },
    draw(settings) {
        const start = performance.now();
        temperature = settings.temperature;
        const drawing = run("web_draw", ids, settings.prompt, settings.parameters, settings.seed, settings.guidance, temperature);
        return { drawing, seconds: (performance.now() - start) / 1e3 };
    },
    ask: ({ image, question }) => run("web_ask", image, question),
    encode: ({ image }) => ({ drawing: run("web_encode", ids, image), ids: numbersAt(ids, info.tokens) }),
};

onmessage = async ({ data }) => {
    try {
        postMessage({ result: await calls[data.call](data) });
    } catch (error) {
        const ended = error instanceof WebAssembly.RuntimeError || error instanceof RangeError;
        postMessage({ [ended ? "died" : "error"]: error.message });
    }
};

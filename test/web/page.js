// SPDX-License-Identifier: MIT
// The page: what its parts show, and one worker that computes (worker.js). A task that is stopped, or a worker that dies,
// ends that worker: the next task starts another with the same model.
const $ = (id) => document.getElementById(id);
const LIMIT = 2 ** 31, WORK = 0.9e9; // bytes: of a model's file, which is one block of memory; what a model of 1B parameters computes with
const form = document.forms[0].elements; // the settings of a drawing
const DIED = "The computation ended unexpectedly";

let worker, job; // its last call: {resolve, reject, listen}
let wanted, model, info, colours; // files: to load, loaded; what it holds; a colour for every id
let photo, picture; // files: the one to ask about, the one drawn
let steps = []; // of the drawing: {id, candidates}

// ---- The worker ----

function startWorker() {
    worker = new Worker("worker.js");
    worker.onmessage = ({ data }) => {
        if (data.died) endWorker(`${DIED}: ${data.died}.`);
        else if (data.error) job.reject(new Error(data.error));
        else if ("result" in data) job.resolve(data.result);
        else if (data.stage) showProgress(data);
        else job.listen(data);
    };
    worker.onerror = ({ message }) => endWorker(`${DIED}: ${message || "worker.js could not be loaded"}.`);
}

function endWorker(message) {
    worker?.terminate();
    worker = undefined;
    job?.reject(new Error(message));
}

function call(name, args = {}, listen = () => {}) {
    return new Promise((resolve, reject) => {
        job = { resolve, reject, listen };
        if (worker) worker.postMessage({ call: name, ...args });
        else reject(new Error("")); // it was stopped before
    });
}

// Runs what a button began, which stops it meanwhile.
async function task(button, work) {
    const name = button.textContent;
    $("alert").hidden = true;
    enable(false);
    button.textContent = "Stop";
    button.disabled = false;
    try {
        if (!worker) await load();
        await work?.();
    } catch (error) {
        $("status").textContent = "Stopped";
        if (error.message) showAlert(error.message, "Try again", () => task(button, work));
    }
    button.textContent = name;
    $("load").value = 0;
    enable(true);
}

function enable(on) {
    document.body.dataset.busy = !on;
    $("draw").disabled = $("model-file").disabled = !on;
    $("ask").disabled = $("encode").disabled = !on || !photo;
}

// ---- Models ----

const size = (bytes) => (bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`);

// Loads `wanted`; if that fails, the model before is the next to try.
async function load() {
    if (typeof WebAssembly !== "object") throw new Error("This browser has no WebAssembly, or it is switched off. The page needs it to compute.");
    startWorker();
    const settings = { file: wanted, simd: new URLSearchParams(location.hash.slice(1)).get("simd") !== "off" };
    wanted = model;
    $("model-name").textContent = "No model is loaded";
    ({ model, info } = await call("load", settings).catch((error) => { endWorker(""); throw error; }));
    wanted = model;
    colours = undefined;
    $("model-name").textContent = `${info.name}: ${(info.parameters / 1e6).toFixed(1)} M parameters, ${info.type}, ${info.isa}`;
    $("step").max = info.tokens;
}

// Says what a file needs before it is loaded.
async function chooseModel(file) {
    const begins = await file.slice(0, 4).text(), again = () => $("model-file").click();
    if (begins !== "GGUF") showAlert(`${file.name} is no model file: convert.py writes them, as .gguf.`, "Choose another", again);
    else if (file.size > LIMIT) showAlert(`${file.name} has ${size(file.size)}. A tab holds a model of ${size(LIMIT)} at most: convert.py --dtype q4_0 makes it smaller.`, "Choose another", again);
    else showAlert(`${file.name} has ${size(file.size)} and stays on this computer. With what it computes with, this tab will take up to ${size(file.size + Math.min(WORK, 8 * file.size))} of memory.`
        + (file.size > 5e8 ? " A token of such a model takes a second or more, and a picture is hundreds of tokens." : ""), "Load it", () => { endWorker(""); wanted = file; task($("draw")); });
}

function showProgress({ stage, done, total }) {
    $("load").value = total > 0 ? done / total : 0;
    if (stage === "fetch" || stage === "load") $("model-name").textContent = `${stage === "fetch" ? "Loading the small model" : "Reading the model"}: ${size(done)}${total > 0 ? ` of ${size(total)}` : ""}`;
}

// ---- Tokens ----

const colour = (id) => `rgb(${colours.slice(3 * id, 3 * id + 3).join(" ")})`;
const getColours = async () => { colours ??= await call("colours"); };

function element(tag, text, name = "") {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = name;
    return made;
}

// A chip for each word or special token; several of one kind in a row share one.
function showSequence(list, tokens, ...more) {
    const chips = [];
    tokens.forEach(({ id, text }, at) => {
        let count = 1;
        if (tokens[at - 1]?.id === id) return;
        while (tokens[at + count]?.id === id) count++;
        const name = (at > 0 ? text.replaceAll("\n", "⏎") : "BOS") + (count > 1 ? ` × ${count}` : "");
        chips.push(element("li", name, count > 8 ? "image" : at === 0 || /^<.+>$/.test(text) ? "special" : ""));
        chips.at(-1).title = `id ${id}`;
    });
    list.replaceChildren(...chips, ...more);
    list.scrollTop = list.scrollHeight;
}

function clearGrid(grid) {
    grid.style.setProperty("--side", Math.sqrt(info.tokens));
    grid.replaceChildren(...Array.from({ length: info.tokens }, () => element("i", "")));
}

function fill(grid, at, id) {
    grid.children[at].style.background = colour(id);
    grid.children[at].title = id;
    grid.setAttribute("aria-label", `${at + 1} of ${info.tokens} image tokens`);
}

// The step that the slider names: its place in the grid, and the likely ids, where the steps are open.
function showStep() {
    const at = Number($("step").value) - 1, step = steps[at];
    $("picture").hidden = $("steps").open || !picture;
    $("grid").querySelector(".chosen")?.classList.remove("chosen");
    if (!step || !$("steps").open) return;
    $("grid").children[at].classList.add("chosen");
    $("step-name").textContent = `${at + 1} of ${info.tokens}: id ${step.id}`;
    for (const [kind, { ids, shares }] of Object.entries(step.candidates)) $(kind).replaceChildren(...ids.map((id, i) => {
        const row = element("li", `${id} ${(100 * shares[i]).toFixed(1)} %`, id === step.id ? "taken" : "");
        row.style.setProperty("--share", shares[i]);
        row.style.borderColor = colour(id);
        return row;
    }));
}

// ---- Drawing ----

function readLink() {
    document.forms[0].reset();
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (name in form) form[name].value = value;
}

// What the program writes into its pictures.
function parametersText({ prompt, seed, guidance, temperature }) {
    return `${prompt}\nSteps: ${info.tokens}, Sampler: autoregressive, CFG scale: ${guidance}, Seed: ${seed}, Size: ${info.side}x${info.side}, `
        + `Model: ${info.name.replaceAll(",", " ")} (${info.type}), Temperature: ${temperature}, RNG: torch, Picture: 1 of 1, Version: janus ${info.version}`;
}

function readSettings() {
    const { prompt, seed, guidance, temperature } = form;
    if (!document.forms[0].checkValidity() || BigInt(seed.value) >= 1n << 64n)
        throw new Error("A drawing needs a prompt, a seed below 2^64, and guidance and temperature from 0 to 100.");
    history.replaceState(null, "", `#${new URLSearchParams(new FormData(document.forms[0]))}`);
    return { prompt: prompt.value, seed: BigInt(seed.value), guidance: Number(guidance.value), temperature: Number(temperature.value) };
}

async function draw() {
    const settings = readSettings(), counter = element("li", "image tokens", "image");
    steps = [];
    picture = undefined;
    clearGrid($("grid"));
    showStep();
    $("download").removeAttribute("href");
    $("status").textContent = "Finding a colour for each id";
    await getColours();
    $("status").textContent = "Drawing";
    const drawn = await call("draw", { ...settings, parameters: parametersText(settings) }, ({ prompt, id, candidates }) => {
        if (prompt) {
            showSequence($("sequence"), prompt, counter);
        } else {
            fill($("grid"), steps.length, id);
            steps.push({ id, candidates });
            counter.textContent = `image token ${steps.length} of ${info.tokens}: ${id}`;
        }
    });
    picture = Object.assign(drawn.drawing, { drawn: true });
    show($("picture"), picture, `Drawn for the prompt: ${settings.prompt}`);
    showStep();
    $("download").href = $("picture").src;
    $("status").textContent = `${info.tokens} tokens and the picture in ${drawn.seconds.toFixed(2)} s`;
    if (!photo || photo.drawn) usePhoto(picture, "The picture drawn above. Drop a photo of yours in its place.");
}

// ---- Photos ----

function show(image, file, text) {
    URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(file);
    image.alt = text;
    image.hidden = false;
}

function usePhoto(file, text) {
    photo = file;
    $("photo-name").textContent = text;
    $("drop-hint").textContent = "Drop another, paste one, or choose a file";
    show($("photo"), file, text);
    $("again").hidden = true;
    $("codes").replaceChildren();
    enable(document.body.dataset.busy === "false");
}

const takePhoto = ([file]) => { if (file) usePhoto(file, file.name); };
const photoBytes = async () => new Uint8Array(await photo.arrayBuffer());

async function ask() {
    $("answer").textContent = "";
    await call("ask", { image: await photoBytes(), question: $("question").value }, (said) => {
        if (said.prompt) showSequence($("asked"), said.prompt);
        else $("answer").textContent += said.text;
    });
}

async function encode() {
    await getColours();
    clearGrid($("codes"));
    const { ids, drawing } = await call("encode", { image: await photoBytes() });
    ids.forEach((id, at) => fill($("codes"), at, id));
    show($("again"), drawing, "The picture that the ids give");
}

// ---- Messages, and what the parts of the page do ----

function showAlert(text, action, act) {
    $("alert-text").textContent = text;
    $("alert-action").textContent = action;
    $("alert-action").onclick = () => { $("alert").hidden = true; act(); };
    $("alert").hidden = false;
    $("alert-action").focus();
}

function begin(button, work, event) {
    event.preventDefault();
    if (document.body.dataset.busy === "true") endWorker("");
    else task($(button), work);
}

document.forms[0].onsubmit = (event) => begin("draw", draw, event);
document.forms[1].onsubmit = (event) => begin("ask", ask, event);
$("encode").onclick = (event) => begin("encode", encode, event);
$("another").onclick = () => { form.seed.value = crypto.getRandomValues(new Uint32Array(1))[0]; };
$("steps").ontoggle = $("step").oninput = showStep;
$("grid").onclick = ({ target }) => { $("step").value = 1 + Array.from($("grid").children).indexOf(target); $("steps").open = true; showStep(); };
$("alert-close").onclick = () => { $("alert").hidden = true; };
$("model-file").onchange = ({ target }) => { if (target.files[0]) chooseModel(target.files[0]); target.value = ""; };
$("photo-file").onchange = ({ target }) => takePhoto(target.files);
$("drop").ondragover = (event) => event.preventDefault();
$("drop").ondrop = (event) => { event.preventDefault(); takePhoto(event.dataTransfer.files); };
document.onpaste = ({ clipboardData }) => takePhoto(clipboardData.files);
window.onhashchange = () => { readLink(); if (document.body.dataset.busy === "false") task($("draw"), draw); };
readLink();
task($("draw"), draw);

// The page: a recording becomes words, and the server's state is shown meanwhile.

import { WRITERS } from "./formats.js";
import { clear, showRecording, showWords } from "./player.js";
import { record } from "./recording.js";
import { ServerError, address, get, keepKey, key, transcribe } from "./server.js";

const REFRESH_MS = 3000;
const at = (id) => document.getElementById(id);

let running = null; // the AbortController of the transcription that runs
let recording = null; // the function that ends the recording
let transcript = null;

// Words.

async function run(file, { keepText = false } = {}) {
  running?.abort();
  const mine = (running = new AbortController());
  transcript = null;
  clear();
  complain("");
  at("result").hidden = false;
  at("save").hidden = true;
  at("cancel").hidden = false;
  if (!keepText) at("text").textContent = "";
  showRecording(file);
  progress(`Sending ${file.name}`, 0);

  const found = { text: "", seconds: 0 };
  const fields = {
    language: at("language").value.trim(),
    prompt: at("prompt").value.trim(),
    stream: "true",
    response_format: "verbose_json",
    "timestamp_granularities[]": ["word", "segment"],
    max_line_width: "42", // of subtitles, which are saved from the cues
    max_line_count: "2",
  };
  const onSent = (part) => progress(part < 1 ? `Sending ${file.name}` : "Waiting for the first words", part < 1 ? part : null);
  const onEvent = (event) => {
    if (mine !== running) return;
    if (event.type === "transcript.text.delta") {
      found.text += event.delta;
      at("text").textContent = found.text;
      progress(`Transcribed to ${clock(event.end)}`, at("player").duration ? event.end / at("player").duration : null);
    } else if (event.type === "transcript.text.done") {
      const { type, ...rest } = event;
      transcript = rest;
    }
  };
  const started = performance.now();
  try {
    await withKey(() => transcribe(file, fields, { signal: mine.signal, onSent, onEvent }));
    if (mine !== running) return;
    showWords(transcript);
    const took = ((performance.now() - started) / 1000).toFixed(1);
    progress(transcript.text ? `${clock(transcript.duration)} of ${name(transcript.language)}, in ${took} s` : `No speech was found (${took} s).`);
    at("save").hidden = !transcript.text;
  } catch (failure) {
    if (mine !== running) return;
    progress(failure.name === "AbortError" ? "Cancelled." : "");
    if (failure.name !== "AbortError") complain(failure.message);
  } finally {
    if (mine === running) {
      at("cancel").hidden = true;
      at("bar").hidden = true;
      refresh();
    }
  }
}

async function toggleRecording() {
  if (recording) {
    const end = recording;
    recording = null;
    at("record").disabled = true;
    const file = await end();
    showRecordButton();
    await run(file, { keepText: true });
    return;
  }
  running?.abort();
  running = null;
  complain("");
  clear();
  try {
    // Asks for the key, if one is needed, before the microphone is opened.
    await withKey(() => get("v1/models"));
    recording = await record({
      language: at("language").value.trim(),
      prompt: at("prompt").value.trim(),
      onText: (text) => (at("text").textContent = text),
      onTrouble: (message) => complain(message),
    });
  } catch (failure) {
    complain(failure.name === "NotAllowedError" ? "The browser does not let this page use the microphone." : failure.message);
    return;
  }
  at("result").hidden = false;
  at("save").hidden = true;
  at("cancel").hidden = true;
  at("text").textContent = "";
  progress("Recording. Speak now.");
  showRecordButton();
}

function showRecordButton() {
  at("record").disabled = false;
  at("record").setAttribute("aria-pressed", String(Boolean(recording)));
  at("record").textContent = recording ? "Stop" : "Record";
}

function progress(sentence, part) {
  at("progress").textContent = sentence;
  at("bar").hidden = part === undefined;
  if (part === null || part === undefined) at("bar").removeAttribute("value");
  else at("bar").value = part;
}

function complain(sentence) {
  at("problem").textContent = sentence;
  at("problem").hidden = !sentence;
}

function name(language) {
  return language.charAt(0).toUpperCase() + language.slice(1);
}

function clock(seconds) {
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

async function save(format) {
  if (format === "copy") {
    await copy(transcript.text);
    return progress("Copied.");
  }
  const [type, write] = WRITERS[format];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([write(transcript)], { type }));
  link.download = `transcript.${format}`;
  link.click();
  URL.revokeObjectURL(link.href);
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Pages of plain http have no clipboard interface.
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

// The key.

/** Do a call; where the server wants a key, ask for one and do it again. */
async function withKey(call) {
  for (;;) {
    try {
      return await call();
    } catch (failure) {
      if (!(failure instanceof ServerError) || failure.status !== 401 || !(await askForKey())) throw failure;
    }
  }
}

function askForKey() {
  const dialog = at("key-dialog");
  at("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      const given = dialog.returnValue === "use" && at("key").value.trim();
      if (given) keepKey(given);
      showLines();
      resolve(Boolean(given));
    };
  });
}

// Connect.

function showLines() {
  const base = address("v1");
  at("environment").textContent = `export OPENAI_BASE_URL=${base}\nexport OPENAI_API_KEY=${key() ? "your-key" : "none"}`;
  const authorization = key() ? ' -H "Authorization: Bearer $OPENAI_API_KEY"' : "";
  at("curl").textContent = `curl -sS ${base}/audio/transcriptions${authorization} -F file=@voice.ogg -F model=whisper-1`;
}

async function check() {
  at("checked").textContent = "Sending a message of five seconds …";
  const started = performance.now();
  let text = "";
  try {
    const message = new File([await (await fetch(address("web/message.ogg"))).blob()], "message.ogg");
    const onEvent = (event) => (text = event.type === "transcript.text.done" ? event.text : text);
    const nothing = new AbortController().signal;
    await withKey(() => transcribe(message, { stream: "true" }, { signal: nothing, onSent: () => {}, onEvent }));
    at("checked").textContent = `It works. After ${((performance.now() - started) / 1000).toFixed(1)} s: “${text}”`;
  } catch (failure) {
    at("checked").textContent = failure.message;
  }
  refresh();
}

// The server's state.

async function refresh() {
  let health;
  try {
    health = await get("health");
  } catch {
    at("state").textContent = "The server does not answer";
    at("state").className = "state away";
    return;
  }
  at("state").textContent = health.ready ? `${health.model} on ${health.device}` : health.status === "failed" ? "The model could not be loaded" : "The model is being loaded";
  at("state").className = health.ready ? "state ready" : "state";
  let activity = { requests: [], audio_seconds_per_second: null };
  try {
    activity = await get("activity");
  } catch {
    // It needs the key, which the tab does not have yet.
  }
  const speed = activity.audio_seconds_per_second;
  show(at("facts"), [
    ["Model", health.model + (health.loaded ? "" : " (not loaded)")],
    ["Device", `${health.device}, ${health.compute_type}`],
    ["Requests now", String(health.requests)],
    ["Queue", `${health.queue_seconds.toFixed(1)} s`],
    ["Audio per second of work", speed === null ? "–" : `${speed.toFixed(1)} s`],
    ["Version", health.version],
  ]);
  at("requests").replaceChildren(...activity.requests.map(row));
}

function show(list, facts) {
  list.replaceChildren(
    ...facts.map(([name, value]) => {
      const pair = document.createElement("div");
      pair.append(element("dt", name), element("dd", value));
      return pair;
    }),
  );
}

function row(request) {
  const line = document.createElement("tr");
  const audio = request.audio_seconds === null ? "–" : `${request.audio_seconds.toFixed(1)} s`;
  line.append(
    element("td", new Date(request.ended * 1000).toLocaleTimeString()),
    element("td", String(request.status)),
    element("td", request.language ?? "–"),
    element("td", audio, "number"),
    element("td", `${request.seconds.toFixed(2)} s`, "number"),
  );
  return line;
}

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

async function listLanguages() {
  for (const [code, name] of Object.entries(await get("web/languages.json"))) {
    const option = document.createElement("option");
    option.value = code;
    option.textContent = name;
    at("languages").append(option);
  }
}

// What the user does.

at("choose").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", () => {
  const [file] = at("file").files;
  at("file").value = ""; // the same file may be chosen again
  if (file) run(file);
});
at("record").addEventListener("click", toggleRecording);
at("cancel").addEventListener("click", () => running?.abort());
at("check").addEventListener("click", check);
at("options").addEventListener("submit", (event) => event.preventDefault());
at("key-cancel").addEventListener("click", () => at("key-dialog").close(""));
document.querySelectorAll("[data-save]").forEach((button) => button.addEventListener("click", () => save(button.dataset.save)));
document.querySelectorAll("[data-copy]").forEach((button) => {
  button.addEventListener("click", () => copy(at(button.dataset.copy).textContent));
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
addEventListener("dragleave", () => at("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) run(file);
});

showLines();
listLanguages().catch(() => {}); // codes can be typed without the list
refresh();
setInterval(() => document.hidden || refresh(), REFRESH_MS);

// Calls to the server that this page came from, with the key that the tab keeps.

const KEY = "localwhisper-key";
// Relative to the page, so that a proxy may serve it under a path.
const BASE = new URL(".", document.baseURI);

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function keepKey(value) {
  sessionStorage.setItem(KEY, value);
}

export function address(path) {
  return new URL(path, BASE).href;
}

function headers() {
  return key() ? { Authorization: `Bearer ${key()}` } : {};
}

function failure(status, body) {
  let message = "";
  try {
    message = JSON.parse(body).error.message;
  } catch {
    // A proxy's page, or nothing.
  }
  if (status === 0) return new ServerError(0, "The server does not answer. Is it running, and is this device on its network?");
  return new ServerError(status, message || `The server answered with status ${status}.`);
}

/** Return the JSON of a GET. Throws ServerError; its status is 0 where there is no answer. */
export async function get(path) {
  let answer;
  try {
    answer = await fetch(address(path), { headers: headers(), cache: "no-store" });
  } catch {
    throw failure(0, "");
  }
  const body = await answer.text();
  if (!answer.ok) throw failure(answer.status, body);
  return JSON.parse(body);
}

/**
 * Send a recording. `onSent` is told the part of it that is sent, from 0 to 1; `onEvent` is given each event of the answer.
 * Resolves at the end of the stream. Throws ServerError, or AbortError once `signal` is aborted.
 *
 * XMLHttpRequest, because fetch does not tell how much of a body is sent.
 */
export function transcribe(file, fields, { signal, onSent, onEvent }) {
  const form = new FormData();
  for (const [name, value] of Object.entries({ model: "whisper-1", ...fields })) {
    for (const one of [value].flat()) if (one) form.append(name, one);
  }
  form.append("file", file, file.name || "recording.wav");
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    let read = 0;
    const readEvents = () => {
      if (request.status !== 200) return;
      for (let end; (end = request.responseText.indexOf("\n\n", read)) >= 0; read = end + 2) {
        const line = request.responseText.slice(read, end);
        if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
        const event = JSON.parse(line.slice(6));
        if (event.error) reject(new ServerError(500, event.error.message));
        else onEvent(event);
      }
    };
    request.open("POST", address("v1/audio/transcriptions"));
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onSent(event.loaded / event.total);
    request.onprogress = readEvents;
    request.onload = () => {
      readEvents();
      if (request.status === 200) resolve();
      else reject(failure(request.status, request.responseText));
    };
    request.onerror = () => reject(failure(0, ""));
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

/** Return the WebSocket of a realtime transcription. */
export function realtime() {
  const url = new URL("v1/realtime?intent=transcription", BASE);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  // A browser cannot set the header `Authorization` here; OpenAI's SDK sends the key as a sub-protocol.
  return new WebSocket(url, key() ? ["realtime", `openai-insecure-api-key.${key()}`] : ["realtime"]);
}

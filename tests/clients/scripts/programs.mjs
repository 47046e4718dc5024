// The requests of programs that cannot be installed here, with the settings of docs/programs.md.
import assert from "node:assert/strict";
import fs from "node:fs";
import { Readable } from "node:stream";
import axios from "axios";
import FormData from "form-data";

const url = `${process.env.OPENAI_BASE_URL}/audio/transcriptions`;
const Authorization = `Bearer ${process.env.OPENAI_API_KEY}`;
const voice = fs.readFileSync(process.argv[2]);
const transcripts = {};

// LibreChat: axios makes the form from an object with a stream whose path has the name.
const stream = Readable.from(voice);
stream.path = "audio.ogg";
const fields = { file: stream, model: "whisper-1", language: "en" };
const headers = { Authorization, "Content-Type": "multipart/form-data" };
transcripts.LibreChat = (await axios.post(url, fields, { headers })).data.text;

// n8n: a file has a type, and no name unless the workflow gave it one.
const form = new FormData();
form.append("model", "whisper-1");
form.append("file", voice, { filename: undefined, contentType: "audio/ogg" });
transcripts.n8n = (await axios.post(url, form, { headers: { ...form.getHeaders(), Authorization } })).data.text;

// Obsidian: its plugins call as web pages do, with a preflight, and leave `language` empty.
const Origin = "app://obsidian.md";
const asked = { Origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization" };
const preflight = await fetch(url, { method: "OPTIONS", headers: asked });
assert.ok(preflight.ok);
assert.match(preflight.headers.get("access-control-allow-headers").toLowerCase(), /authorization|\*/);
const page = new globalThis.FormData();
page.append("file", new Blob([voice]), "recording.ogg");
page.append("model", "whisper-1");
page.append("language", "");
const answer = await fetch(url, { method: "POST", headers: { Origin, Authorization }, body: page });
assert.ok([Origin, "*"].includes(answer.headers.get("access-control-allow-origin")));
transcripts.Obsidian = (await answer.json()).text;

console.log(JSON.stringify(transcripts));

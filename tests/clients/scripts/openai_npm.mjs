// openai (npm) as its README says: the client finds OPENAI_BASE_URL and OPENAI_API_KEY by itself.
import assert from "node:assert/strict";
import fs from "node:fs";
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const [, , voice] = process.argv;
const ask = (fields) =>
  client.audio.transcriptions.create({ file: fs.createReadStream(voice), model: "whisper-1", ...fields });

const json = await ask({});
assert.deepEqual(json.usage, { type: "duration", seconds: 5 });
const transcripts = { json: json.text };

for (const response_format of ["text", "srt", "vtt"]) transcripts[response_format] = await ask({ response_format });
assert.ok(transcripts.vtt.startsWith("WEBVTT\n\n"));

const verbose = await ask({ response_format: "verbose_json", timestamp_granularities: ["word", "segment"] });
assert.equal(verbose.language, "english");
assert.equal(Object.keys(verbose.segments[0]).length, 10);
assert.equal(verbose.words[0].word, "Please");
transcripts.verbose_json = verbose.text;

const events = [];
for await (const event of await ask({ model: "gpt-4o-transcribe", stream: true })) events.push(event);
const done = events.pop();
assert.equal(done.type, "transcript.text.done");
assert.equal(events.map((event) => event.delta).join(""), done.text);
transcripts.stream = done.text;

const translated = fs.createReadStream(voice);
transcripts.translation = (await client.audio.translations.create({ file: translated, model: "whisper-1" })).text;

const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.ok(models.includes("whisper-1"));
assert.equal((await client.models.retrieve("whisper-1")).id, "whisper-1");

const failure = (fields) => ask(fields).then(assert.fail, (error) => error);
const unknown = await failure({ model: "no-such-model" });
assert.deepEqual([unknown.constructor.name, unknown.status, unknown.code], ["NotFoundError", 404, "model_not_found"]);
assert.ok(unknown.requestID);
const unreadable = await failure({ file: await OpenAI.toFile(Buffer.from("no sound"), "a.ogg") });
assert.deepEqual([unreadable.constructor.name, unreadable.status], ["BadRequestError", 400]);

console.log(JSON.stringify(transcripts));

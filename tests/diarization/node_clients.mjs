// Who speaks, through OpenAI's SDK for Node and through Vercel's AI SDK: node node_clients.mjs TALK REFERENCE
import assert from "node:assert/strict";
import fs from "node:fs";
import { createOpenAI } from "@ai-sdk/openai";
import { transcribe } from "ai";
import OpenAI from "openai";

const [, , talk, reference] = process.argv;
const client = new OpenAI({ maxRetries: 0 });
const ask = (fields) =>
  client.audio.transcriptions.create({
    file: fs.createReadStream(talk),
    model: "gpt-4o-transcribe-diarize",
    response_format: "diarized_json",
    chunking_strategy: "auto",
    ...fields,
  });
const found = {};

const diarized = await ask({
  known_speaker_names: ["Greta"],
  known_speaker_references: [`data:audio/ogg;base64,${fs.readFileSync(reference).toString("base64")}`],
});
assert.equal(diarized.segments[0].type, "transcript.text.segment");
found.openai = diarized.segments.map((segment) => segment.speaker);

const kinds = new Set();
found.stream = [];
for await (const event of await ask({ stream: true })) {
  kinds.add(event.type);
  if (event.type === "transcript.text.segment") found.stream.push(event.speaker);
}
assert.deepEqual([...kinds], ["transcript.text.delta", "transcript.text.segment", "transcript.text.done"]);

// It asks for diarized_json by itself.
const openai = createOpenAI({ baseURL: process.env.OPENAI_BASE_URL });
const answer = await transcribe({
  model: openai.transcription("gpt-4o-transcribe-diarize"),
  audio: fs.readFileSync(talk),
  maxRetries: 0,
});
assert.ok(answer.segments[0].endSecond > 1);
found.ai = answer.providerMetadata.openai.segments.map((segment) => segment.speaker);
console.log(JSON.stringify(found));

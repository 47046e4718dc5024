// Vercel's AI SDK as its documentation says: transcribe with the provider @ai-sdk/openai.
import assert from "node:assert/strict";
import fs from "node:fs";
import { createOpenAI } from "@ai-sdk/openai";
import * as ai from "ai";

const transcribe = ai.transcribe ?? ai.experimental_transcribe; // since 7, and before
// The provider of AI SDK 4 does not read OPENAI_BASE_URL.
const openai = createOpenAI({ baseURL: process.env.OPENAI_BASE_URL });
const audio = fs.readFileSync(process.argv[2]);
const ask = (model, options) =>
  transcribe({ model: openai.transcription(model), audio, maxRetries: 0, providerOptions: options && { openai: options } });

const transcripts = {};
for (const model of ["whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe"]) {
  transcripts[model] = (await ask(model)).text;
  // Any option makes these SDKs send timestamp_granularities, too.
  transcripts[`${model} language`] = (await ask(model, { language: "en" })).text;
}
const words = await ask("whisper-1", { timestampGranularities: ["word"] });
transcripts.words = words.text;
const both = await ask("whisper-1", { timestampGranularities: ["word", "segment"], temperature: 0, prompt: "Shopping." });
transcripts.both = both.text;
if (process.env.SEGMENTS) {
  // From AI SDK 5 on, whisper-1 with an option is asked for verbose_json.
  assert.equal(words.segments[0].text, "Please");
  assert.ok(both.segments[0].endSecond > 1);
  assert.equal(both.language, "en");
}
console.log(JSON.stringify(transcripts));

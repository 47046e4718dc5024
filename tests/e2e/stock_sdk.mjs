// The stock OpenAI SDK for Node, with nothing changed but OPENAI_BASE_URL. Prints what it got as one line of JSON.
import fs from "node:fs";
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const [, , english, german] = process.argv;
const ask = (fields, path = english) =>
  client.audio.transcriptions.create({ file: fs.createReadStream(path), model: "whisper-1", ...fields });

const got = { json: await ask({}) };
for (const response_format of ["text", "srt", "vtt"]) got[response_format] = await ask({ response_format });
got.verbose = await ask({ response_format: "verbose_json", timestamp_granularities: ["word", "segment"] });
got.events = [];
for await (const event of await ask({ stream: true })) got.events.push(event);
got.translation = await client.audio.translations.create({ file: fs.createReadStream(german), model: "whisper-1" });
got.models = [];
for await (const model of client.models.list()) got.models.push(model.id);
got.model = (await client.models.retrieve("whisper-1")).id;
got.errors = [];
for (const fields of [{ model: "no-such-model" }, { file: await OpenAI.toFile(Buffer.from("no sound"), "a.ogg") }]) {
  try {
    await ask(fields);
  } catch (error) {
    got.errors.push({ name: error.constructor.name, status: error.status, code: error.code, id: error.requestID });
  }
}
console.log(JSON.stringify(got));

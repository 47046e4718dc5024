// openai (npm) as its README says: OpenAIRealtimeWS with the intent of a transcription.
import assert from "node:assert/strict";
import fs from "node:fs";
import OpenAI from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";

const client = new OpenAI({ maxRetries: 0 });
const [, , , voice] = process.argv;
const sound = Buffer.concat([fs.readFileSync(voice).subarray(44), Buffer.alloc(32000)]);

const ask = (turn_detection, transcription) =>
  new Promise((resolve, reject) => {
    const connection = new OpenAIRealtimeWS({ intent: "transcription" }, client);
    let said = "";
    connection.on("error", reject);
    connection.on("session.created", () => {
      const input = { format: { type: "audio/pcm", rate: 16000 }, turn_detection, transcription };
      connection.send({ type: "session.update", session: { type: "transcription", audio: { input } } });
    });
    connection.on("session.updated", () => {
      for (let at = 0; at < sound.length; at += 3200)
        connection.send({ type: "input_audio_buffer.append", audio: sound.subarray(at, at + 3200).toString("base64") });
      if (!turn_detection) connection.send({ type: "input_audio_buffer.commit" });
    });
    connection.on("conversation.item.input_audio_transcription.delta", (event) => (said += event.delta));
    connection.on("conversation.item.input_audio_transcription.completed", (event) => {
      assert.ok(said.endsWith(event.transcript));
      if (turn_detection && !said.includes("home")) return;
      connection.close();
      resolve(said);
    });
  });

const transcripts = {
  "server vad": await ask({ type: "server_vad", silence_duration_ms: 700 }, { model: "whisper-1", language: "en" }),
  commit: await ask(null, { model: "gpt-4o-transcribe" }),
};
console.log(JSON.stringify(transcripts));

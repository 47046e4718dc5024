// The microphone: what it records, and the words that the server finds meanwhile.

import { address, realtime } from "./server.js";
import { wav } from "./formats.js";

const RATE = 24000; // samples per second of the realtime API
const LAST_WORDS_MS = 5000;

/**
 * Start to record. `onText` is given the words found so far, `onTrouble` a sentence where live words fail.
 * Returns a function that stops and resolves to the recording as a WAV file.
 *
 * Throws where the browser or its user refuses the microphone.
 */
export async function record({ language, prompt, onText, onTrouble }) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error(
      "Browsers give the microphone only to pages of https:// or of this computer. Open the page as http://localhost, " +
        "or start the server with --certfile and --keyfile.",
    );
  }
  const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  const context = new AudioContext({ sampleRate: RATE });
  await context.audioWorklet.addModule(address("web/microphone-worklet.js"));
  const node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0 });
  const blocks = [];
  const live = liveWords({ language, prompt, onText, onTrouble });
  node.port.onmessage = ({ data }) => {
    blocks.push(data);
    live.send(data);
  };
  context.createMediaStreamSource(stream).connect(node);

  return async () => {
    stream.getTracks().forEach((track) => track.stop());
    await context.close();
    await live.end();
    return new File([wav(blocks, RATE)], "recording.wav", { type: "audio/wav" });
  };
}

function liveWords({ language, prompt, onText, onTrouble }) {
  const waiting = [];
  const texts = new Map(); // by item, in the order in which they were spoken
  let ready = false;
  let socket;
  let finish = () => {};
  try {
    socket = realtime();
  } catch {
    onTrouble("This key cannot be sent for live words. The words come when you stop.");
    return { send: () => {}, end: async () => {} };
  }
  const say = (event) => socket.send(JSON.stringify(event));
  const append = (samples) => say({ type: "input_audio_buffer.append", audio: base64(samples) });
  const transcription = { model: "whisper-1" };
  if (language) transcription.language = language;
  if (prompt) transcription.prompt = prompt;

  socket.onopen = () => {
    const input = {
      format: { type: "audio/pcm", rate: RATE },
      transcription,
      turn_detection: { type: "server_vad", silence_duration_ms: 600 },
    };
    say({ type: "session.update", session: { type: "transcription", audio: { input } } });
  };
  socket.onmessage = ({ data }) => {
    const event = JSON.parse(data);
    if (event.type === "session.updated") {
      ready = true;
      waiting.splice(0).forEach(append);
    } else if (event.type === "input_audio_buffer.committed") {
      texts.set(event.item_id, texts.get(event.item_id) ?? "");
    } else if (event.type === "conversation.item.input_audio_transcription.delta") {
      texts.set(event.item_id, (texts.get(event.item_id) ?? "") + event.delta);
    } else if (event.type === "conversation.item.input_audio_transcription.completed") {
      texts.set(event.item_id, event.transcript);
      finish();
    } else if (event.type === "error" && event.error.code === "input_audio_buffer_commit_empty") {
      finish();
    } else if (event.type === "error") {
      onTrouble(event.error.message);
    }
    onText([...texts.values()].map((text) => text.trim()).filter(Boolean).join(" "));
  };
  socket.onerror = () => onTrouble("There are no live words: the connection failed. The words come when you stop.");
  socket.onclose = () => finish();

  return {
    send: (samples) => {
      if (!ready) waiting.push(samples);
      else if (socket.readyState === WebSocket.OPEN) append(samples);
    },
    end: async () => {
      if (ready && socket.readyState === WebSocket.OPEN) {
        const finished = new Promise((resolve) => (finish = resolve));
        say({ type: "input_audio_buffer.commit" });
        await Promise.race([finished, new Promise((resolve) => setTimeout(resolve, LAST_WORDS_MS))]);
      }
      socket.close();
    },
  };
}

function base64(buffer) {
  return btoa(String.fromCharCode(...new Uint8Array(buffer)));
}

// A transcript as the text of a file. Its cues have `start` and `end` in seconds, and `lines`.

function clock(seconds, mark) {
  const total = Math.max(0, Math.round(seconds * 1000));
  const part = (value, width) => String(value).padStart(width, "0");
  const hours = Math.floor(total / 3600000);
  const minutes = Math.floor(total / 60000) % 60;
  const whole = Math.floor(total / 1000) % 60;
  return `${part(hours, 2)}:${part(minutes, 2)}:${part(whole, 2)}${mark}${part(total % 1000, 3)}`;
}

// A player takes "<" in vtt for a tag and shows nothing of it.
const escaped = (text) => text.replace(/&(?=#?\w+;)/g, "&amp;").replaceAll("<", "&lt;");

function cues(transcript, mark, number) {
  return transcript.cues.map(({ start, end, lines }, at) => {
    // An arrow inside the text would end the cue's line of times for some players.
    const plain = lines.join("\n").replaceAll("-->", "->");
    const text = mark === "." ? escaped(plain) : plain;
    return `${number ? `${at + 1}\n` : ""}${clock(start, mark)} --> ${clock(end, mark)}\n${text}\n\n`;
  });
}

export const WRITERS = {
  txt: ["text/plain", (transcript) => `${transcript.text}\n`],
  srt: ["application/x-subrip", (transcript) => cues(transcript, ",", true).join("")],
  vtt: ["text/vtt", (transcript) => `WEBVTT\n\n${cues(transcript, ".", false).join("")}`],
  json: ["application/json", (transcript) => JSON.stringify(transcript, null, 2)],
};

/** Return a WAV file of 16-bit samples, one channel. */
export function wav(chunks, rate) {
  const length = chunks.reduce((sum, chunk) => sum + chunk.byteLength, 0);
  const head = new DataView(new ArrayBuffer(44));
  const name = (offset, text) => [...text].forEach((letter, at) => head.setUint8(offset + at, letter.charCodeAt(0)));
  name(0, "RIFF");
  head.setUint32(4, 36 + length, true);
  name(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true);
  head.setUint16(22, 1, true);
  head.setUint32(24, rate, true);
  head.setUint32(28, rate * 2, true);
  head.setUint16(32, 2, true);
  head.setUint16(34, 16, true);
  name(36, "data");
  head.setUint32(40, length, true);
  return new Blob([head, ...chunks], { type: "audio/wav" });
}

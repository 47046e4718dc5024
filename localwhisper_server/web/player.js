// The recording: its waveform, its player, and the word that is being spoken.

const BARS = 300;
const RATE = 8000; // enough for a waveform, and an hour takes 115 MB
const LARGEST = 20_000_000; // bytes of a file that is decoded for its waveform

const canvas = document.getElementById("wave");
const player = document.getElementById("player");
const text = document.getElementById("text");

let peaks = [];
let words = [];
let url = "";

/** Show a recording, without its words. */
export async function showRecording(file) {
  URL.revokeObjectURL(url);
  url = URL.createObjectURL(file);
  player.src = url;
  player.hidden = false;
  peaks = [];
  words = [];
  canvas.hidden = true;
  if (file.size > LARGEST) return;
  try {
    const sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
    peaks = loudest(sound.getChannelData(0));
    canvas.hidden = false;
    draw();
  } catch {
    // The browser cannot decode every format that the server can. Then there is no waveform.
    player.hidden = true;
  }
}

/** Take away the recording of before. */
export function clear() {
  player.pause();
  player.hidden = true;
  canvas.hidden = true;
  words = [];
}

/** Show the transcript word by word; each lights up while it is spoken, and a click on it plays from there. */
export function showWords(transcript) {
  words = [];
  const parts = [];
  let at = 0;
  for (const word of transcript.words ?? []) {
    // A word comes without the punctuation around it, which is in the text.
    const found = transcript.text.indexOf(word.word, at);
    if (found < 0) continue;
    parts.push(document.createTextNode(transcript.text.slice(at, found)));
    const span = document.createElement("span");
    span.className = "word";
    span.textContent = word.word;
    span.addEventListener("click", () => play(word.start));
    parts.push(span);
    words.push({ ...word, span });
    at = found + word.word.length;
  }
  parts.push(document.createTextNode(transcript.text.slice(at)));
  text.replaceChildren(...parts);
}

function play(seconds) {
  player.currentTime = seconds;
  player.play().catch(() => {}); // rejected where a pause comes first
}

function loudest(samples) {
  const width = samples.length / BARS;
  return Array.from({ length: BARS }, (_, bar) => {
    let most = 0;
    const end = Math.min(samples.length, Math.ceil((bar + 1) * width));
    for (let at = Math.floor(bar * width); at < end; at++) most = Math.max(most, Math.abs(samples[at]));
    return most;
  });
}

function draw() {
  if (canvas.hidden) return;
  const ratio = devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  const played = player.duration ? player.currentTime / player.duration : 0;
  const step = canvas.width / BARS;
  const highest = Math.max(...peaks, 0.01);
  peaks.forEach((peak, bar) => {
    const height = Math.max(ratio, (peak / highest) * canvas.height);
    pen.fillStyle = bar / BARS < played ? style.getPropertyValue("--accent-drawn") : style.getPropertyValue("--soft-drawn");
    pen.fillRect(bar * step, (canvas.height - height) / 2, Math.max(1, step * 0.7), height);
  });
}

function follow() {
  const now = player.currentTime;
  for (const word of words) word.span.classList.toggle("now", word.start <= now && now < Math.max(word.end, word.start + 0.15));
  draw();
  if (!player.paused) requestAnimationFrame(follow);
}

player.addEventListener("play", follow);
player.addEventListener("seeked", follow);
player.addEventListener("pause", follow);
canvas.addEventListener("click", (event) => play((event.offsetX / canvas.clientWidth) * player.duration));
addEventListener("resize", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

// Collects the microphone's samples into blocks of 100 ms of 16-bit PCM. Runs on the browser's audio thread.

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(sampleRate / 10);
    this.filled = 0;
  }

  process(inputs) {
    for (const sample of inputs[0][0] ?? []) {
      const bounded = Math.max(-1, Math.min(1, sample));
      this.block[this.filled++] = Math.round(bounded * 32767);
      if (this.filled === this.block.length) {
        this.port.postMessage(this.block.buffer, [this.block.buffer]);
        this.block = new Int16Array(sampleRate / 10);
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);

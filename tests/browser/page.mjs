// One scenario of the page in headless Chromium: node page.mjs FOLDER SCENARIO URL FILE [KEY]
// FOLDER has playwright-core and axe-core. Exits with 1 where the page does not do what a user expects.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const [folder, scenario, url, file, key] = process.argv.slice(2);
const require = createRequire(path.join(folder, "package.json"));
const { chromium } = require("playwright-core");
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const WORDS = /milk and bread/i;
const PATIENCE = 90_000;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: [
    "--no-sandbox",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    `--use-file-for-fake-audio-capture=${file}%noloop`,
  ],
});
const context = await browser.newContext({ viewport: { width: 900, height: 900 }, permissions: ["microphone"], acceptDownloads: true });
const page = await context.newPage();
page.setDefaultTimeout(PATIENCE);
const complaints = [];
const expected = []; // what the console may say in this scenario
page.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
page.on("pageerror", (error) => complaints.push(error.message));
page.on("request", (request) => {
  const { protocol, origin } = new URL(request.url());
  if (protocol !== "blob:" && origin !== new URL(url).origin) complaints.push(`left the origin: ${request.url()}`);
});

const text = (id) => page.textContent(`#${id}`);
const ready = () => page.waitForFunction(() => document.getElementById("state").classList.contains("ready"));
const transcribed = () => page.waitForSelector("#save:not([hidden])");

async function axe() {
  // Through the debugger, which the page's policy does not bind.
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  assert.deepEqual(violations.map(({ id, nodes }) => [id, nodes.map((node) => node.html)]), []);
}

async function saved(format) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click(`[data-save=${format}]`)]);
  assert.equal(download.suggestedFilename(), `transcript.${format}`);
  return readFileSync(await download.path(), "utf8");
}

const SCENARIOS = {
  async upload() {
    await page.goto(url);
    await ready();
    await axe();
    await page.setInputFiles("#file", file);
    await transcribed();
    assert.match(await text("text"), WORDS);
    assert.match(await text("progress"), /^7 s of English, in [\d.]+ s$/);
    assert.ok((await page.locator(".word").count()) >= 14);
    await page.locator(".word", { hasText: "home" }).click();
    await page.waitForFunction(() => document.querySelector(".word.now"));
    assert.ok(await page.evaluate(() => document.getElementById("player").currentTime > 1.5));
    await page.evaluate(() => document.getElementById("player").pause());
    assert.match(await saved("txt"), WORDS);
    assert.match(await saved("srt"), /^1\n00:00:00,\d+ --> 00:00:0\d,\d+\n.*milk/);
    assert.match(await saved("vtt"), /^WEBVTT\n\n00:00:00\.\d+ --> /);
    assert.match(JSON.parse(await saved("json")).text, WORDS);
    await axe();
    if (process.env.SCREENSHOT) {
      await page.click("#check");
      await page.waitForFunction(() => document.getElementById("checked").textContent.startsWith("It works"));
      await page.waitForTimeout(4000); // the panel shows both requests
      await page.screenshot({ path: process.env.SCREENSHOT, fullPage: true });
    }
    for (const colorScheme of ["dark", "light"]) {
      await page.emulateMedia({ colorScheme });
      await axe();
    }
  },

  async keyboard() {
    await page.goto(url);
    await ready();
    const reached = new Set();
    for (let presses = 0; presses < 25; presses++) {
      await page.keyboard.press("Tab");
      reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.dataset.copy));
    }
    for (const id of ["choose", "record", "language", "prompt", "environment", "check"]) assert.ok(reached.has(id), id);
    const [chooser] = await Promise.all([
      page.waitForEvent("filechooser"),
      page.focus("#choose").then(() => page.keyboard.press("Enter")),
    ]);
    await chooser.setFiles(file);
    await transcribed();
    assert.match(await text("text"), WORDS);
  },

  async drop() {
    await page.goto(url);
    await ready();
    const data = readFileSync(file).toString("base64");
    await page.evaluate((encoded) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0))], "voice.wav"));
      document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
    }, data);
    await transcribed();
    assert.match(await text("text"), WORDS);
  },

  async stream() {
    await page.goto(url);
    await ready();
    await page.evaluate(() => {
      globalThis.steps = [];
      new MutationObserver(() => steps.push(document.getElementById("text").textContent)).observe(
        document.getElementById("text"),
        { childList: true, characterData: true, subtree: true },
      );
    });
    await page.setInputFiles("#file", file); // the test gives a recording of several segments
    await transcribed();
    const steps = (await page.evaluate(() => globalThis.steps)).filter(Boolean);
    const lengths = new Set(steps.map((step) => step.length));
    assert.ok(lengths.size >= 2, `the words came at once: ${lengths.size}`);
    for (let at = 1; at < steps.length; at++) assert.ok(steps[at].startsWith(steps[at - 1].trimEnd()), "words were taken back");
  },

  async record() {
    await page.goto(url);
    await ready();
    await page.click("#record");
    await page.waitForFunction(() => /milk/i.test(document.getElementById("text").textContent)); // while it records
    assert.equal(await page.getAttribute("#record", "aria-pressed"), "true");
    await page.click("#record");
    await transcribed();
    assert.match(await text("text"), WORDS);
    assert.equal(await text("problem"), "");
  },

  async key() {
    expected.push(/401/);
    await page.goto(url);
    await ready();
    await page.setInputFiles("#file", file);
    await page.waitForSelector("#key-dialog[open]");
    await axe();
    await page.fill("#key", "wrong");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.getElementById("key-dialog").open && !document.getElementById("key").value);
    await page.fill("#key", key);
    await page.keyboard.press("Enter");
    await transcribed();
    assert.match(await text("text"), WORDS);
    assert.equal(await page.evaluate(() => localStorage.length), 0);
    assert.ok(!(await page.content()).includes(key), "the key is shown");
    await page.reload();
    await page.click("#check");
    await page.waitForFunction(() => document.getElementById("checked").textContent.startsWith("It works"));
  },

  async offline() {
    expected.push(/ERR_INTERNET_DISCONNECTED/);
    await page.goto(url);
    await ready();
    await context.setOffline(true);
    await page.setInputFiles("#file", file);
    await page.waitForSelector("#problem:not([hidden])");
    assert.match(await text("problem"), /does not answer/);
    await page.waitForFunction(() => document.getElementById("state").classList.contains("away"));
    await context.setOffline(false);
    await ready();
    await page.setInputFiles("#file", file);
    await transcribed();
  },

  async error() {
    expected.push(/400/);
    await page.goto(url);
    await ready();
    await page.setInputFiles("#file", { name: "notes.ogg", mimeType: "audio/ogg", buffer: Buffer.from("not a recording") });
    await page.waitForSelector("#problem:not([hidden])");
    assert.match(await text("problem"), /audio file/i);
    await page.fill("#language", "klingon");
    await page.setInputFiles("#file", file);
    await page.waitForFunction(() => /Invalid language 'klingon'/.test(document.getElementById("problem").textContent));
    await axe();
  },

  async narrow() {
    await page.setViewportSize({ width: 375, height: 720 });
    await page.goto(url);
    await ready();
    await page.setInputFiles("#file", file);
    await transcribed();
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 375);
    const small = await page.$$eval("button", (buttons) =>
      buttons.filter((button) => button.offsetHeight && button.offsetHeight < 44).map((button) => button.textContent),
    );
    assert.deepEqual(small, []);
    await axe();
  },
};

try {
  await SCENARIOS[scenario]();
  assert.deepEqual(complaints.filter((complaint) => !expected.some((pattern) => pattern.test(complaint))), []);
} finally {
  await browser.close();
}

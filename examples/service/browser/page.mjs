// node page.mjs SERVICE CHROMIUM FOLDER [PICTURE]: what a visitor can do, screenshots of it,
// and the picture of the README.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [service, executablePath, folder, picture] = process.argv.slice(2);

const children = [];

const browser = await chromium.launch({ executablePath, args: process.getuid() === 0 ? ["--no-sandbox"] : [] });

/// Starts the service, and returns it and its address.
async function start() {
  const child = spawn(service, ["--listen", "127.0.0.1:0"], { stdio: ["ignore", "pipe", "inherit"] });
  children.push(child);
  const ended = once(child, "exit");
  const [line] = await once(createInterface(child.stdout), "line");
  return { child, ended, address: line.match(/http:\S+/)[0] };
}

/// Waits for the end, which must come in time and be a good one.
async function end({ ended }) {
  const late = new Promise((resolve) => setTimeout(resolve, 8000, ["late"]).unref());
  assert.deepEqual(await Promise.race([ended, late]), [0, null], "the stop");
}

async function open(browser, address, options) {
  const page = await browser.newPage({ viewport: { width: 1040, height: 1180 }, ...options });
  page.wrong = [];
  page.on("dialog", (dialog) => { page.wrong.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on("pageerror", (error) => page.wrong.push(`error: ${error}`));
  page.on("console", (message) => {
    // The refused requests are meant to be.
    const meant = message.text().includes("the server responded with a status of");
    if (message.type() === "error" && !meant) page.wrong.push(`console: ${message.text()}`);
  });
  await page.goto(address);
  await page.waitForFunction(() => document.querySelector("#status").textContent === "" && samples.length > 1);
  return page;
}

const number = (page, id) => page.locator(id).textContent().then((text) => Number(text.replaceAll(",", "")));
const logged = (page, text) => page.locator("#log li", { hasText: text }).first().waitFor({ timeout: 5000 });

const steps = {
  async "the Load switch makes all columns move"(page) {
    await page.locator("#load").focus();
    await page.keyboard.press("Space");
    await page.waitForFunction(() => ["#alone-jobs", "#batched-jobs", "#later-jobs"].every(
      (id) => Number(document.querySelector(id).textContent.replaceAll(",", "")) > 0), null, { timeout: 5000 });
    assert.equal(await page.locator("#load").getAttribute("aria-checked"), "true");
  },
  async "batches store more"(page) {
    await page.waitForTimeout(3000);
    const [alone, batched] = [await number(page, "#alone-jobs"), await number(page, "#batched-jobs")];
    console.log(`  ${alone} jobs/s row by row, ${batched} batched, ${await number(page, "#later-jobs")} accepted on disk`);
    assert.ok(batched > alone);
    const why = await page.locator("#why").textContent();
    assert.match(why, /^A commit waits .* because each holds \d[\d.]*\.$/);
  },
  async "a slider changes the batch size within two seconds"(page) {
    assert.ok(await number(page, "#mean-size") > 4);
    await page.locator("#size").focus();
    await page.keyboard.press("Home");
    for (let i = 0; i < 3; i++) await page.keyboard.press("ArrowRight");
    await page.waitForFunction(() => {
      const mean = Number(document.querySelector("#mean-size").textContent);
      return mean > 0 && mean <= 4;
    }, null, { timeout: 2000 });
    assert.equal(await page.locator("#size-value").textContent(), "4");
    await page.keyboard.press("End");
  },
  async "the other controls reach the service"(page) {
    await page.locator("#interval").focus();
    await page.keyboard.press("ArrowRight");
    await page.locator("#in-flight").focus();
    await page.keyboard.press("End");
    await page.locator("#idle").focus();
    await page.keyboard.press("Space");
    await page.waitForFunction(() => {
      const { interval_ms, max_in_flight, flush_when_idle } = samples.at(-1).settings;
      return interval_ms === 21 && max_in_flight === 4 && !flush_when_idle;
    }, null, { timeout: 2000 });
    await page.locator("#in-flight").press("Home");
    await page.keyboard.press("ArrowRight");
    await page.locator("#idle").press("Space");
  },
  async "bad requests are shown as text"(page) {
    await page.locator("#bad").click();
    for (const status of ["not JSON: 400", "not said to be JSON: 415", "a field too many: 422", "too large: 413", "nonsense settings: 422"]) {
      await logged(page, status);
    }
    await page.locator("#markup").click();
    await logged(page, "came back as it was: <script>");
    assert.equal(await page.locator("#log :not(li)").count(), 0);
  },
  async "a full queue is answered 503"(page) {
    await page.locator("#full").click();
    await logged(page, /one more: 503 .*Retry-After: 1/);
    await page.waitForFunction(() => !document.querySelector("#paused").checked && samples.at(-1).queued + samples.at(-1).pending < 500, null, { timeout: 8000 });
  },
  async "a hidden tab gets no events"(page) {
    const hide = (hidden) => page.evaluate((hidden) => {
      Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
      return source === null;
    }, hidden);
    assert.equal(await hide(true), true);
    assert.equal(await hide(false), false);
    await page.waitForFunction(() => samples.length > 1);
  },
  async "every control has a name"(page) {
    const nameless = await page.evaluate(() => [...document.querySelectorAll("button, input, canvas")].filter(
      (each) => !(each.labels?.length || each.textContent.trim() || each.getAttribute("aria-label"))).map((each) => each.id));
    assert.deepEqual(nameless, []);
  },
  async "screenshots, and nothing is wider than a phone"(page) {
    await page.waitForTimeout(12000);
    await page.evaluate(() => document.activeElement.blur());
    await page.screenshot({ path: `${folder}/light.png`, fullPage: true });
    await page.emulateMedia({ colorScheme: "dark" });
    await page.waitForTimeout(500);
    await page.screenshot({ path: `${folder}/dark.png`, fullPage: true });
    await page.setViewportSize({ width: 390, height: 844 });
    await page.waitForTimeout(500);
    await page.screenshot({ path: `${folder}/narrow.png`, fullPage: true });
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 390);
  },
};

/// The upper half of the page, while the largest batch is changed and changed back.
async function paint(page) {
  await page.locator("#load").click();
  for (const size of ["128", "12", "128"]) {
    await page.locator("#size").fill(size);
    await page.waitForTimeout(10500);
  }
  await page.evaluate(() => document.activeElement.blur());
  await page.screenshot({ path: picture, clip: { x: 0, y: 0, width: 1040, height: 724 } });
}

try {
  const first = await start();
  const page = await open(browser, first.address, { colorScheme: "light" });
  for (const [name, step] of Object.entries(steps)) {
    console.log(name);
    await step(page);
    assert.deepEqual(page.wrong, []);
  }
  console.log("the button drains with the page open");
  await page.locator("#drain").click();
  await page.locator("#status", { hasText: /^Stopped and drained/ }).waitFor({ timeout: 8000 });
  const [accepted, stored] = (await page.locator("#status").textContent()).match(/\d[\d,]*/g);
  assert.equal(accepted, stored);
  await end(first);

  console.log("so does ctrl-c");
  const second = await start();
  const other = await open(browser, second.address, { colorScheme: "light" });
  if (picture) await paint(other);
  else await other.locator("#load").click();
  await other.waitForTimeout(1000);
  second.child.kill("SIGINT");
  await other.locator("#status", { hasText: /^Stopped and drained/ }).waitFor({ timeout: 8000 });
  await end(second);
  console.log("all is well");
} finally {
  await browser.close();
  // After a failure; those that have ended take no notice.
  for (const child of children) child.kill("SIGKILL");
}

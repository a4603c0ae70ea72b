// The terminal against a scripted server: the shell survives what happens to the connection.

import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { browse, serve } from "./site.mjs";

let site;
let browser;
let page;
let sockets;
let answer;
let nodes;

before(async () => {
  site = await serve({
    "GET /api/v1/vclusters/spark/nodes": (_request, response) => response.writeHead(nodes.status, { "Content-Type": "application/json" }).end(JSON.stringify(nodes.body)),
  });
});
after(async () => { await site.close(); });

beforeEach(async () => {
  sockets = [];
  nodes = { status: 200, body: [{ name: "node1", status: "running" }] };
  answer = (socket) => {
    socket.send('{"attached":{"resumed":false}}');
    socket.send(Buffer.from("root@node1:~# "));
  };
  browser = await browse();
  ({ page } = browser);
  await browser.context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: site.url });
  await page.routeWebSocket(/\/terminal\?/, (socket) => {
    const record = { url: new URL(socket.url()), bytes: "", texts: [], socket };
    sockets.push(record);
    socket.onMessage((data) => {
      if (typeof data === "string") record.texts.push(JSON.parse(data));
      else record.bytes += data.toString();
    });
    answer(socket);
  });
});
afterEach(async () => { await browser.close(); });

const screen = () => page.evaluate(() => {
  const { buffer } = document.querySelector("docklet-terminal").term;
  return Array.from({ length: buffer.active.length }, (_, y) => buffer.active.getLine(y)?.translateToString(true)).join("\n").trimEnd();
});
const state = (text) => page.locator(".term-state [role=status]").getByText(text).waitFor();

async function until(what, check) {
  const end = Date.now() + 30_000;
  while (!(await check())) {
    assert.ok(Date.now() < end, what);
    await page.waitForTimeout(20);
  }
}

test("keys go out as bytes and bytes come in as text", async () => {
  await page.goto(`${site.url}/terminal`);
  await state("Connected");
  const [first] = sockets;
  assert.match(first.url.searchParams.get("session"), /^[a-z0-9-]{1,40}$/);
  assert.equal(first.url.searchParams.get("flow"), "ack");
  assert.ok(Number(first.url.searchParams.get("cols")) > 80);
  await page.keyboard.type("echo grüße");
  await until("the bytes arrive", () => first.bytes === "echo grüße");
  first.socket.send(Buffer.from("\x1b[1mgrüße 完 👩‍💻\x1b[0m\r\n"));
  await until("the text is drawn", async () => (await screen()).includes("grüße 完 👩‍💻"));
});

test("the window's size is told", async () => {
  await page.goto(`${site.url}/terminal`);
  await state("Connected");
  await page.setViewportSize({ width: 800, height: 500 });
  await until("the new size is sent", () => sockets[0].texts.some(({ resize }) => resize && resize.cols < 100));
});

test("what is drawn is acknowledged, nothing before", async () => {
  await page.goto(`${site.url}/terminal`);
  await state("Connected");
  const piece = Buffer.from("x".repeat(99) + "\n");
  const flood = Buffer.concat(Array(1000).fill(piece));
  for (let at = 0; at < flood.length; at += 8192) sockets[0].socket.send(flood.subarray(at, at + 8192));
  const acked = () => sockets[0].texts.reduce((sum, { ack }) => sum + (ack ?? 0), 0);
  await until("most of it is acknowledged", () => acked() > flood.length - 16 * 1024);
  assert.ok(acked() <= flood.length + 64);
});

test("after a lost connection it is the same shell, on a clean screen", async () => {
  await page.goto(`${site.url}/terminal`);
  await state("Connected");
  answer = (socket) => {
    socket.send('{"attached":{"resumed":true}}');
    socket.send(Buffer.from("the replay"));
  };
  sockets[0].socket.close({ code: 1011 });
  await state("reconnecting");
  await state("Connected");
  assert.equal(sockets[1].url.searchParams.get("session"), sockets[0].url.searchParams.get("session"));
  await until("the replay is all there is", async () => (await screen()) === "the replay");
  await page.reload();
  await state("Connected");
  assert.equal(sockets[2].url.searchParams.get("session"), sockets[0].url.searchParams.get("session"));
});

test("it waits longer each time, counts down, and comes back at once when asked", async () => {
  answer = (socket) => socket.close({ code: 1011 });
  await page.goto(`${site.url}/terminal`);
  await until("it tried three times", () => sockets.length >= 3);
  await page.locator(".term-count").getByText(/in [234] s/).waitFor();
  answer = (socket) => socket.send('{"attached":{"resumed":false}}');
  await page.getByRole("button", { name: "Reconnect now" }).click();
  await state("Connected");
});

test("a shell that ended says how, and a new one is another", async () => {
  await page.goto(`${site.url}/terminal`);
  await state("Connected");
  sockets[0].socket.send('{"exit":{"code":3}}');
  await page.getByText("Its exit code was 3.").waitFor();
  await page.getByRole("button", { name: "Start a new shell" }).click();
  await state("Connected");
  assert.notEqual(sockets[1].url.searchParams.get("session"), sockets[0].url.searchParams.get("session"));
});

test("a shell taken over elsewhere is not taken back by itself", async () => {
  await page.goto(`${site.url}/terminal`);
  await state("Connected");
  sockets[0].socket.send('{"taken_over":{}}');
  sockets[0].socket.close({ code: 1000 });
  await page.getByRole("button", { name: "Use it here" }).waitFor();
  await page.waitForTimeout(700);
  assert.equal(sockets.length, 1);
  await page.getByRole("button", { name: "Use it here" }).click();
  await state("Connected");
});

for (const [what, found, text] of [
  ["a stopped node offers to start it", { status: 200, body: [{ name: "node1", status: "stopped" }] }, "node1 is stopped"],
  ["a removed node says so", { status: 404, body: {} }, "node1 is gone"],
  ["a signed-out person is asked to sign in", { status: 401, body: {} }, "You are signed out"],
]) {
  test(what, async () => {
    answer = (socket) => socket.close({ code: 1011 });
    nodes = found;
    await page.goto(`${site.url}/terminal`);
    await page.getByRole("heading", { name: text }).waitFor();
  });
}

test("output can neither read nor write the clipboard, nor open odd addresses", async () => {
  await page.goto(`${site.url}/terminal`);
  await state("Connected");
  await page.evaluate(() => navigator.clipboard.writeText("mine"));
  sockets[0].socket.send(Buffer.from("\x1b]52;c;aGFja2Vk\x07\x1b]52;c;?\x07\x1b]8;;javascript:alert(1)\x07click\x1b]8;;\x07 <img src=x onerror=alert(1)>\r\n"));
  await until("it is drawn as text", async () => (await screen()).includes("click <img src=x onerror=alert(1)>"));
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "mine");
  assert.equal(sockets[0].bytes, "");
});

test("a selection is copied with Ctrl+Shift+C and found text is selected", async () => {
  await page.goto(`${site.url}/terminal`);
  await state("Connected");
  sockets[0].socket.send(Buffer.from("needle in a haystack\r\n"));
  await until("it is drawn", async () => (await screen()).includes("needle"));
  await page.keyboard.press("Control+Shift+F");
  await page.getByLabel("Find in the terminal").fill("haystack");
  await until("it is selected", () => page.evaluate(() => document.querySelector("docklet-terminal").term.getSelection() === "haystack"));
  await page.keyboard.press("Escape");
  await page.evaluate(() => document.querySelector("docklet-terminal").term.select(0, 0, 20));
  await page.getByRole("button", { name: "Copy" }).click();
  const copied = await page.evaluate(() => navigator.clipboard.readText());
  assert.ok(copied.length > 0 && copied !== "mine");
});

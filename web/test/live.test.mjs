// What scripts add: live fragments, forms that answer in place, the palette, the summary, the terminal.

import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { browse, serve } from "./site.mjs";

let site;
let browser;
let page;
let streams;
const posted = [];

/** The element with that id out of a preview. */
async function fragment(name, id) {
  const html = await site.html(name);
  const start = html.indexOf(`<${id.startsWith("vcluster-header") ? "header" : "section"} id="${id}"`);
  const end = id.startsWith("vcluster-header") ? html.indexOf("</header>", start) + 9 : html.indexOf("</section>", start) + 10;
  assert.ok(start > 0, `${id} is in ${name}`);
  return html.slice(start, end);
}

function stream(_request, response) {
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  response.write(": here\n\n");
  streams.push(response);
}

function send(event, data) {
  const text = `event: ${event}\n${data.split("\n").map((line) => `data: ${line}`).join("\n")}\n\n`;
  for (const response of streams) response.write(text);
}

async function streaming() {
  while (!streams.length) await page.waitForTimeout(20);
}

const routes = {
  "GET /live/home": stream,
  "GET /live/vclusters/demo": stream,
  "GET /live/vclusters/spark": stream,
  "POST /vclusters/spark/scale": async (request, response) => {
    let body = "";
    for await (const chunk of request) body += chunk;
    posted.push(body);
    response.writeHead(422, { "Content-Type": "text/html" }).end(await site.html("vcluster-scale-refused"));
  },
  "POST /vclusters/spark/stop": (_request, response) => response.writeHead(303, { Location: "/vcluster-stopped" }).end(),
  "POST /vclusters/thesis/nodes/node1/jupyter": (_request, response) => { posted.push("jupyter"); response.writeHead(204).end(); },
  "GET /vclusters/spark/terminal": (_request, response) => response.writeHead(200, { "Content-Type": "text/plain" }).end("the terminal"),
  "GET /api/v1/vclusters": (_request, response) => response.writeHead(200, { "Content-Type": "application/json" }).end('[{"name":"spark","owner":"alice"},{"name":"mpi","owner":"bob"}]'),
};

before(async () => { site = await serve(routes); });
after(async () => { await site.close(); });
beforeEach(async () => {
  streams = [];
  posted.length = 0;
  browser = await browse();
  ({ page } = browser);
  await browser.context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: site.url });
});
afterEach(async () => { await browser.close(); });

test("an event takes the place of its element, and what was folded stays folded", async () => {
  await page.goto(`${site.url}/vcluster-starting`);
  await streaming();
  await page.locator("#vcluster-timeline summary").first().click();
  assert.equal(await page.locator("#vcluster-timeline details").first().getAttribute("open"), null);
  const header = await fragment("vcluster", "vcluster-header");
  const timeline = await fragment("vcluster-starting", "vcluster-timeline");
  send("vcluster-timeline", timeline.replace("6/10", "9/10"));
  send("vcluster-header", header);
  await page.locator("#vcluster-header").getByText("Running", { exact: true }).waitFor();
  await page.locator("#vcluster-timeline .step-count", { hasText: "9/10" }).waitFor({ state: "attached" });
  assert.equal(await page.locator("#vcluster-timeline details").first().getAttribute("open"), null);
  assert.equal(await page.locator("#vcluster-header").count(), 1);
});

test("focus stays where it was through a change", async () => {
  await page.goto(`${site.url}/vcluster`);
  await streaming();
  await page.locator("#vcluster-header").getByRole("link", { name: "Delete" }).focus();
  send("vcluster-header", (await fragment("vcluster", "vcluster-header")).replace("3 of 3", "2 of 3"));
  await page.getByText("2 of 3").waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.textContent.trim()), "Delete");
});

test("a broken stream is told and taken up again", async () => {
  await page.goto(`${site.url}/vcluster`);
  await streaming();
  const [first] = streams;
  streams = [];
  first.destroy();
  await page.getByText("Connection lost").waitFor();
  await streaming();
  await page.getByText("Connection lost").waitFor({ state: "hidden" });
});

test("a deleted vcluster sends its page home", async () => {
  await page.goto(`${site.url}/vcluster`);
  await streaming();
  send("gone", "/home-empty");
  await page.waitForURL(/home-empty/);
});

test("whoever was signed out meanwhile is led to the sign-in", async () => {
  await page.goto(`${site.url}/vcluster`);
  await streaming();
  // From now on the portal answers as to a stranger.
  await page.route(/\/(vcluster|live\/vclusters\/spark)$/, (route) => route.fulfill({ status: 303, headers: { Location: "/sign-in" } }));
  streams[0].destroy();
  await page.waitForURL(/sign-in/);
});

test("the progress page becomes the app", async () => {
  await page.goto(`${site.url}/jupyter`);
  await streaming();
  const section = await fragment("jupyter", "jupyter-node1");
  send("jupyter-node1", section.replace('aria-live="polite"', `aria-live="polite" data-go="${site.url}/images"`));
  await page.waitForURL(/images/);
});

test("a refused number of nodes lands beside its field without a reload", async () => {
  await page.goto(`${site.url}/vcluster`);
  await page.evaluate(() => { window.same = true; });
  await page.getByLabel("Nodes", { exact: true }).fill("99");
  await page.getByRole("button", { name: "Scale" }).click();
  await page.locator("#scale-error").waitFor();
  assert.deepEqual(posted, ["nodes=99"]);
  assert.equal(await page.evaluate(() => window.same), true);
  assert.equal(await page.getByLabel("Nodes", { exact: true }).inputValue(), "99");
  assert.equal(await page.evaluate(() => document.activeElement.id), "scale-nodes");
  // The address stays that of the page, so that a reload works.
  assert.equal(new URL(page.url()).pathname, "/vcluster");
});

test("an answer on another page goes there", async () => {
  await page.goto(`${site.url}/vcluster`);
  await page.getByRole("button", { name: "Stop" }).click();
  await page.waitForURL(/vcluster-stopped/);
});

test("a form is sent once", async () => {
  await page.goto(`${site.url}/home`);
  const button = page.getByRole("button", { name: "Start Jupyter in thesis" });
  await button.evaluate((element) => { element.click(); element.click(); });
  await page.waitForTimeout(300);
  assert.deepEqual(posted, ["jupyter"]);
});

test("the summary tells before the click whether it fits", async () => {
  await page.goto(`${site.url}/new`);
  await page.getByText("Fits your quota now.").waitFor();
  await page.getByRole("button", { name: "10", exact: true }).click();
  await page.getByText("14 + 10 of 24").first().waitFor();
  await page.getByLabel("Memory, MiB").fill("4096");
  await page.getByText("More than your quota: memory.").waitFor();
});

test("the palette finds a terminal by a few letters", async () => {
  await page.goto(`${site.url}/images`);
  await page.keyboard.press("Control+k");
  await page.getByRole("option", { name: "bob/mpi Cluster" }).waitFor();
  await page.keyboard.type("spter");
  assert.match(await page.getByRole("option").first().innerText(), /spark terminal/);
  await page.keyboard.press("Enter");
  await page.waitForURL(/\/vclusters\/spark\/terminal\?node=node1/);
});

test("a command is copied", async () => {
  await page.goto(`${site.url}/vcluster`);
  await page.getByRole("button", { name: "Copy: docklet connect spark/node1" }).click();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "docklet connect spark/node1");
});

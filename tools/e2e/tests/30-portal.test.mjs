// The main job in a browser: sign in, three nodes with one click, ssh between them in the terminal, a plot in Jupyter,
// stop, start, scale, delete. Every page on the way is looked at by axe-core in light and dark.

import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import { accessible, open, signInPage } from '../lib/browser.mjs';
import { PORTAL, api, eventually, rootPassword, signIn } from '../lib/site.mjs';

const PICTURES = process.env.DOCKLET_E2E_PICTURES;
const NAME = 'carol';
const PASSWORD = 'carol-password';

let root;
let browser;
let page;
const errors = [];

before(async () => {
  root = api(await signIn('root', await rootPassword()));
  const made = await root('POST', '/users', { username: NAME, password: PASSWORD });
  assert.equal(made.status, 201, JSON.stringify(made.body));
  browser = await open();
  page = browser.page;
  page.on('pageerror', (error) => errors.push(`${page.url()}: ${error}`));
  page.on('console', (message) => {
    if (message.type() === 'error' && message.text().includes('Content Security Policy')) errors.push(message.text());
  });
});

after(async () => {
  await browser?.close();
  for (const { name } of (await root('GET', `/vclusters?owner=${NAME}`)).body ?? []) {
    await root('DELETE', `/vclusters/${name}?owner=${NAME}&wait=absent&timeout=60`);
  }
  await root('DELETE', `/users/${NAME}`);
});

async function picture(name) {
  if (!PICTURES) return;
  await mkdir(PICTURES, { recursive: true });
  await page.screenshot({ path: `${PICTURES}/${name}.png` });
}

const status = (word) => page.locator('#vcluster-header').getByText(word, { exact: true }).waitFor({ timeout: 60_000 });

test('a wrong password is told without saying what was wrong', async () => {
  await page.goto(PORTAL);
  await page.waitForURL(/sign-in/);
  await accessible(page, 'sign-in');
  await page.getByLabel('User name').fill(NAME);
  await page.getByLabel('Password').fill('wrong-password');
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByRole('alert').waitFor();
  await accessible(page, 'sign-in, refused');
});

test('from sign-in to three running nodes in two clicks', async () => {
  await signInPage(page, NAME, PASSWORD);
  await page.getByRole('heading', { name: 'Start your first cluster' }).waitFor();
  await accessible(page, 'home, empty');
  await picture('home-empty');
  await page.getByRole('button', { name: 'Start 3 nodes' }).click();
  await status('Running');
  await page.locator('#vcluster-nodes').getByText('node3').first().waitFor();
  await accessible(page, 'vcluster, running');
  await picture('vcluster');
});

const nameOf = () => new URL(page.url()).pathname.split('/')[2];
let name;

test('the timeline says what happened and how long each step took', async () => {
  name = nameOf();
  const timeline = page.locator('#vcluster-timeline');
  for (const step of ['Place', 'Disk', 'Network', 'Boot', 'Ready']) {
    await timeline.getByText(step, { exact: false }).first().waitFor();
  }
  assert.match(await timeline.innerText(), /\d+(\.\d+)? (ms|s)/);
});

const screen = () => page.locator('.xterm-rows').innerText();
async function type(line) {
  await page.locator('.xterm-helper-textarea').pressSequentially(line);
  await page.keyboard.press('Enter');
}

test('ssh from node1 to node3 by name in the terminal', async () => {
  await page.goto(`${PORTAL}/vclusters/${name}/terminal?node=node1`);
  await page.locator('.xterm-rows').getByText('node1').first().waitFor();
  await accessible(page, 'terminal');
  await type('ssh -o BatchMode=yes node3');
  await page.locator('.xterm-rows').getByText('root@node3').first().waitFor();
  await type('echo grüße-$(hostname)-完');
  await page.locator('.xterm-rows').getByText('grüße-node3-完').first().waitFor();
  await picture('terminal');
});

test('after a dropped connection it is the same shell', async () => {
  await type('exit');
  await type('export MARK=$((40+2))');
  const { context } = browser;
  await context.setOffline(true);
  await page.evaluate(() => document.querySelector('docklet-terminal').drop?.());
  await context.setOffline(false);
  await page.reload();
  await page.locator('.xterm-rows').getByText('node1').first().waitFor();
  await type('echo mark=$MARK');
  await page.locator('.xterm-rows').getByText('mark=42', { exact: false }).first().waitFor();
});

test('a flood neither hangs the page nor eats memory', async () => {
  await type('yes flood');
  await page.locator('.xterm-rows').getByText('flood').first().waitFor();
  const heap = () => page.evaluate(() => performance.memory.usedJSHeapSize);
  await eventually('the screen is full of it', async () => (await screen()).split('flood').length > 10);
  const early = await heap();
  const until = Date.now() + 4000;
  while (Date.now() < until) await page.evaluate(() => new Promise((done) => requestAnimationFrame(done)));
  const late = await heap();
  assert.ok(late - early < 60e6, `the heap grew by ${Math.round((late - early) / 1e6)} MB`);
  await page.locator('.xterm-helper-textarea').press('Control+c');
  await type('clear');
  await type('echo after-$((1+1))');
  await page.locator('.xterm-rows').getByText('after-2').first().waitFor();
});

test('a cell that plots runs in Jupyter, on an origin of its own', async () => {
  await page.goto(`${PORTAL}/vclusters/${name}`);
  await page.locator('#vcluster-header').getByRole('button', { name: 'Start Jupyter' }).click();
  await page.waitForURL(/8888--node1--.*\.localhost/, { timeout: 120_000 });
  assert.notEqual(new URL(page.url()).origin, PORTAL);
  const origin = new URL(page.url()).origin;
  await page.goto(`${origin}/lab?reset`);
  await page.locator('.jp-LauncherCard[data-category="Notebook"]').first().click({ timeout: 120_000 });
  // JupyterLab drops what is run before its kernel answers.
  await page.locator('#jp-main-statusbar').getByText('| Idle').waitFor({ timeout: 120_000 });
  const cell = page.locator('.jp-Notebook .jp-CodeCell .cm-content').first();
  await cell.click();
  await page.keyboard.type('import matplotlib.pyplot as plt; plt.plot([1, 4, 9]); print(6 * 7)');
  await page.keyboard.press('Shift+Enter');
  await page.locator('.jp-OutputArea-output img').first().waitFor({ timeout: 120_000 });
  await page.locator('.jp-OutputArea-output').getByText('42').first().waitFor();
  await picture('jupyter');
});

test('upload and the file browser work in Jupyter', async () => {
  const origin = new URL(page.url()).origin;
  const saved = await page.evaluate(async () => {
    const xsrf = document.cookie.match(/_xsrf=([^;]*)/)?.[1] ?? '';
    const content = btoa('x'.repeat(2_000_000));
    const put = await fetch('/api/contents/upload.bin', {
      method: 'PUT',
      headers: { 'X-XSRFToken': xsrf, 'Content-Type': 'application/json' },
      body: JSON.stringify({ type: 'file', format: 'base64', content, name: 'upload.bin', path: 'upload.bin' }),
    });
    const got = await fetch('/files/upload.bin');
    return [put.status, (await got.arrayBuffer()).byteLength];
  });
  assert.deepEqual(saved, [201, 2_000_000], origin);
});

test('nobody but the owner gets into Jupyter', async () => {
  const app = page.url();
  const stranger = await open();
  try {
    await stranger.page.goto(app);
    await stranger.page.waitForURL(/sign-in/);
    await root('POST', '/users', { username: 'mallory', password: 'mallory-password' });
    await signInPage(stranger.page, 'mallory', 'mallory-password');
    const answer = await stranger.page.goto(app);
    assert.equal(answer.status(), 404);
  } finally {
    await stranger.close();
    await root('DELETE', '/users/mallory');
  }
});

test('the node sees no secret of the portal', async () => {
  const portalCookies = (await browser.context.cookies()).filter((c) => c.name.includes('docklet')).map((c) => c.value);
  assert.ok(portalCookies.length >= 2);
  const asUser = api(await signIn(NAME, PASSWORD));
  await page.evaluate(() => fetch('/api/status', { headers: { authorization: 'Bearer something' } }));
  const log = await asUser('POST', `/vclusters/${name}/nodes/node1/exec`, { argv: ['bash', '-c', 'grep -rah docklet_ /root/.local /run/log/journal 2>/dev/null | head; true'] });
  for (const secret of portalCookies) assert.ok(!log.body.stdout.includes(secret));
});

test('stop, start and scale from the page', async () => {
  await page.goto(`${PORTAL}/vclusters/${name}`);
  const asked = Date.now();
  await page.locator('#vcluster-header').getByRole('button', { name: 'Stop' }).click();
  await status('Stopped');
  // Neither an open shell nor a kernel is waited for.
  assert.ok(Date.now() - asked < 6000, `stopping took ${Date.now() - asked} ms`);
  await accessible(page, 'vcluster, stopped');
  await page.goto(`${PORTAL}/vclusters/${name}/terminal?node=node1`);
  await page.getByRole('button', { name: /Start/ }).waitFor();
  await accessible(page, 'terminal, stopped');
  await page.goto(`${PORTAL}/vclusters/${name}`);
  await page.locator('#vcluster-header').getByRole('button', { name: 'Start', exact: true }).click();
  await status('Running');
  await page.getByLabel('Nodes', { exact: true }).fill('4');
  await page.getByRole('button', { name: 'Scale' }).click();
  await page.locator('#node-node4').getByText('Running').waitFor({ timeout: 60_000 });
  await page.getByLabel('Nodes', { exact: true }).fill('99');
  await page.getByRole('button', { name: 'Scale' }).click();
  await page.getByText(/your quota is 4/).first().waitFor();
});

test('a bad request lands beside its field and keeps what was typed', async () => {
  await page.goto(`${PORTAL}/vclusters/new`);
  await accessible(page, 'new vcluster');
  await page.evaluate(() => document.querySelectorAll('form').forEach((form) => { form.noValidate = true; }));
  await page.getByLabel('Name').fill('-rf');
  await page.getByRole('button', { name: /Create/ }).click();
  await page.locator('#name-error').getByText(/starts with/).waitFor();
  assert.equal(await page.getByLabel('Name').inputValue(), '-rf');
  await accessible(page, 'new vcluster, refused');
});

test('the other pages are there and accessible', async () => {
  for (const path of ['/', '/account', '/images', '/nowhere', '/vclusters/nothing']) {
    await page.goto(`${PORTAL}${path}`);
    await page.getByRole('heading').first().waitFor();
    await accessible(page, path);
  }
  await page.goto(`${PORTAL}/`);
  await picture('home');
  const admin = await open();
  try {
    await signInPage(admin.page, 'root', await rootPassword());
    for (const path of ['/', '/users', '/hosts', '/hosts/e2e-host', '/images']) {
      await admin.page.goto(`${PORTAL}${path}`);
      await admin.page.getByRole('heading').first().waitFor();
      await accessible(admin.page, `root: ${path}`);
    }
  } finally {
    await admin.close();
  }
});

test('without JavaScript a vcluster is made and deleted all the same', async () => {
  const { chromium } = await import('playwright-core');
  const plain = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking'] });
  try {
    const context = await plain.newContext({ javaScriptEnabled: false });
    const p = await context.newPage();
    await p.goto(`${PORTAL}/sign-in`);
    await p.getByLabel('User name').fill(NAME);
    await p.getByLabel('Password').fill(PASSWORD);
    await p.getByRole('button', { name: 'Sign in' }).click();
    await p.goto(`${PORTAL}/vclusters/${name}/delete`);
    await p.getByText('This cannot be undone').waitFor();
    await p.getByRole('button', { name: `Delete ${name}` }).click();
    await eventually('it is gone', async () => {
      await p.goto(`${PORTAL}/`);
      return (await p.getByRole('heading', { name: 'Start your first cluster' }).count()) === 1;
    });
  } finally {
    await plain.close();
  }
});

test('the delete page names what is lost', async () => {
  await page.goto(`${PORTAL}/`);
  await page.getByRole('button', { name: 'Start 1 node' }).click();
  await status('Running');
  name = nameOf();
  await page.getByRole('link', { name: 'Delete' }).click();
  await page.getByText('What is lost').waitFor();
  await accessible(page, 'delete');
  await page.getByRole('button', { name: `Delete ${name}` }).click();
  await page.getByRole('heading', { name: 'Start your first cluster' }).waitFor({ timeout: 60_000 });
});

test('no page had an error of its own', () => {
  assert.deepEqual(errors, []);
});

// A real Chromium, and what a person does in it again and again.

import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { createRequire } from 'node:module';

import { chromium } from 'playwright-core';

import { PORTAL } from './site.mjs';

const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

// Flags of a machine without a display or a way out; Chromium looks for neither.
const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage'];

export async function open({ width = 1280, height = 900, scheme = 'light' } = {}) {
  const profile = await mkdtemp(`${tmpdir()}/docklet-e2e-`);
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: '/usr/bin/chromium',
    headless: true,
    args: FLAGS,
    viewport: { width, height },
    colorScheme: scheme,
    permissions: ['clipboard-read', 'clipboard-write'],
  });
  context.setDefaultTimeout(30_000);
  const close = async () => {
    await context.close();
    await rm(profile, { recursive: true, force: true });
  };
  return { context, page: context.pages()[0] ?? (await context.newPage()), close };
}

export async function signInPage(page, username, password) {
  await page.goto(`${PORTAL}/sign-in`);
  await page.getByLabel('User name').fill(username);
  await page.getByLabel('Password').fill(password);
  await page.getByRole('button', { name: 'Sign in' }).click();
  await page.getByRole('heading', { name: 'Clusters' }).waitFor();
}

// axe-core finds nothing on the page as it is now, in light and dark, wide and narrow.
export async function accessible(page, what) {
  const before = page.viewportSize();
  for (const scheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme: scheme, reducedMotion: 'reduce' });
    for (const width of [1280, 390]) {
      await page.setViewportSize({ width, height: 844 });
      await page.evaluate((theme) => {
        document.documentElement.setAttribute('data-bs-theme', theme);
        // Colours on their way from one theme to the other are nobody's to read. What is folded away never ends by itself.
        document.body.getBoundingClientRect();
        const moving = document.getAnimations().filter((a) => a.playState === 'running' && a.effect?.getComputedTiming().endTime !== Infinity);
        for (const animation of moving) animation.finish();
      }, scheme);
      // Evaluated through the debugger, so the page's policy keeps out other scripts all the same.
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => globalThis.axe.run());
      const told = violations.map((v) => `${v.id}: ${v.help}\n  ${v.nodes.slice(0, 3).map((n) => `${n.html}\n  ${n.failureSummary}`).join('\n  ')}`);
      assert.equal(told.length, 0, `${what}, ${scheme}, ${width} px:\n${told.join('\n')}`);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      assert.ok(wide <= 0, `${what}, ${scheme}, ${width} px: ${wide} px wider than the screen`);
    }
  }
  await page.emulateMedia({ colorScheme: 'light', reducedMotion: 'no-preference' });
  await page.setViewportSize(before);
}

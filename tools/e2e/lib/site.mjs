// One Docklet of its own for the tests: its own prefix, names, ports and network, so that one that runs on this machine
// is left alone. It is brought up as an operator would, with the installed programs.

import { execFile, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { promisify } from 'node:util';

const run = promisify(execFile);

export const PREFIX = process.env.DOCKLET_E2E_PREFIX ?? '/opt/docklet-e2e';
export const PORT = 18000;
export const PORTAL = `http://localhost:${PORT}`;
export const CONF = `${PREFIX}/docklet.conf`;
const IMAGES = process.env.DOCKLET_E2E_IMAGES ?? '/opt/docklet/global/images';

export const SETTINGS = `CLUSTER_NAME=e2e
FS_PREFIX=${PREFIX}
STORAGE=file
DISKPOOL_SIZE=16384
CLUSTER_NET=172.29.0.1/16
ETCD=localhost:22379
PORTAL_URL=${PORTAL}
PROXY_IP=127.0.0.1
PROXY_PORT=${PORT}
MASTER_PORT=19000
WORKER_PORT=19001
HOST_NAME=e2e-host
DEFAULT_IMAGE=base
NODE_MEMORY_MIB=1024
USER_MAX_NODES=4
USER_MAX_CPU=8
USER_MAX_MEMORY_MIB=8192
`;

// Runs a program to its end. `code` is its exit code; nothing is thrown for a failure.
export async function command(program, args, { input, env, timeout = 120_000 } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { env: { ...process.env, ...env }, stdio: ['pipe', 'pipe', 'pipe'], timeout });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text) => { stdout += text; });
    child.stderr.setEncoding('utf8').on('data', (text) => { stderr += text; });
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ code: code ?? signal, stdout, stderr }));
    child.stdin.on('error', () => {});
    child.stdin.end(input ?? '');
  });
}

export async function must(program, args, options) {
  const done = await command(program, args, options);
  if (done.code !== 0) {
    throw new Error(`${program} ${args.join(' ')} ended with ${done.code}\n${done.stdout}\n${done.stderr}`);
  }
  return done.stdout;
}

export const master = (...args) => must('docklet-master', ['--config', CONF, ...args]);
export const worker = (...args) => must('docklet-worker', ['--config', CONF, ...args]);
export const audit = (...options) => command('docklet-worker', ['--config', CONF, 'audit', ...options]);

export async function up() {
  await down();
  await mkdir(`${PREFIX}/global/images`, { recursive: true });
  await writeFile(CONF, SETTINGS);
  for (const image of await readdir(IMAGES)) {
    // Hard links: an image layout is never written in place.
    await run('cp', ['-al', `${IMAGES}/${image}`, `${PREFIX}/global/images/`]);
  }
  await master('init');
  await worker('start');
  await eventually('the host is ready', async () => (await fetch(`${PORTAL}/readyz`)).ok, 120_000);
}

// Ends what an earlier run left, removes everything of it.
export async function down() {
  if (existsSync(CONF)) {
    await command('docklet-worker', ['--config', CONF, 'stop']);
    await command('docklet-master', ['--config', CONF, 'stop']);
    await command('docklet-worker', ['--config', CONF, 'uninstall', '--yes']);
  }
  await rm(PREFIX, { recursive: true, force: true });
}

export const pid = async (program) => Number((await readFile(`${PREFIX}/local/run/${program}.pid`, 'utf8')).trim());
export const etcdPid = async () => Number((await readFile(`${PREFIX}/local/etcd/etcd.pid`, 'utf8')).trim());

export async function rootPassword() {
  return (await readFile(`${PREFIX}/local/generated_password.txt`, 'utf8')).trim();
}

export async function signIn(username, password, portal = PORTAL) {
  const answer = await fetch(`${portal}/api/v1/sessions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ username, password }),
  });
  if (answer.status !== 201) throw new Error(`sign-in of ${username}: ${answer.status} ${await answer.text()}`);
  return (await answer.json()).token;
}

// The REST API as one user.
export function api(token, portal = PORTAL) {
  return async (method, path, body, headers = {}) => {
    const answer = await fetch(`${portal}/api/v1${path}`, {
      method,
      headers: {
        ...headers,
        ...(token ? { authorization: `Bearer ${token}` } : {}),
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await answer.text();
    return { status: answer.status, body: text ? JSON.parse(text) : null };
  };
}

// The command line as one user.
export function cli(token) {
  return (args, options = {}) =>
    command('docklet', args, { ...options, env: { DOCKLET_URL: PORTAL, DOCKLET_TOKEN: token, ...options.env } });
}

// Waits for a condition; the error of the last try is told.
export async function eventually(what, condition, limit = 60_000) {
  const deadline = Date.now() + limit;
  let last;
  for (;;) {
    try {
      if (await condition()) return;
      last = undefined;
    } catch (error) {
      last = error;
    }
    if (Date.now() > deadline) throw new Error(`in ${limit / 1000} s it did not happen that ${what}`, { cause: last });
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

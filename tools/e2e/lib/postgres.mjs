// A PostgreSQL of the tests' own: in a temporary directory, reached by a socket in it.

import { spawn } from 'node:child_process';
import { chown, mkdtemp, open, readFile, readdir, rm } from 'node:fs/promises';

import { command, eventually, must } from './site.mjs';

// The server refuses to run as root; Debian's package makes this user.
const USER = 'postgres';

export async function startPostgres() {
  const [version] = (await readdir('/usr/lib/postgresql')).sort((a, b) => b - a);
  const programs = `/usr/lib/postgresql/${version}/bin`;
  const account = (await readFile('/etc/passwd', 'utf8')).split('\n').map((line) => line.split(':')).find(([name]) => name === USER);
  const [uid, gid] = account.slice(2, 4).map(Number);
  const dir = await mkdtemp('/tmp/dkpg');
  await chown(dir, uid, gid);
  const asUser = ['--pdeathsig', 'INT', `--reuid=${uid}`, `--regid=${gid}`, '--clear-groups'];
  await must('setpriv', [...asUser, `${programs}/initdb`, '--username=docklet', '--auth=trust', '--no-sync', '--encoding=UTF8', '--locale=C', '--pgdata', `${dir}/data`]);
  const log = await open(`${dir}/log`, 'w');
  const server = spawn('setpriv', [...asUser, `${programs}/postgres`, '-D', `${dir}/data`, '-k', dir, '-c', 'listen_addresses='],
    { cwd: dir, stdio: ['ignore', log.fd, log.fd] });
  const ended = new Promise((resolve) => { server.on('exit', resolve); });
  await eventually('PostgreSQL answers', async () => (await command(`${programs}/pg_isready`, ['--host', dir])).code === 0);
  const client = (program, ...args) => must(`${programs}/${program}`, ['--host', dir, '--username', 'docklet', ...args]);
  await client('createdb', 'docklet');
  return {
    url: `postgres://docklet@localhost/docklet?host=${dir}`,
    client,
    stop: async () => {
      server.kill('SIGINT');
      await ended;
      await log.close();
      await rm(dir, { recursive: true, force: true });
    },
  };
}

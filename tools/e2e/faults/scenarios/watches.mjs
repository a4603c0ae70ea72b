// Watches lose events, tell them twice and end, and what they would have told is compacted away: everything is read anew
// within a minute, so that what was asked for comes about all the same.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';

import { must } from '../../lib/site.mjs';
import { checks } from '../lib/checks.mjs';
import { compact, ETCD, hosts, kill, pause, PREFIX, start } from '../lib/bed.mjs';
import { steady } from './kills.mjs';

const LOSSY = new URL('../lib/lossy.mjs', import.meta.url).pathname;
// The switch's own address: the relays are there, out of everybody's way.
const SWITCH = '10.231.0.254';
// A change may take several steps, of which each is noticed after a minute.
const LIMIT = 300_000;

const nft = (machine, ...words) => must('ip', ['netns', 'exec', `testbed-${machine}`, 'nft', ...words]);
const address = (member) => `10.231.0.${2 + ETCD.indexOf(member)}`;

// Puts a relay between a machine's program and etcd. Returns what takes it away again, and then what it did.
async function lieTo(machine, site) {
  const first = 20_000 + 10 * ['master', ...hosts].indexOf(machine);
  const members = ETCD.map((member, n) => ({ port: first + n, address: address(member), identity: `${PREFIX}/${member}/local/identity/etcd` }));
  const identity = `${PREFIX}/${machine}/local/identity/${machine === 'master' ? 'master' : 'worker'}`;
  const told = JSON.stringify({ seed: site.random.between(0, 2 ** 31), listen: SWITCH, identity, members });
  const relay = spawn('nsenter', ['--net=/run/netns/testbed-switch', process.execPath, LOSSY, told], { stdio: ['pipe', 'pipe', 'inherit'] });
  const said = text(relay.stdout);
  await Promise.race([once(relay.stdout, 'data'), once(relay, 'exit').then(() => { throw new Error(`the relay of ${machine} ended`); })]);
  const rules = members.map(({ port, address: to }) => `add rule ip testbed_lossy c ip daddr ${to} tcp dport 2379 dnat to ${SWITCH}:${port}`);
  await nft(machine, ['add table ip testbed_lossy', 'add chain ip testbed_lossy c { type nat hook output priority -100; }', ...rules].join('; '));
  // Connections that are there stay as they are.
  await kill(machine);
  await start(machine);
  return async () => {
    await nft(machine, 'delete table ip testbed_lossy');
    await kill(machine);
    relay.stdin.end();
    await once(relay, 'exit');
    await start(machine);
    return JSON.parse((await said).trim().split('\n').at(-1));
  };
}

async function lossy(site) {
  const own = await steady(site, 'steady');
  const before = await own();
  const total = { passed: 0, swallowed: 0, repeated: 0, ended: 0 };
  let slowest = 0;
  for (const machines of site.short ? [hosts] : [hosts, ['master']]) {
    site.load.mayMiss = machines.includes('master');
    const undo = [];
    try {
      for (const machine of machines) undo.push(await lieTo(machine, site));
      site.load.go();
      for (let second = 0; second < (site.short ? 5 : 30); second += 1) {
        await pause(1000);
        if (site.random.next() < 0.3) await compact();
      }
      slowest = Math.max(slowest, await checks(site, LIMIT));
      assert.deepEqual(await own(), before, 'the same inits');
    } finally {
      for (const did of await Promise.all(undo.map((end) => end()))) {
        for (const [what, count] of Object.entries(did)) total[what] += count;
      }
      site.load.mayMiss = false;
    }
  }
  assert.ok(total.swallowed > 0 && total.repeated > 0 && total.ended > 0, JSON.stringify(total));
  return `of ${total.passed + total.swallowed + total.repeated + total.ended} messages ${total.swallowed} swallowed, ${total.repeated} told twice, ${total.ended} ended a watch; all as it should be after at most ${slowest.toFixed(1)} s`;
}

export const scenarios = [
  { name: 'watches', title: 'watches swallow, repeat and end, and etcd compacts: what was asked for comes about', run: lossy },
];

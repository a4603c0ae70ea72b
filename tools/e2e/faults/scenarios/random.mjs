// Any program is killed at any moment, over and over.

import { checks } from '../lib/checks.mjs';
import { ETCD, hosts, kill, pause, processes, start } from '../lib/bed.mjs';

// The checks are done each so many rounds.
const BETWEEN = 50;

async function randomKills(site) {
  const { random } = site;
  const killed = {};
  const down = new Map();
  let slowest = 0;
  const back = async (machine) => {
    down.delete(machine);
    await start(machine);
  };
  for (let round = 1; round <= site.rounds; round += 1) {
    const victim = random.weighed([[5, random.pick(hosts)], [3, 'master'], [2, random.pick(ETCD)], [2, 'helper']]);
    const pauses = [random.between(0, 600), random.between(0, 800)];
    // Some stay away while the next one is killed.
    const stays = random.next() < 0.2;
    await pause(pauses[0]);
    const kind = victim.replace(/\d/, '').replace(/^h$/, 'worker');
    killed[kind] = (killed[kind] ?? 0) + 1;
    if (victim === 'helper') {
      await killHelper(site, random.pick(hosts));
    } else if (!down.has(victim)) {
      await kill(victim);
      down.set(victim, round);
    }
    await pause(pauses[1]);
    for (const [machine, since] of down) if (!stays || since < round) await back(machine);
    if (round % BETWEEN === 0 || round === site.rounds) {
      for (const machine of down.keys()) await back(machine);
      slowest = Math.max(slowest, await checks(site));
      console.log(`#   ${round} of ${site.rounds} rounds; ${Object.entries(killed).map(([k, n]) => `${n} ${k}`).join(', ')}; ${site.load.counts.acknowledged} requests acknowledged`);
      site.load.go();
    }
  }
  return `${site.rounds} rounds; ${Object.entries(killed).map(([k, n]) => `${n} ${k}`).join(', ')}; converged after at most ${slowest.toFixed(1)} s`;
}

async function killHelper(site, host) {
  const daemon = await site.pidOf(host).catch(() => 0);
  const others = (await processes(host, 'docklet-worker')).filter(({ pid }) => pid !== daemon);
  if (others.length === 0) return;
  try {
    process.kill(site.random.pick(others).pid, 'SIGKILL');
  } catch {
    // It has ended by itself.
  }
}

export const scenarios = [
  { name: 'random', title: 'any program is killed at any moment', short: true, run: randomKills },
];

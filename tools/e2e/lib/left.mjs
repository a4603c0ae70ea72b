// What is left of a testbed after `down`: network namespaces, control groups, processes, mounts and loop devices. All of
// the machine is looked at, as what was missed is nobody's any more.

import { readFile, readdir } from 'node:fs/promises';

const read = (file) => readFile(file, 'utf8').catch(() => '');
const list = (directory) => readdir(directory).catch(() => []);

async function groups() {
  const found = [];
  const root = '/sys/fs/cgroup';
  for (const place of [root, ...(await list(root)).map((name) => `${root}/${name}`)]) {
    for (const name of await list(place)) if (name.startsWith('docklet-testbed-')) found.push(`control group ${place}/${name}`);
  }
  return found;
}

async function loops(prefix) {
  const found = [];
  for (const name of (await list('/sys/block')).filter((block) => block.startsWith('loop'))) {
    const file = (await read(`/sys/block/${name}/loop/backing_file`)).trim();
    if (file.startsWith(`${prefix}/`)) found.push(`${name} of ${file}`);
  }
  return found;
}

// Of every process: a mount may live on in the namespace of one that was forgotten.
async function processesAndMounts(prefix) {
  const found = [];
  for (const pid of (await list('/proc')).filter((name) => /^\d+$/.test(name) && name !== String(process.pid))) {
    const words = (await read(`/proc/${pid}/cmdline`)).split('\0');
    // Who asks about the prefix, a test or its runner, names it as well: only programs that work in it do so below it.
    if (words.some((word) => word.includes(`${prefix}/`)) || (words[0].endsWith('docklet-testbed') && words[1] === 'hold')) {
      found.push(`process ${pid}: ${words.join(' ')}`);
    }
    const mount = (await read(`/proc/${pid}/mountinfo`)).split('\n').find((line) => line.includes(` ${prefix}/`));
    if (mount) found.push(`mount of process ${pid} (${words[0]}): ${mount}`);
  }
  return found;
}

export async function leftOf(prefix) {
  const names = (await list('/run/netns')).filter((name) => name.startsWith('testbed-')).map((name) => `network namespace ${name}`);
  return [...names, ...await groups(), ...await loops(prefix), ...await processesAndMounts(prefix)];
}

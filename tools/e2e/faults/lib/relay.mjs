// Runs inside the master's network namespace: passes what comes on a socket of the file system on to the portal, so that
// the tests speak to it from where they are. `node relay.mjs SOCKET ADDRESS PORT`.

import { connect, createServer } from 'node:net';

const [socket, address, port] = process.argv.slice(2);

createServer((client) => {
  const portal = connect(Number(port), address);
  const end = () => { client.destroy(); portal.destroy(); };
  client.on('error', end).on('close', end);
  portal.on('error', end).on('close', end);
  client.pipe(portal).pipe(client);
}).listen(socket, () => console.log('ready'));

// With whoever started it.
process.stdin.on('end', () => process.exit()).resume();

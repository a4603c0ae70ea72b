// Stands between one program and the members of etcd, and lies about what is watched: batches of events are swallowed, told
// twice, and watches end. Everything else passes.
//
//   node lossy.mjs '{"seed":…, "listen":"10.231.0.254", "identity":"/…/worker", "members":[{"port":…, "address":…, "identity":…}]}'
//
// An identity is the path of a certificate and its key without their endings; `ca.crt` lies beside. It writes `ready` when it
// listens, and at its end what it has done.

import { readFileSync } from 'node:fs';
import { connect, constants, createSecureServer } from 'node:http2';
import { dirname } from 'node:path';

import { Random } from './random.mjs';

const { seed, listen, identity, members } = JSON.parse(process.argv[2]);
const random = new Random(seed);
const did = { passed: 0, swallowed: 0, repeated: 0, ended: 0 };
const WATCH = '/etcdserverpb.Watch/Watch';
// Field 11 of a WatchResponse, of type bytes: its events.
const EVENTS = (11 << 3) | 2;

const files = (path) => ({ cert: readFileSync(`${path}.crt`), key: readFileSync(`${path}.key`), ca: readFileSync(`${dirname(path)}/ca.crt`) });

function varint(bytes, at) {
  let [value, shift] = [0, 0];
  for (;;) {
    const byte = bytes[at];
    at += 1;
    value += (byte & 0x7f) * 2 ** shift;
    shift += 7;
    if (byte < 0x80) return [value, at];
  }
}

// Whether a message of a watch brings events, rather than word of the watch itself.
function bringsEvents(message) {
  let at = 0;
  while (at < message.length) {
    let tag;
    [tag, at] = varint(message, at);
    if (tag === EVENTS) return true;
    let length;
    [length, at] = varint(message, at);
    if ((tag & 7) === 2) at += length;
  }
  return false;
}

// Passes a watch's messages on as they become whole.
function lie(from, to, end) {
  let held = Buffer.alloc(0);
  from.on('data', (more) => {
    held = Buffer.concat([held, more]);
    while (held.length >= 5 && held.length >= 5 + held.readUInt32BE(1)) {
      const frame = held.subarray(0, 5 + held.readUInt32BE(1));
      held = held.subarray(frame.length);
      const fate = bringsEvents(frame.subarray(5)) ? random.weighed([[60, 'passed'], [20, 'swallowed'], [15, 'repeated'], [5, 'ended']]) : 'passed';
      did[fate] += 1;
      if (fate === 'ended') return end();
      if (fate !== 'swallowed') to.write(frame);
      if (fate === 'repeated') to.write(frame);
    }
    return undefined;
  });
}

function pass(stream, headers, upstream) {
  const asked = upstream.request(Object.fromEntries(Object.entries(headers).filter(([name]) => name !== 'host')));
  const end = () => {
    stream.close(constants.NGHTTP2_CANCEL);
    asked.close(constants.NGHTTP2_CANCEL);
  };
  for (const one of [stream, asked]) one.on('error', end).on('aborted', end);
  let trailers = {};
  stream.on('wantTrailers', () => stream.sendTrailers(trailers));
  asked.on('trailers', (last) => { trailers = last; });
  asked.on('response', (head, flags) => {
    if (stream.destroyed) return;
    const over = (flags & constants.NGHTTP2_FLAG_END_STREAM) !== 0;
    stream.respond(head, over ? { endStream: true } : { waitForTrailers: true });
    if (over) return;
    if (headers[':path'] === WATCH) lie(asked, stream, end);
    else asked.on('data', (more) => stream.write(more));
    asked.on('end', () => stream.end());
  });
  stream.on('data', (more) => asked.write(more)).on('end', () => asked.end());
  stream.on('close', () => asked.close());
}

const servers = members.map(({ port, address, identity: own }) => {
  const server = createSecureServer({ ...files(own), allowHTTP1: false });
  server.on('session', (session) => {
    const upstream = connect(`https://${address}:2379`, files(identity));
    // Each goes with the other.
    upstream.on('error', () => session.destroy()).on('close', () => session.destroy());
    session.on('error', () => upstream.destroy()).on('close', () => upstream.destroy());
    session.on('stream', (stream, headers) => pass(stream, headers, upstream));
  });
  server.on('sessionError', () => {}).on('tlsClientError', () => {});
  return new Promise((resolve) => { server.listen(port, listen, resolve); });
});
await Promise.all(servers);
console.log('ready');

// With whoever started it.
process.stdin.on('end', () => {
  console.log(JSON.stringify(did));
  process.exit();
}).resume();

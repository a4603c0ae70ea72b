// Listens on the socket given as standard input instead of on PEER_PORT, so that a program can take connections in one
// network namespace and make its own in another.
'use strict';
const net = require('node:net');
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function inherit(port, ...rest) {
  return port === Number(process.env.PEER_PORT) ? listen.call(this, { fd: 0 }) : listen.call(this, port, ...rest);
};

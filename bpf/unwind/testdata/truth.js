// Spends known shares of its CPU time below known callers, in the main thread and then in a worker: 3 of 12 in method, 5 in gen, 2 in
// byBuiltin, 2 in deep.
'use strict';
const { Worker, isMainThread } = require('worker_threads');

let sink = 0;

function used() { const u = process.cpuUsage(); return (u.user + u.system) / 1000; }

function spin(milliseconds) {
  const end = used() + milliseconds;
  do {
    for (let n = 50000; n; n--)
      sink ^= Math.imul(n, sink + 1);
  } while (used() < end);
}

class Work {
  method(n) { return spin(n); }
}

function* gen(n) { yield spin(n); }

function byBuiltin(n) { return [n].map(spin); }

function deep(k, n) { return k === 0 ? spin(n) : deep(k - 1, n); }

function work(seconds) {
  const end = used() + seconds * 1000;
  while (used() < end) {
    new Work().method(15);
    gen(25).next();
    byBuiltin(10);
    deep(20, 10);
  }
}

function main(seconds) {
  work(seconds);
  if (isMainThread) new Worker(__filename, { argv: [String(seconds)] });
}

main(Number(process.argv[2]));

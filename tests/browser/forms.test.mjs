// The forms in which the client is served: each of them loads, and talks to a server.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, test } from "node:test";
import { createContext, runInContext } from "node:vm";
import { WebSocket } from "ws";

import { FakeServer } from "./fake.mjs";

globalThis.WebSocket = WebSocket;
const folder = process.env.FORMS; // where the test that starts this has put them
const server = await FakeServer.start();
after(() => server.stop());

const talk = async ({ io }) => {
  assert.equal(io.protocol, 5);
  const socket = io(server.url, { transports: ["websocket"], forceNew: true });
  await new Promise((done) => socket.on("connect", done));
  const answer = new Promise((done) => socket.on("hello", done));
  server.sockets.at(-1).send('451-["hello",{"_placeholder":true,"num":0}]');
  server.sockets.at(-1).send(Buffer.from([1, 2, 3]));
  assert.deepEqual([...new Uint8Array(await answer)], [1, 2, 3]);
  socket.disconnect();
};

/** What a page has. */
const globals = () => {
  const names = ["setTimeout", "clearTimeout", "queueMicrotask", "WebSocket", "fetch", "Headers", "AbortController"];
  return createContext(Object.fromEntries(names.map((name) => [name, globalThis[name]])));
};

for (const name of ["socket.io.js", "socket.io.min.js"]) {
  const script = readFileSync(`${folder}/${name}`, "utf8");

  test(`${name} defines io and nothing else`, async () => {
    const context = globals();
    const before = Object.keys(context);
    runInContext(script, context);
    assert.deepEqual(Object.keys(context).filter((key) => !before.includes(key)), ["io"]);
    for (const key of ["Manager", "Socket", "connect", "io", "lookup"]) assert.ok(context.io[key], key);
    await talk(context);
  });

  test(`${name} is a CommonJS module where there are such`, async () => {
    const context = Object.assign(globals(), { module: { exports: {} } });
    runInContext(script, context);
    assert.equal(context.io, undefined);
    await talk({ io: context.module.exports });
  });

  test(`${name} is an AMD module where there are such`, async () => {
    let io;
    const define = Object.assign((factory) => (io = factory()), { amd: {} });
    runInContext(script, Object.assign(globals(), { define }));
    await talk({ io });
  });
}

for (const name of ["socket.io.esm.js", "socket.io.esm.min.js"]) {
  test(`${name} exports what pages import`, async () => {
    const module = await import(`${folder}/${name.replace(/js$/, "mjs")}`);
    const { io, Manager, Socket, connect, protocol, default: main } = module;
    assert.deepEqual([main, connect, protocol], [io, io, 5]);
    assert.ok(Manager && Socket && module.Fetch && module.XHR && module.WebSocket);
    await talk({ io });
  });
}

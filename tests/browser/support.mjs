// What the tests share: our client with what Node lacks of a browser, and short words for waiting.
import { once } from "node:events";
import { createServer } from "node:net";
import { afterEach } from "node:test";
import { WebSocket } from "ws";

import { XMLHttpRequest } from "./xhr.mjs";

globalThis.WebSocket = WebSocket; // Node has none before 22
if (process.env.POLLING === "xhr") globalThis.XMLHttpRequest = XMLHttpRequest;

export const client = await import("../../client/limpet_client/browser/limpet.js");

/** The server under test, and whether it offers connection state recovery. */
export const url = process.env.SERVER_URL;
export const recovers = process.env.RECOVERS === "1";

// Takes connections and never answers: a handshake may be quicker than any timer.
const deaf = createServer(() => {}).listen(0, "127.0.0.1");
deaf.unref();
await once(deaf, "listening");
/** A server that lets everybody wait. */
export const silent = `http://127.0.0.1:${deaf.address().port}`;

const sockets = [];
const managers = [];

/** Returns a socket on a connection of its own that is closed after the test. */
export const open = (path = "", options = {}, address = url) => {
  const socket = client.io(address + path, { forceNew: true, reconnectionDelay: 10, ...options });
  sockets.push(socket);
  return socket;
};

/** Likewise a Manager. */
export const manage = (address = url, options = {}) => {
  const manager = new client.Manager(address, { reconnectionDelay: 10, ...options });
  managers.push(manager);
  return manager;
};

afterEach(() => {
  for (const socket of sockets.splice(0)) socket.disconnect();
  for (const manager of managers.splice(0)) manager._close();
});

/** Resolves to the arguments of an event's next occurrence. */
export const next = (emitter, event, ms = 15_000) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no ${event} within ${ms} ms`)), ms);
    emitter.once(event, (...args) => {
      clearTimeout(timer);
      resolve(args);
    });
  });

export const connected = async (path, options) => {
  const socket = open(path, options);
  await next(socket, "connect");
  return socket;
};

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Resolves once something is so. */
export const until = async (condition, what = condition) => {
  for (let tries = 0; !condition(); tries++) {
    if (tries >= 2000) throw new Error(`not true: ${what}`);
    await sleep(5);
  }
};

/** Rejects when an event occurs that must not, else resolves after a while. */
export const never = (emitter, event, ms = 100) =>
  new Promise((resolve, reject) => {
    const listener = (...args) => reject(new Error(`${event} happened: ${args}`));
    emitter.on(event, listener);
    setTimeout(() => {
      emitter.off(event, listener);
      resolve();
    }, ms);
  });

/** A port on which nobody listens. */
export const nobody = "http://localhost:9823";

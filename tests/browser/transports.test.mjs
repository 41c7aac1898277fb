// Transports: requests as they are made, upgrades that work and that do not, ends of each kind.
import assert from "node:assert/strict";
import { after, afterEach, test } from "node:test";

import { FakeServer } from "./fake.mjs";
import { client, manage, never, next, sleep, until } from "./support.mjs";

const { Engine, Fetch, Manager, WebSocket, XHR } = client;
const xhr = process.env.POLLING === "xhr";
const [readError, writeError] = xhr ? ["xhr poll error", "xhr post error"] : ["fetch read error", "fetch write error"];
const POLL = { transports: ["polling"] };

const servers = [];
const fake = async (...args) => {
  const server = await FakeServer.start(...args);
  servers.push(server);
  return server;
};
afterEach(() => {
  for (const server of servers.splice(0)) server.stop();
});

const connect = async (server, options) => {
  const manager = manage(server.url, { reconnection: false, ...options });
  const socket = manager.socket("/");
  await next(socket, "connect");
  return socket;
};

test("requests of polling are those that servers expect", async () => {
  const server = await fake();
  const options = { ...POLL, query: { a: "b c" }, extraHeaders: { "X-Token": "t" } };
  const socket = await connect(server, options);
  socket.emit("x", "é");
  await until(() => server.posts().length === 2);
  const [open, poll] = server.requests.filter(({ method }) => method === "GET");
  const [, post] = server.requests.filter(({ method }) => method === "POST");
  assert.ok(open.url.startsWith("/socket.io/?"));
  assert.deepEqual({ ...open.query, t: "" }, { EIO: "4", transport: "polling", a: "b c", t: "" });
  assert.match(open.query.t, /^[a-z0-9]{5,}$/);
  assert.notEqual(open.query.t, poll.query.t);
  assert.equal(poll.query.sid, "s1");
  assert.equal(post.query.sid, "s1");
  assert.equal(post.body, '42["x","é"]');
  assert.equal(post.headers["content-type"].toLowerCase(), "text/plain;charset=utf-8");
  for (const request of [open, poll, post]) {
    assert.equal(request.headers["x-token"], "t");
    assert.equal(request.headers.accept, "*/*");
  }
});

test("paths, slashes and timestamps are as the options say", async () => {
  const server = await fake();
  await connect(server, { ...POLL, path: "/a/b", addTrailingSlash: false, timestampRequests: false });
  assert.equal(server.requests[0].url, "/a/b?EIO=4&transport=polling");
  const other = await fake();
  await connect(other, { ...POLL, path: "/c/", timestampParam: "stamp" });
  const { url, query } = other.requests[0];
  assert.ok(url.startsWith("/c/?"));
  assert.ok(query.stamp && !query.t);
});

test("a WebSocket has its query, protocols and headers", async () => {
  const server = await fake();
  server.ws.options.handleProtocols = (protocols) => [...protocols][0];
  const options = { transports: ["websocket"], protocols: ["p1", "p2"], extraHeaders: { "X-Token": "t" } };
  const socket = await connect(server, { ...options, query: { a: "b" }, timestampRequests: true });
  const [{ query, protocol, headers }] = server.sockets;
  assert.deepEqual({ ...query, t: "" }, { EIO: "4", transport: "websocket", a: "b", t: "" });
  assert.ok(query.t);
  assert.equal(protocol, "p1");
  assert.equal(headers["x-token"], "t");
  assert.equal(socket.io.engine.transport.name, "websocket");
});

test("options of one transport are its alone", async () => {
  const server = await fake({ upgrades: [] });
  const transportOptions = { polling: { extraHeaders: { "X-Polling": "yes" } } };
  await connect(server, { transportOptions });
  assert.equal(server.requests[0].headers["x-polling"], "yes");
  await connect(server, { transports: ["websocket"], transportOptions });
  assert.equal(server.sockets[0].headers["x-polling"], undefined);
});

test("an upgrade: probe, pause, upgrade packet, and nothing is lost or reordered", async () => {
  const server = await fake();
  const got = [];
  server.message = (packet, socket) => {
    got.push(packet);
    FakeServer.prototype.message.call(server, packet, socket);
    if (packet === "2probe") server.send("6");
  };
  const manager = manage(server.url);
  const events = [];
  for (const event of ["upgrading", "upgrade", "upgradeError"]) {
    manager.engine.on(event, ({ name }) => events.push(`${event} ${name}`));
  }
  const socket = manager.socket("/");
  const sent = Array.from({ length: 200 }, (_, number) => `42["n",${number}]`);
  await next(socket, "connect");
  for (let number = 0; number < 200; number++) {
    socket.emit("n", number);
    if (number % 7 === 0) await sleep(0);
  }
  await until(() => got.includes(sent[199]));
  assert.deepEqual(got.filter((packet) => packet.startsWith("42")), sent);
  assert.deepEqual(events, ["upgrading websocket", "upgrade websocket"]);
  assert.ok(got.indexOf("2probe") < got.indexOf("5"));
  assert.equal(manager.engine.transport.name, "websocket");
  assert.equal(Engine.priorWebsocketSuccess, true);
});

test("no upgrade where it is not wanted or not offered", async () => {
  for (const [open, options] of [[{}, { upgrade: false }], [{}, POLL], [{ upgrades: [] }, {}], [{ upgrades: ["magic"] }, {}]]) {
    const server = await fake(open);
    const socket = await connect(server, options);
    await sleep(50);
    assert.equal(server.sockets.length, 0);
    assert.equal(socket.io.engine.transport.name, "polling");
  }
});

for (const [how, onSocket] of [
  ["is refused", null],
  ["closes", (socket) => socket.close()],
  ["answers wrongly", (socket) => socket.send("3nonsense")],
  ["closes after the probe", (socket) => socket.once("message", () => socket.send("3probe", () => socket.close()))],
]) {
  test(`polling goes on when the WebSocket ${how}`, async () => {
    const server = await fake();
    if (onSocket) server.onSocket = onSocket;
    else server.ws.options.verifyClient = () => false;
    // The connection is confirmed afterwards, so that a poll waits all the time.
    const { message } = FakeServer.prototype;
    const held = [];
    server.message = (packet) => held.push(packet);
    const manager = manage(server.url, { reconnection: false });
    const failed = next(manager.engine, "upgradeError");
    const socket = manager.socket("/");
    const calm = never(socket, "disconnect", 150);
    const [error] = await failed;
    assert.equal(error.transport, "websocket");
    assert.match(error.message, /^probe error: /);
    await until(() => held.length);
    server.message = message;
    held.forEach((packet) => server.message(packet));
    await next(socket, "connect");
    socket.emit("still", "here");
    server.send('42["me","too"]');
    await next(socket, "me");
    await until(() => server.posts().includes('42["still","here"]'));
    assert.equal(manager.engine.transport.name, "polling");
    assert.equal(manager.engine.upgrading, false);
    await calm;
  });
}

test("what is emitted just before the end is sent, during an upgrade too", async () => {
  for (const works of [true, false]) {
    const server = await fake();
    const got = [];
    server.onSocket = (socket) =>
      socket.on("message", (data) => {
        got.push(String(data));
        if (String(data) === "5") server.message("5", socket);
      });
    const manager = manage(server.url);
    const socket = manager.socket("/");
    await next(socket, "connect");
    await until(() => server.poll && got.includes("2probe"));
    server.sockets[0].send("3probe");
    await until(() => manager.engine.upgrading);
    socket.emit("last", "words");
    socket.disconnect();
    assert.equal(manager.engine.readyState, "closing");
    if (works) server.send("6");
    else server.sockets[0].terminate();
    const all = () => [...got, ...server.posts().flatMap((body) => body.split("\x1e"))];
    await until(() => all().includes("41"), `it works: ${works}`);
    assert.ok(all().indexOf('42["last","words"]') < all().indexOf("41"));
    assert.equal(got.includes("41"), works);
    await until(() => manager.engine.readyState === "closed");
  }
});

test("closing says goodbye and leaves no request behind", async () => {
  const server = await fake();
  const socket = await connect(server, POLL);
  const polls = () => server.requests.filter(({ method, query }) => method === "GET" && query.sid);
  await until(() => server.poll);
  socket.disconnect();
  await until(() => server.posts().at(-1) === "1");
  assert.deepEqual(server.posts(), ["40", "41", "1"]);
  await until(() => polls().at(-1).aborted, "the poll is dropped");
});

test("a session whose handshake comes after the end is closed", async () => {
  let late;
  const server = await fake({}, (request) => !request.query.sid && (late = request));
  const manager = manage(server.url, POLL);
  manager.socket("/").on("connect_error", assert.fail);
  await until(() => late);
  manager._close();
  late.answer(200, "0" + JSON.stringify(server.open));
  await until(() => server.posts().includes("1"));
  assert.equal(server.requests.at(-1).query.sid, "s1");
});

for (const [status, what] of [[400, "an unknown session"], [500, "an error of the server"]]) {
  test(`a poll that is answered with ${what} ends the connection`, async () => {
    let polls = 0;
    const server = await fake({}, ({ method, query, answer }) => {
      if (method === "GET" && query.sid && ++polls === 2) return answer(status, "{}"), true;
    });
    const socket = await connect(server, POLL);
    const [reason, error] = await next(socket, "disconnect");
    assert.equal(reason, "transport error");
    assert.equal(error.message, readError);
    assert.equal(error.description, status);
    assert.equal(error.context.status, status);
  });
}

test("a POST that is refused ends the connection and the poll", async () => {
  const server = await fake({}, ({ body, answer }) => body.includes("big") && (answer(413, ""), true));
  const socket = await connect(server, POLL);
  await until(() => server.poll);
  socket.emit("big");
  const [reason, error] = await next(socket, "disconnect");
  assert.deepEqual([reason, error.message, error.description], ["transport error", writeError, 413]);
  await until(() => server.requests.some(({ method, aborted }) => method === "GET" && aborted));
});

test("requests may not last longer than requestTimeout", async () => {
  const server = await fake();
  const manager = manage(server.url, { ...POLL, requestTimeout: 3000, reconnection: false });
  const socket = manager.socket("/");
  assert.equal((await next(socket, "disconnect"))[1].message, readError);
});

test("a server that closes, and payloads that are none", async () => {
  for (const [payload, reason, message] of [
    ["1", "transport close", undefined],
    ['42["a"]\x1e1\x1e42["b"]', "transport close", undefined],
    ["nonsense", "transport error", "server error"],
    ["4nonsense", "parse error", "unknown packet type n"],
  ]) {
    const server = await fake();
    const socket = await connect(server, POLL);
    const events = [];
    socket.onAny((event) => events.push(event));
    const gone = next(socket, "disconnect");
    server.send(payload);
    const [why, error] = await gone;
    assert.deepEqual([why, error.message], [reason, message]);
    assert.deepEqual(events, payload.includes("a]") ? ["a"] : events);
    assert.ok(!events.includes("b"));
  }
});

test("a handshake that is none", async () => {
  const server = await fake({}, ({ answer }) => (answer(200, "0{nonsense"), true));
  const manager = manage(server.url, { ...POLL, reconnection: false });
  const [error] = await next(manager, "error");
  assert.ok(error instanceof SyntaxError);
});

test("POSTs are kept below maxPayload and to a number of packets", async () => {
  const server = await fake({ maxPayload: 100 });
  const socket = await connect(server, POLL);
  const values = ["a".repeat(60), "é".repeat(30), new Uint8Array(40), "x", "z".repeat(300), "y"];
  for (const value of values) socket.emit("v", value);
  await until(() => server.posts().join().includes('"y"'));
  const posts = server.posts().slice(1);
  const sizes = posts.map((body) => Buffer.byteLength(body));
  assert.ok(posts.every((body, index) => sizes[index] <= 100 || !body.includes("\x1e")), `${sizes}`);
  assert.ok(posts.length < 7, `${sizes}`);

  const other = await fake();
  const many = await connect(other, POLL);
  for (let number = 0; number < 1300; number++) many.emit("n");
  await until(() => other.posts().join("\x1e").split("\x1e").length === 1301);
  assert.ok(other.posts().every((body) => body.split("\x1e").length <= 500));
});

test("all transports are tried when that is asked for", async () => {
  const server = await fake({}, ({ answer }) => (answer(500, ""), true));
  const socket = await connect(server, { tryAllTransports: true });
  assert.equal(socket.io.engine.transport.name, "websocket");
  const manager = manage(server.url, { reconnection: false });
  assert.equal((await next(manager, "error"))[0].message, readError);
  const nothing = manage("http://127.0.0.1:1", { tryAllTransports: true, reconnection: false });
  assert.equal((await next(nothing, "error"))[0].message, "websocket error");
});

test("a WebSocket that worked is remembered when that is asked for", async () => {
  const server = await fake({ upgrades: [] });
  await connect(server, { transports: ["websocket"] });
  const remembers = await connect(server, { rememberUpgrade: true });
  assert.equal(remembers.io.engine.transport.name, "websocket");
  const forgets = await connect(server, {});
  assert.equal(forgets.io.engine.transport.name, "polling");
});

test("transports may be given as classes; unknown names are passed over", async () => {
  const kinds = [[Fetch], [WebSocket], ["magic", "websocket"], ...(xhr ? [[XHR]] : [])];
  for (const transports of kinds) {
    const socket = await connect(await fake(), { transports });
    const { name } = socket.io.engine.transport;
    assert.equal(name, [Fetch, XHR].includes(transports[0]) ? "polling" : "websocket");
  }
  const manager = manage("http://127.0.0.1:1", { transports: ["magic"], reconnection: false });
  assert.match((await next(manager, "error"))[0].message, /No transports available/);
});

test("where there is no WebSocket, that is an error", async () => {
  const server = await fake();
  const { WebSocket: native } = globalThis;
  globalThis.WebSocket = undefined;
  try {
    const manager = manage(server.url, { transports: ["websocket"], reconnection: false });
    const [error] = await next(manager, "error");
    assert.equal(error.message, "websocket error");
    assert.ok(error.description instanceof TypeError);
  } finally {
    globalThis.WebSocket = native;
  }
});

test("a connection that ends before it is open is an error", async () => {
  const server = await fake();
  const manager = manage(server.url, { ...POLL, reconnection: false });
  const failed = next(manager, "error");
  manager.engine._onOffline();
  assert.equal((await failed)[0].message, "transport close");
});

test("when the network goes, connections end, but not those to this machine", async () => {
  const server = await fake();
  const socket = await connect(server, POLL);
  const gone = next(socket, "disconnect");
  socket.io.engine._onOffline();
  const [reason, details] = await gone;
  assert.deepEqual([reason, details.description], ["transport close", "network connection lost"]);
  const other = await fake();
  const local = await connect({ url: other.url.replace("127.0.0.1", "localhost") }, POLL).catch(() => null);
  if (!local) return; // localhost is another address here
  local.io.engine._onOffline();
  assert.equal(local.connected, true);
});

test("pages: locations, and what happens when they close", async () => {
  const listeners = {};
  globalThis.location = { protocol: "https:", hostname: "[::1]", host: "[::1]:8443", port: "8443" };
  globalThis.addEventListener = (name, listener) => (listeners[name] = listener);
  globalThis.removeEventListener = (name) => delete listeners[name];
  after(() => {
    for (const name of ["location", "addEventListener", "removeEventListener"]) delete globalThis[name];
  });
  const inPage = await import("../../client/limpet_client/browser/limpet.js?page");
  const manager = new inPage.Manager({ ...POLL, reconnection: false });
  const { opts } = manager.engine;
  assert.deepEqual([opts.secure, opts.hostname, opts.port], [true, "::1", "8443"]);
  assert.ok(manager.engine.transport.createUri("http").startsWith("https://[::1]:8443/socket.io/?"));
  manager._close();
  assert.equal(inPage.url("/chat").id, "https://[::1]:8443");

  const server = await fake();
  const closing = new inPage.Manager(server.url, { ...POLL, closeOnBeforeunload: true });
  const socket = closing.socket("/");
  socket.on("disconnect", () => assert.fail("the page is going away"));
  await next(socket, "connect");
  await until(() => server.poll);
  listeners.beforeunload();
  await until(() => server.posts().includes("1"));
  listeners.pagehide({ persisted: true });
  listeners.pagehide({ persisted: false });
  await sleep(50);
  socket.off();
  listeners.offline();
  assert.equal(socket.connected, false);
  assert.equal(listeners.beforeunload, undefined);
  closing._close();
});

test("a parser of one's own is used on both ways", async () => {
  const server = await fake();
  class Encoder {
    encode({ type, data }) {
      return [JSON.stringify({ type, data })];
    }
  }
  class Decoder {
    on(event, listener) {
      this.listener = listener;
    }
    off() {}
    destroy() {}
    add(text) {
      this.listener({ nsp: "/", ...JSON.parse(text) });
    }
  }
  server.message = () => {};
  const manager = new Manager(server.url, { ...POLL, parser: { Encoder, Decoder }, reconnection: false });
  const socket = manager.socket("/");
  server.send('4{"type":0,"data":{"sid":"x"}}');
  await next(socket, "connect");
  socket.emit("a", 1);
  await until(() => server.posts().join().includes('4{"type":2,"data":["a",1]}'));
  manager._close();
});

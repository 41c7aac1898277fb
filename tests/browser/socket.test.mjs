// Sockets: ids, events, acknowledgements. Titles are those of the official client's suite.
import assert from "node:assert/strict";
import { test } from "node:test";

import { connected, manage, never, next, nobody, open, silent, sleep, url } from "./support.mjs";

for (const [kind, path] of [["default", ""], ["custom", "/foo"]]) {
  test(`should have an accessible socket id equal to the server-side socket id (${kind} namespace)`, async () => {
    const socket = open(path);
    const id = await socket.emitWithAck("getId");
    assert.ok(id);
    assert.equal(socket.id, id);
    assert.notEqual(socket.id, socket.io.engine.id);
  });
}

test("clears socket.id upon disconnection", async () => {
  const socket = await connected();
  const gone = next(socket, "disconnect").then(() => socket.id);
  socket.disconnect();
  assert.equal(await gone, undefined);
});

test("doesn't fire an error event if we force disconnect in opening state", async () => {
  const socket = open("", { timeout: 100 });
  socket.disconnect();
  await never(socket.io, "error", 300);
});

test("fire a connect_error event when the connection cannot be established", async () => {
  const manager = manage(nobody);
  const socket = manager.socket("/");
  const [error] = await next(socket, "connect_error");
  assert.ok(error instanceof Error);
  assert.match(error.message, /^(xhr poll|fetch read) error$/);
  assert.equal(error.type, "TransportError");
  assert.equal(socket.active, true);
});

for (const transport of ["polling", "websocket"]) {
  test(`fire a connect_error event on open timeout (${transport})`, async () => {
    const socket = open("", { transports: [transport], timeout: 0 }, silent);
    assert.equal((await next(socket, "connect_error"))[0].message, "timeout");
  });
}

test("doesn't fire a connect_error event when the connection is already established", async () => {
  const socket = await connected();
  const calm = never(socket, "connect_error", 300);
  socket.io.engine.close();
  await calm;
});

test("should change socket.id upon reconnection", async () => {
  const socket = await connected();
  const { id } = socket;
  socket._pid = undefined; // else a server may recover it
  const during = next(socket.io, "reconnect_attempt").then(() => socket.id);
  const back = next(socket, "connect");
  socket.io.engine.close();
  assert.equal(await during, undefined);
  await back;
  assert.notEqual(socket.id, id);
});

test("should enable compression by default", async () => {
  const socket = await connected();
  const packet = next(socket.io.engine, "packetCreate");
  socket.emit("hi");
  assert.equal((await packet)[0].options.compress, true);
});

test("should disable compression", async () => {
  const socket = await connected();
  const packet = next(socket.io.engine, "packetCreate");
  socket.compress(false).emit("hi");
  assert.equal((await packet)[0].options.compress, false);
  const another = next(socket.io.engine, "packetCreate");
  socket.emit("hi");
  assert.equal((await another)[0].options.compress, true);
});

const handshake = async (path, options) => {
  const socket = open(path, options);
  if (path.startsWith("/abc")) return (await next(socket, "handshake"))[0];
  return socket.emitWithAck("getHandshake");
};

test("query option: should accept an object (default namespace)", async () =>
  assert.equal((await handshake("/", { query: { e: "f" } })).query.e, "f"));

test("query option: should accept a query string (default namespace)", async () =>
  assert.equal((await handshake("/?c=d")).query.c, "d"));

test("query option: should accept an object", async () =>
  assert.equal((await handshake("/abc", { query: { a: "b" } })).query.a, "b"));

test("query option: should accept a query string", async () => {
  const { query } = await handshake("/abc?b=c&d=e");
  assert.deepEqual([query.b, query.d], ["c", "e"]);
  assert.equal((await handshake("/abc", { query: "x=y%20z" })).query.x, "y z");
});

test("query option: should properly encode the parameters", async () =>
  assert.equal((await handshake("/abc", { query: { "&a": "&=?a" } })).query["&a"], "&=?a"));

test("auth option: should accept an object", async () => {
  const { auth, query } = await handshake("/abc", { auth: { a: "b", c: "d" } });
  assert.deepEqual([auth.a, auth.c, query.a], ["b", "d", undefined]);
});

test("auth option: should accept an function", async () => {
  const { auth, query } = await handshake("/abc", { auth: (answer) => answer({ e: "f" }) });
  assert.deepEqual([auth.e, query.e], ["f", undefined]);
});

test("a function for auth is asked each time", async () => {
  let count = 0;
  const socket = open("/abc", { auth: (answer) => setTimeout(() => answer({ count: ++count }), 5) });
  assert.equal((await next(socket, "handshake"))[0].auth.count, 1);
  socket._pid = undefined; // else a server may recover it
  const again = next(socket, "handshake");
  socket.io.engine.close();
  assert.equal((await again)[0].auth.count, 2);
});

test("should fire an error event on middleware failure from custom namespace", async () => {
  const socket = open("/no");
  const [error] = await next(socket, "connect_error");
  assert.ok(error instanceof Error);
  assert.equal(error.message, "Auth failed (custom namespace)");
  assert.equal(socket.active, false);
});

test("a refusal of the main namespace, and of one that does not exist", async () => {
  assert.equal((await next(open("/?fail=1"), "connect_error"))[0].message, "Auth failed (main namespace)");
  assert.equal((await next(open("/nowhere"), "connect_error"))[0].message, "Invalid namespace");
});

test("should not try to reconnect after a middleware failure", async () => {
  const socket = open("/no");
  let count = 0;
  socket.on("connect_error", () => {
    count++;
    socket.io.engine.close();
  });
  await next(socket, "connect_error");
  await sleep(100);
  assert.equal(count, 1);
});

test("should properly disconnect then reconnect", async () => {
  const socket = await connected("/", { transports: ["websocket"] });
  let count = 0;
  socket.on("disconnect", () => count++);
  socket.disconnect().connect();
  await next(socket, "connect");
  await sleep(50);
  assert.equal(count, 1);
});

test("should throw on reserved event", () => {
  const socket = open("/no");
  for (const event of ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"]) {
    assert.throws(() => socket.emit(event), { message: `"${event}" is a reserved event name` });
  }
});

test("should emit events in order", async () => {
  const socket = open("/", { autoConnect: false });
  const order = [];
  socket.on("connect", () => socket.emit("echo", "second", (value) => order.push(value)));
  socket.emit("echo", "first", (value) => order.push(value));
  socket.connect();
  await next(socket, "connect");
  await socket.emitWithAck("echo", "third");
  assert.deepEqual(order, ["first", "second"]);
});

test("should emit an event and wait for the acknowledgement", async () =>
  assert.equal(await open().emitWithAck("echo", 123), 123));

test("send is the event message", async () => {
  const socket = await connected();
  const packet = next(socket.io.engine, "packetCreate");
  socket.send("a", 1);
  assert.equal((await packet)[0].data, '2["message","a",1]');
});

test("should discard a volatile packet when the socket is not connected", async () => {
  const socket = open("", { autoConnect: false });
  socket.volatile.emit("getId", () => assert.fail("it was sent"));
  socket.connect();
  await socket.emitWithAck("getId");
});

test("should discard a volatile packet when the pipe is not ready", async () => {
  for (const transports of [["polling"], ["websocket"]]) {
    const socket = await connected("", { transports });
    socket.emit("hi");
    socket.volatile.emit("getId", () => assert.fail("it was sent"));
    await socket.emitWithAck("echo", 2);
  }
});

test("should send a volatile packet when the socket is connected and the pipe is ready", async () => {
  const socket = await connected();
  await socket.emitWithAck("echo", 1);
  while (!socket.io.engine.transport.writable) await sleep(5);
  assert.equal(await socket.volatile.emitWithAck("echo", 2), 2);
});

test("onAny: should call listener", async () => {
  const socket = open("/abc");
  const [event, value] = await new Promise((done) => socket.onAny((...args) => done(args)));
  assert.equal(event, "handshake");
  assert.ok(value.query);
});

test("onAny: should prepend listener", async () => {
  const socket = open("/abc");
  const order = [];
  socket.onAny(() => order.push(3));
  socket.prependAny(() => order.push(2));
  socket.prependAny(() => order.push(1));
  await next(socket, "handshake");
  assert.deepEqual(order, [1, 2, 3]);
});

test("onAny: should remove listener", async () => {
  const socket = open("/abc");
  const fail = () => assert.fail("it was removed");
  socket.onAny(fail);
  assert.deepEqual(socket.listenersAny(), [fail]);
  socket.offAny(fail);
  assert.deepEqual(socket.listenersAny(), []);
  socket.onAny(fail).onAny(fail).offAny();
  socket.offAny(() => {});
  assert.deepEqual(socket.listenersAny(), []);
  await next(socket, "handshake");
});

test("onAnyOutgoing: should call listener", async () => {
  const socket = open("/abc");
  const seen = [];
  socket.onAnyOutgoing((...args) => seen.push(args));
  socket.emit("before", "the connection");
  assert.deepEqual(seen, []);
  await next(socket, "connect");
  socket.emit("my-event", "123");
  assert.deepEqual(seen, [["before", "the connection"], ["my-event", "123"]]);
});

test("onAnyOutgoing: should call listener with binary data", async () => {
  const socket = await connected("/abc");
  const seen = new Promise((done) => socket.onAnyOutgoing((...args) => done(args)));
  socket.emit("my-event", Uint8Array.of(1, 2, 3));
  const [event, data] = await seen;
  assert.equal(event, "my-event");
  assert.ok(data instanceof Uint8Array);
});

test("onAnyOutgoing: should prepend listener", async () => {
  const socket = await connected("/abc");
  const order = [];
  socket.onAnyOutgoing(() => order.push(3));
  socket.prependAnyOutgoing(() => order.push(2));
  socket.prependAnyOutgoing(() => order.push(1));
  socket.emit("my-event");
  assert.deepEqual(order, [1, 2, 3]);
});

test("onAnyOutgoing: should remove listener", async () => {
  const socket = await connected("/abc");
  const fail = () => assert.fail("it was removed");
  socket.onAnyOutgoing(fail);
  socket.offAnyOutgoing(fail);
  assert.deepEqual(socket.listenersAnyOutgoing(), []);
  socket.onAnyOutgoing(fail).onAnyOutgoing(fail).offAnyOutgoing();
  socket.emit("my-event");
});

const outcome = (socket, ...args) =>
  new Promise((done) => socket.emit(...args, (...answer) => done(answer)));

const timedOut = ([error, ...rest]) => {
  assert.ok(error instanceof Error);
  assert.equal(error.message, "operation has timed out");
  assert.deepEqual(rest, []);
};

test("should timeout after the given delay when socket is not connected", async () => {
  const socket = open("/", { autoConnect: false });
  timedOut(await outcome(socket.timeout(50), "event"));
  assert.deepEqual(socket.sendBuffer, []);
});

test("should timeout when the server does not acknowledge the event", async () =>
  timedOut(await outcome(open("/").timeout(50), "unknown")));

test("should timeout when the server does not acknowledge the event in time", async () => {
  const socket = open("/");
  let count = 0;
  socket.timeout(0).emit("echo", 42, (error) => {
    count++;
    timedOut([error]);
  });
  await socket.emitWithAck("echo", 1);
  await sleep(50);
  assert.equal(count, 1);
});

test("should not timeout when the server does acknowledge the event", async () =>
  assert.deepEqual(await outcome((await connected("/")).timeout(30_000), "echo", 42), [null, 42]));

test("should timeout when the server does not acknowledge the event (promise)", async () =>
  assert.rejects(open("/").timeout(50).emitWithAck("unknown"), /operation has timed out/));

test("should not timeout when the server does acknowledge the event (promise)", async () =>
  assert.equal(await open("/").timeout(30_000).emitWithAck("echo", 42), 42));

test("should use the default timeout value", async () =>
  timedOut(await outcome(open("/", { ackTimeout: 50 }), "unknown")));

test("a timeout is that of one event", async () => {
  const socket = await connected("/", { ackTimeout: 30_000 });
  timedOut(await outcome(socket.timeout(20), "unknown"));
  assert.deepEqual(await outcome(socket, "echo", 1), [null, 1]);
});

test("should not ack upon disconnection (callback)", async () => {
  const socket = await connected();
  socket.emit("echo", "a", () => assert.fail("it was called"));
  socket.disconnect();
  assert.deepEqual(Object.keys(socket.acks), []);
  await sleep(50);
});

const cutOff = (error) => assert.equal(error.message, "socket has been disconnected");

test("should ack with an error upon disconnection (callback & timeout)", async () => {
  const socket = await connected();
  const answer = outcome(socket.timeout(10_000), "echo", "a");
  socket.disconnect();
  assert.deepEqual(Object.keys(socket.acks), []);
  cutOff((await answer)[0]);
});

test("should ack with an error upon disconnection (callback & ackTimeout)", async () => {
  const socket = await connected("", { ackTimeout: 10_000 });
  const answer = outcome(socket, "echo", "a");
  socket.disconnect();
  cutOff((await answer)[0]);
});

test("should ack with an error upon disconnection (promise)", async () => {
  const socket = await connected();
  const answer = socket.emitWithAck("echo", "a");
  socket.disconnect();
  await answer.then(assert.fail, cutOff);
});

test("should ack with an error upon disconnection (promise & timeout)", async () => {
  const socket = await connected();
  const answer = socket.timeout(10_000).emitWithAck("echo", "a");
  socket.disconnect();
  await answer.then(assert.fail, cutOff);
});

test("should not discard an unsent ack (callback)", async () => {
  const socket = await connected();
  socket.disconnect();
  const answer = outcome(socket, "echo", "a");
  setTimeout(() => socket.connect(), 50);
  assert.deepEqual(await answer, ["a"]);
});

test("throttled timer: should buffer the event and send it upon reconnection", async () => {
  const socket = await connected();
  let back = false;
  socket.io.once("reconnect", () => (back = true));
  socket.io.engine._pingTimeoutTime = Date.now() - 1;
  assert.equal(await socket.emitWithAck("echo", "123"), "123");
  assert.equal(back, true);
});

// --- what the official suite does not ask ---------------------------------------------------------

test("an event is answered once, and never on a later connection", async () => {
  const socket = await connected();
  let answer;
  socket.on("question", (_, answers) => (answer = answers));
  socket.emit("ask me", 1, () => {});
  await next(socket, "question");
  const sent = [];
  socket.io.engine.on("packetCreate", ({ data }) => sent.push(data));
  answer("one");
  answer("two");
  assert.equal(sent.length, 1);
  assert.match(sent[0], /^3\d+\["one"\]$/);

  socket.emit("ask me", 2, () => {});
  await next(socket, "question");
  const late = answer;
  socket.disconnect().connect();
  await next(socket, "connect");
  const later = [];
  socket.io.engine.on("packetCreate", ({ data }) => later.push(data));
  late("too late");
  assert.deepEqual(later, []);
});

test("acknowledgements that are late, unknown or doubled are ignored", async () => {
  const socket = await connected();
  socket.onpacket({ type: 3, nsp: "/", id: 99, data: ["nobody"] });
  const answers = [];
  const id = socket._ids;
  socket.emit("echo", 1, (...args) => answers.push(args));
  socket.onpacket({ type: 3, nsp: "/", id, data: ["first"] });
  socket.onpacket({ type: 3, nsp: "/", id });
  await socket.emitWithAck("echo", 2);
  assert.deepEqual(answers, [["first"]]);
});

test("events that come before the connection is confirmed wait for it", async () => {
  const socket = open("/early");
  const order = [];
  socket.on("early", (number) => order.push(`early ${number} ${socket.connected}`));
  socket.on("connect", () => order.push("connect"));
  await next(socket, "connect");
  assert.deepEqual(order, ["early 1 true", "connect"]);
});

test("what came before a confirmation that never came is dropped", async () => {
  const socket = await connected();
  socket.connected = false;
  socket.onpacket({ type: 2, nsp: "/", data: ["stale"] });
  assert.equal(socket.receiveBuffer.length, 1);
  socket.on("stale", () => assert.fail("it belongs to another connection"));
  const back = next(socket, "connect");
  socket._pid = undefined;
  socket.io.engine.close();
  await back;
});

test("listeners: once, off, all names of them, and removal while they are called", () => {
  const socket = open("", { autoConnect: false });
  const calls = [];
  const once = () => calls.push("once");
  const always = () => calls.push("always");
  const meddler = () => {
    socket.off("x", always);
    socket.on("x", () => calls.push("new"));
  };
  socket.once("x", once).on("x", meddler).addEventListener("x", always);
  socket.emitReserved("x");
  assert.deepEqual(calls, ["once", "always"]);
  calls.length = 0;
  socket.off("x", meddler).emitReserved("x");
  assert.deepEqual(calls, ["new"]);
  socket.removeEventListener("x").removeAllListeners("y");
  assert.equal(socket.hasListeners("x"), false);
  socket.once("y", once);
  assert.equal(socket.listeners("y").length, 1);
  socket.removeListener("y", once);
  socket.off("y", once).off("nothing");
  assert.deepEqual(socket.listeners("y"), []);
  socket.on(7, always).emitReserved("7");
  assert.deepEqual(calls, ["new", "always"]);
  socket.removeAllListeners();
  assert.equal(socket.hasListeners(7), false);
});

test("thousands of events before the connection arrive, in order", async () => {
  const socket = open("", { transports: ["polling"], autoConnect: false });
  const got = [];
  socket.on("mirrored", (number) => got.push(number));
  for (let number = 0; number < 3000; number++) socket.emit("mirror", number);
  socket.connect();
  await socket.emitWithAck("echo", "end");
  assert.deepEqual(got, Array.from({ length: 3000 }, (_, number) => number));
});

test("a socket behind a proxy works, as frameworks make them", async () => {
  const socket = new Proxy(open("", { autoConnect: false }), {});
  socket.connect();
  await next(socket, "connect");
  assert.equal(await socket.timeout(30_000).emitWithAck("echo", 5), 5);
  socket.disconnect();
});

test("the manager cache is by address and path", async () => {
  const { client } = await import("./support.mjs");
  const one = client.io(`${url}/cache-a`);
  const two = client.io(`${url}/cache-b`);
  const again = client.io(`${url}/cache-b`);
  assert.equal(one.io, two.io);
  assert.notEqual(again.io, two.io); // a second socket of a namespace has its own connection
  for (const socket of [one, two, again]) socket.disconnect();
});

test("io has the names that pages use", async () => {
  const { client } = await import("./support.mjs");
  const { io } = client;
  assert.equal(client.default, io);
  assert.equal(client.protocol, 5);
  assert.equal(io.protocol, 5);
  for (const name of ["connect", "io", "lookup"]) assert.equal(io[name], io);
  for (const name of ["Manager", "Socket"]) assert.equal(io[name], client[name]);
});

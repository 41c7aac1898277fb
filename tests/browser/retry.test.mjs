// Retries and connection state recovery. Titles are those of the official client's suite.
import assert from "node:assert/strict";
import { test } from "node:test";

import { connected, next, open, recovers, sleep, until } from "./support.mjs";

const sentBy = (socket) => {
  const sent = [];
  socket.io.engine.on("packetCreate", ({ data }) => sent.push(data));
  return sent;
};

test("should preserve the order of the packets", async () => {
  const socket = open("", { retries: 1, ackTimeout: 30_000 });
  const sent = sentBy(socket);
  const left = [];
  const answers = [1, 2, 3].map(
    (number) =>
      new Promise((done) =>
        socket.emit("echo", number, (...answer) => {
          left.push(socket._queue.length);
          done(answer);
        }),
      ),
  );
  assert.equal(socket._queue.length, 3);
  assert.deepEqual(await Promise.all(answers), [[null, 1], [null, 2], [null, 3]]);
  assert.deepEqual(left, [2, 1, 0]);
  assert.deepEqual(sent.filter(Boolean), ["0", '20["echo",1]', '21["echo",2]', '22["echo",3]']);
});

test("should fail when the server does not acknowledge the packet", async () => {
  const socket = open("", { retries: 3, ackTimeout: 50 });
  const sent = sentBy(socket);
  let count = 0;
  socket.on("ack", () => count++);
  const answer = await new Promise((done) => socket.emit("ack", (...args) => done(args)));
  assert.equal(answer[0].message, "operation has timed out");
  await until(() => count >= 4); // the last may still be on its way
  assert.equal(count, 4);
  assert.deepEqual(sent.filter(Boolean), ["0", '20["ack"]', '21["ack"]', '22["ack"]', '23["ack"]']);
});

test("should not drain the queue while the socket is disconnected", async () => {
  const socket = open("", { autoConnect: false, retries: 3, ackTimeout: 30_000 });
  const answer = new Promise((done) => socket.emit("echo", 1, (...args) => done(args)));
  await sleep(50);
  assert.equal(socket._queue[0].tries, 0);
  socket.connect();
  assert.deepEqual(await answer, [null, 1]);
});

test("should not emit a packet twice in the 'connect' handler", async () => {
  const socket = open("", { retries: 3 });
  const sent = sentBy(socket);
  const received = [];
  socket.io.engine.on("packet", ({ data }) => received.push(data));
  socket.on("connect", () => socket.emit("echo", null));
  await next(socket, "connect");
  while (socket._queue.length) await sleep(5);
  await sleep(20);
  assert.deepEqual(sent.filter(Boolean), ["0", '20["echo",null]']);
  assert.equal(received.filter((data) => data === "30[null]").length, 1);
});

test("a packet that was on its way when the connection ended is sent again", async () => {
  const socket = await connected("", { retries: 5 });
  socket.emit("unknown"); // nobody answers
  const answer = socket.emitWithAck("echo", "after");
  const back = next(socket, "connect");
  socket.io.engine.close();
  await back;
  assert.deepEqual([socket._queue.length, socket._queue[0].tries], [2, 2]);
  socket._queue[0].args.at(-1)(null); // as if it had been answered
  assert.equal(await answer, "after");
});

test("with retries, volatile packets are not kept, and timeouts are those of the event", async () => {
  const socket = open("", { retries: 1, autoConnect: false });
  socket.volatile.emit("echo", 1);
  assert.equal(socket._queue.length, 0);
  socket.connect();
  await next(socket, "connect");
  const answer = await new Promise((done) => socket.timeout(20).emit("unknown", done));
  assert.equal(answer.message, "operation has timed out");
  assert.equal(await socket.emitWithAck("echo", 2), 2);
});

const onlyWithRecovery = { skip: !recovers && "this server does not offer it" };

test("recovery: should have an accessible socket id equal to the server-side socket id (default namespace)", onlyWithRecovery, async () => {
  const socket = open();
  assert.equal(socket.recovered, false);
  socket.emit("hi");
  await next(socket, "hi"); // now there is an offset
  const { id } = socket;
  const back = next(socket, "connect");
  socket.io.engine.close();
  await back;
  assert.equal(socket.id, id);
  assert.equal(socket.recovered, true);
});

test("what was sent to a client meanwhile arrives, once and in order", onlyWithRecovery, async () => {
  const socket = open("", { transports: ["websocket"], reconnectionDelay: 100, randomizationFactor: 0 });
  const items = [];
  socket.on("item", (number) => items.push(number));
  socket.emit("hi");
  await next(socket, "hi");
  socket.emit("items", 50, "text");
  while (items.length < 10) await sleep(0);
  const back = next(socket, "connect");
  // Cut off with some of them still to come.
  const { ws } = socket.io.engine.transport;
  ws.onmessage = () => {};
  socket.io.engine.close();
  await back;
  assert.equal(socket.recovered, true);
  await socket.emitWithAck("echo", 1);
  assert.deepEqual(items, Array.from({ length: 50 }, (_, number) => number));
});

test("without recovery a socket is new each time", { skip: recovers }, async () => {
  const socket = await connected();
  const back = next(socket, "connect");
  socket.io.engine.close();
  await back;
  assert.equal(socket.recovered, false);
});

test("pid and offset are sent, and credentials too", async () => {
  const socket = await connected("", { auth: { token: "t", offset: "mine" } });
  Object.assign(socket, { _pid: "pid", _lastOffset: "o" });
  const sent = [];
  socket.packet = (packet) => sent.push(packet);
  socket.onopen();
  assert.deepEqual(sent, [{ type: 0, data: { pid: "pid", offset: "mine", token: "t" } }]);
  delete socket.packet;
});

test("the offset is the last text of an event, noted after its listeners ran", async () => {
  const socket = await connected();
  socket._pid = "pid";
  socket._lastOffset = "before";
  let during;
  socket.on("x", () => (during = socket._lastOffset));
  socket.onevent(["x", "after"]);
  assert.deepEqual([during, socket._lastOffset], ["before", "after"]);
  socket.onevent(["x", 7]);
  assert.equal(socket._lastOffset, "after");
});

// Connections: sharing, reconnecting, ending. Titles are those of the official client's suite.
import assert from "node:assert/strict";
import { test } from "node:test";

import { client, connected, manage, never, next, nobody, open, silent, sleep, until, url } from "./support.mjs";

const { Manager, io } = client;
const hang = { timeout: 0, reconnectionAttempts: 2 };

test("should connect to localhost", async () => {
  const socket = open();
  socket.emit("hi");
  await next(socket, "hi");
  assert.equal(socket.connected, true);
  assert.equal(socket.disconnected, false);
  assert.equal(socket.active, true);
});

test("should not connect when autoConnect option set to false", async () => {
  const socket = open("", { autoConnect: false });
  assert.equal(socket.io.engine, undefined);
  assert.equal(socket.active, false);
  socket.disconnect();
});

const pair = (one, other, ...options) => {
  const sockets = [io(url + one, { ...options[0] }), io(url + other, { ...options[1] })];
  for (const socket of sockets) socket.disconnect();
  return sockets[0].io === sockets[1].io;
};

test("should start two connections with same path", () => assert.equal(pair("/", "/"), false));

test("should start two connections with same path and different querystrings", () =>
  assert.equal(pair("/?woot", "/"), false));

test("should start two connections with different paths", () =>
  assert.equal(pair("/", "/", { path: "/foo" }, { path: "/bar" }), false));

test("should start a single connection with different namespaces", () =>
  assert.equal(pair("/one", "/other"), true));

test("a connection is not shared with those who ask for their own", () => {
  assert.equal(pair("/a1", "/a2", {}, { forceNew: true }), false);
  assert.equal(pair("/b1", "/b2", {}, { multiplex: false }), false);
});

test("should work with acks", async () => {
  const socket = open();
  socket.on("ack", (answer) => answer(5, { test: true }));
  socket.emit("ack");
  await next(socket, "got it");
});

test("should receive date with ack", async () => {
  const [date] = await new Promise((done) =>
    open().emit("getAckDate", { test: true }, (...args) => done(args)),
  );
  assert.equal(new Date(date).toJSON(), date);
});

test("should work with false", async () => {
  const socket = open();
  socket.emit("false");
  assert.equal((await next(socket, "false"))[0], false);
});

test("should receive utf8 multibyte characters", async () => {
  const socket = open();
  const texts = [];
  socket.on("takeUtf8", (text) => texts.push(text));
  socket.emit("getUtf8");
  await socket.emitWithAck("echo", 1);
  assert.deepEqual(texts, ["てすと", "Я Б Г Д Ж Й", "Ä ä Ü ü ß", "utf8 — string", "utf8 — string"]);
});

test("should connect to a namespace after connection established", async () => {
  const manager = manage();
  const socket = manager.socket("/");
  await next(socket, "connect");
  const foo = manager.socket("/foo");
  await next(foo, "connect");
  assert.notEqual(foo.id, socket.id);
});

test("should open a new namespace after connection gets closed", async () => {
  const manager = manage();
  const socket = manager.socket("/");
  await next(socket, "connect");
  const gone = next(socket, "disconnect");
  socket.disconnect();
  assert.equal((await gone)[0], "io client disconnect");
  await next(manager.socket("/foo"), "connect");
});

test("should reconnect by default", async () => {
  const socket = await connected();
  const reasons = [];
  socket.on("disconnect", (reason) => reasons.push(reason));
  const back = next(socket.io, "reconnect");
  socket.io.engine.close();
  assert.deepEqual(await back, [1]);
  assert.deepEqual(reasons, ["forced close"]);
});

test("should reconnect manually", async () => {
  const socket = await connected();
  socket.once("disconnect", () => socket.connect());
  socket.disconnect();
  await next(socket, "connect");
});

test("should reconnect automatically after reconnecting manually", async () => {
  const socket = await connected();
  socket.disconnect().connect();
  await next(socket, "connect");
  const back = next(socket.io, "reconnect");
  socket.io.engine.close();
  await back;
});

test("should attempt reconnects after a failed reconnect", async () => {
  const manager = manage(silent, hang);
  const socket = manager.socket("/timeout_socket");
  await next(manager, "reconnect_failed");
  const attempts = [];
  manager.on("reconnect_attempt", (number) => attempts.push(number));
  socket.connect();
  await next(manager, "reconnect_failed");
  assert.deepEqual(attempts, [1, 2]);
});

test("reconnect delay should increase every time", async () => {
  const options = { timeout: 0, reconnectionAttempts: 3, reconnectionDelay: 100, randomizationFactor: 0.2 };
  const manager = manage(silent, options);
  manager.socket("/timeout_socket");
  const delays = [];
  const { setTimeoutFn } = manager;
  manager.setTimeoutFn = (call, delay) => {
    if (delay) delays.push(delay); // the others are the timeout
    return setTimeoutFn(call, delay);
  };
  await next(manager, "reconnect_failed");
  assert.equal(delays.length, 3);
  delays.forEach((delay, index) => {
    const middle = 100 * 2 ** index;
    assert.ok(delay >= middle * 0.8 && delay <= middle * 1.2, `${delays}`);
    assert.ok(index === 0 || delay > delays[index - 1], `${delays}`);
  });
});

test("should not reconnect when force closed", async () => {
  const socket = open("/invalid", { timeout: 0 }, silent);
  await next(socket.io, "error");
  socket.disconnect();
  await never(socket.io, "reconnect_attempt");
});

test("should stop reconnecting when force closed", async () => {
  const socket = open("/invalid", { timeout: 0 }, silent);
  await next(socket.io, "reconnect_attempt");
  socket.disconnect();
  await never(socket.io, "reconnect_attempt");
});

test("should reconnect after stopping reconnection", async () => {
  const socket = open("/invalid", { timeout: 0 }, silent);
  await new Promise((done) => {
    socket.io.once("reconnect_attempt", () => {
      socket.io.once("reconnect_attempt", done);
      socket.disconnect();
      socket.connect();
    });
  });
});

test("should stop reconnecting on a socket and keep to reconnect on another", async () => {
  const manager = manage();
  const [stops, stays] = [manager.socket("/"), manager.socket("/asd")];
  await Promise.all([next(stops, "connect"), next(stays, "connect")]);
  const quiet = new Promise((_, reject) => stops.on("connect", () => reject(new Error("came back"))));
  manager.once("reconnect_attempt", () => stops.disconnect());
  const back = next(stays, "connect");
  manager.engine.close();
  await Promise.race([quiet, back.then(() => sleep(50))]);
});

test("should try to reconnect twice and fail when requested two attempts with immediate timeout and reconnect enabled", async () => {
  const manager = manage(silent, hang);
  manager.socket("/timeout_socket");
  let attempts = 0;
  manager.on("reconnect_attempt", () => attempts++);
  await next(manager, "reconnect_failed");
  assert.equal(attempts, 2);
});

test("should fire reconnect_* events on manager", async () => {
  const manager = manage(silent, hang);
  manager.socket("/timeout_socket");
  const events = [];
  for (const event of ["error", "reconnect_attempt", "reconnect_error", "reconnect_failed", "reconnect"]) {
    manager.on(event, (value) => events.push(`${event} ${value?.message ?? value}`));
  }
  await next(manager, "reconnect_failed");
  await sleep(0);
  assert.deepEqual(events, [
    "error timeout",
    "reconnect_attempt 1",
    "error timeout",
    "reconnect_error timeout",
    "reconnect_attempt 2",
    "error timeout",
    "reconnect_failed undefined",
    "reconnect_error timeout",
  ]);
});

test("should fire reconnecting (on manager) with attempts number when reconnecting twice", async () => {
  const manager = manage(silent, hang);
  manager.socket("/timeout_socket");
  const numbers = [];
  manager.on("reconnect_attempt", (number) => numbers.push(number));
  await next(manager, "reconnect_failed");
  assert.deepEqual(numbers, [1, 2]);
});

test("should not try to reconnect and should form a connection when connecting to correct port with default timeout", async () => {
  const manager = manage();
  const calm = never(manager, "reconnect_attempt", 200);
  await next(manager.socket("/valid"), "connect");
  await calm;
});

test("should connect while disconnecting another socket", async () => {
  const manager = manage();
  const first = manager.socket("/foo");
  await next(first, "connect");
  const second = manager.socket("/asd");
  first.disconnect();
  await next(second, "connect");
});

test("should emit a connect_error event when reaching a Socket.IO server in v2.x", async () => {
  const socket = open("", { autoConnect: false });
  const errors = [];
  socket.on("connect_error", (error) => errors.push(error.message));
  socket.onpacket({ nsp: "/", type: 0 });
  assert.match(errors[0], /v2\.x/);
});

test("should not close the connection when disconnecting a single socket", async () => {
  const manager = manage(url, { autoConnect: false });
  const [first, second] = [manager.socket("/foo"), manager.socket("/asd")];
  first.connect();
  await next(first, "connect");
  second.connect();
  await next(second, "connect");
  const calm = never(second, "disconnect", 200);
  first.disconnect();
  await calm;
  const closed = next(manager, "close");
  second.disconnect();
  assert.equal((await closed)[0], "forced close");
});

test("should stop trying to reconnect", async () => {
  const manager = manage(nobody);
  await next(manager, "reconnect_error");
  manager.reconnection(false);
  await never(manager, "reconnect_attempt");
});

test("a manager that was told to stop connects when a socket asks it to", async () => {
  const manager = manage(nobody);
  const socket = manager.socket("/");
  await next(manager, "reconnect_error");
  manager.reconnection(false);
  await sleep(50);
  manager.reconnection(true);
  manager.uri = url;
  socket.connect();
  await next(socket, "connect");
});

test("should try to reconnect twice and fail when requested two attempts with incorrect address and reconnect enabled", async () => {
  const manager = manage(nobody, { reconnectionAttempts: 2 });
  manager.socket("/asd");
  let attempts = 0;
  manager.on("reconnect_attempt", () => attempts++);
  await next(manager, "reconnect_failed");
  assert.equal(attempts, 2);
});

test("should not try to reconnect with incorrect port when reconnection disabled", async () => {
  const manager = manage(nobody, { reconnection: false });
  manager.socket("/invalid");
  await next(manager, "error");
  await never(manager, "reconnect_attempt");
});

test("should still try to reconnect twice after opening another socket asynchronously", async () => {
  const manager = manage(nobody, { reconnectionAttempts: 2 });
  manager.socket("/room1");
  let attempts = 0;
  manager.on("reconnect_attempt", () => attempts++);
  const failed = next(manager, "reconnect_failed");
  setTimeout(() => manager.socket("/room2"), 10);
  await failed;
  assert.equal(attempts, 2);
});

/** Counts the timers of a manager that are started by what stands at globalThis by then. */
const countTimers = async (options) => {
  const native = globalThis.setTimeout;
  let count = 0;
  globalThis.setTimeout = (call, delay, ...rest) => {
    if (delay === 77) count++;
    return native(call, delay, ...rest); // Node's fetch of earlier tests uses it too, with arguments
  };
  try {
    const manager = new Manager(nobody, { reconnectionDelay: 77, randomizationFactor: 0, ...options });
    await new Promise((done) => manager.once("reconnect_attempt", done));
    manager._close();
  } finally {
    globalThis.setTimeout = native;
  }
  return count;
};

test("should use overridden setTimeout by default", async () => assert.equal(await countTimers({}), 1));

test("should use native setTimeout with useNativeSetTimers", async () =>
  assert.equal(await countTimers({ useNativeTimers: true }), 0));

test("should emit date as string", async () => {
  const socket = open();
  socket.emit("getDate");
  const [date] = await next(socket, "takeDate");
  assert.equal(new Date(date).toJSON(), date);
});

test("should emit date in object", async () => {
  const socket = open();
  socket.emit("getDateObj");
  const [{ date }] = await next(socket, "takeDateObj");
  assert.equal(new Date(date).toJSON(), date);
});

for (const transports of [["polling"], ["websocket"]]) {
  const options = { transports };
  const name = (title) => (transports[0] === "polling" ? title : `${title} [websocket]`);
  const text = (data) => Buffer.from(data).toString();
  const bytes = Uint8Array.from(Array.from({ length: 70000 }, (_, index) => index % 251));

  test(name("should get binary data (as an ArrayBuffer)"), async () => {
    const socket = open("", options);
    socket.emit("doge");
    const [data] = await next(socket, "doge");
    assert.ok(data instanceof ArrayBuffer);
    assert.equal(text(data), "asdfasdf");
  });

  test(name("binary data arrives as a Blob where that is asked for"), async () => {
    const socket = open("", options);
    socket.io.engine.binaryType = "blob";
    await next(socket, "connect");
    socket.emit("doge");
    const [data] = await next(socket, "doge");
    assert.ok(data instanceof Blob);
    assert.equal(await data.text(), "asdfasdf");
  });

  test(name("should send binary data (as an ArrayBuffer)"), async () => {
    const socket = open("", options);
    socket.emit("buffa", bytes.buffer);
    await next(socket, "buffack");
  });

  test(name("should send binary data (as an ArrayBuffer) mixed with json"), async () => {
    const socket = open("", options);
    socket.emit("jsonbuff", { hello: "lol", message: bytes.buffer, goodbye: "gotcha" });
    await next(socket, "jsonbuff-ack");
  });

  test(name("should send events with ArrayBuffers in the correct order"), async () => {
    const socket = open("", options);
    socket.emit("abuff1", bytes.buffer);
    socket.emit("abuff2", "please arrive second");
    await next(socket, "abuff2-ack");
  });

  test(name("should send binary data (as a Blob)"), async () => {
    const socket = open("", options);
    socket.emit("blob", new Blob(["hello world"]));
    await next(socket, "back");
  });

  test(name("should send binary data (as a Blob) mixed with json"), async () => {
    const socket = open("", options);
    socket.emit("jsonblob", { hello: "lol", message: new Blob(["EEEEEEEEE"]), goodbye: "gotcha" });
    await next(socket, "jsonblob-ack");
  });

  test(name("should send events with Blobs in the correct order"), async () => {
    const socket = open("", options);
    socket.emit("blob1", new Blob(["BLOBBLOB"]));
    socket.emit("blob2", "second");
    socket.emit("blob3", new Blob(["BLOBBLOB"]));
    await next(socket, "blob3-ack");
  });

  test(name("bytes of every kind come back as they were"), async () => {
    const socket = await connected("", options);
    const view = new Uint8Array([0, 1, 2, 3, 255]).subarray(1, 4);
    const values = [bytes, view, new DataView(view.buffer, 1, 3), new Blob([view]), new ArrayBuffer(0)];
    const wanted = [bytes, view, view, view, new Uint8Array()];
    for (const [index, value] of values.entries()) {
      const back = await socket.emitWithAck("echo", { deep: [value, "text"] });
      assert.deepEqual(new Uint8Array(back.deep[0]), new Uint8Array(wanted[index]));
      assert.equal(back.deep[1], "text");
    }
  });

  test(name("an acknowledgement may hold bytes"), async () => {
    const socket = await connected("", options);
    socket.on("question", (question, answer) => answer(new Uint8Array([...new Uint8Array(question), 9])));
    const back = await socket.emitWithAck("ask me", new Uint8Array([7, 8]).buffer);
    assert.deepEqual([...new Uint8Array(back)], [7, 8, 9]);
  });
}

test("base64 is sent where binary is not wanted", async () => {
  for (const transports of [["polling"], ["websocket"]]) {
    const socket = await connected("", { transports, forceBase64: true });
    const { query } = await socket.emitWithAck("getHandshake");
    assert.equal(query.b64, "1");
    const back = await socket.emitWithAck("echo", [new Uint8Array([1, 2]), new Blob(["x"]), "after"]);
    assert.deepEqual([...new Uint8Array(back[0])], [1, 2]);
    assert.equal(Buffer.from(back[1]).toString(), "x");
    assert.equal(back[2], "after");
  }
});

test("should reopen a cached socket", async () => {
  const manager = manage();
  const socket = manager.socket("/");
  await next(socket, "connect");
  const again = new Promise((done) => socket.once("disconnect", () => done(manager.socket("/"))));
  socket.disconnect();
  assert.equal(await again, socket);
  assert.equal(socket.active, true);
  await next(socket, "connect");
});

const sentBy = (engine) => {
  const sent = [];
  engine.on("packetCreate", ({ type, data }) => type === "message" && sent.push(data)); // no pongs
  return sent;
};

test("should not reopen a cached but active socket", async () => {
  const manager = manage();
  const sent = sentBy(manager.engine);
  await next(manager, "open");
  const socket = manager.socket("/");
  assert.equal(manager.socket("/"), socket);
  await next(socket, "connect");
  socket.disconnect();
  assert.deepEqual(sent, ["0", "1"]);
});

test("should not reopen an already active socket", async () => {
  const manager = manage();
  const sent = sentBy(manager.engine);
  await next(manager, "open");
  const [socket, foo] = [manager.socket("/"), manager.socket("/foo")];
  await Promise.all([next(socket, "connect"), next(foo, "connect")]);
  socket.connect();
  foo.connect();
  socket.disconnect();
  foo.disconnect();
  assert.deepEqual(sent, ["0", "0/foo,", "1", "1/foo,"]);
});

test("should close the engine upon decoding exception", async () => {
  const manager = manage();
  const { engine } = manager;
  const socket = manager.socket("/");
  await next(socket, "connect");
  const gone = next(socket, "disconnect");
  const back = next(manager, "reconnect");
  engine.emit("data", "bad");
  const [reason, error] = await gone;
  assert.equal(reason, "parse error");
  assert.match(error.message, /unknown packet type/);
  await back;
  assert.notEqual(manager.engine, engine);
  await until(() => engine.readyState === "closed"); // requests of it may have to end before
});

test("an error in a listener is reported and disconnects nobody", async () => {
  const socket = await connected();
  const original = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException");
  const reported = new Promise((done) => process.once("uncaughtException", done));
  try {
    socket.once("hi", () => {
      throw new Error("planned");
    });
    socket.emit("hi");
    assert.equal((await reported).message, "planned");
  } finally {
    for (const listener of original) process.on("uncaughtException", listener);
  }
  assert.equal(await socket.emitWithAck("echo", "still there"), "still there");
});

test("a disconnected client knows why", async () => {
  const kicked = await connected();
  kicked.emit("kick me", false);
  assert.equal((await next(kicked, "disconnect"))[0], "io server disconnect");
  assert.equal(kicked.active, false);

  const cut = await connected("", { transports: ["websocket"], reconnection: false });
  cut.emit("end it");
  const [reason, details] = await next(cut, "disconnect");
  assert.equal(reason, "transport close");
  assert.equal(details.description, "websocket connection closed");
  assert.equal(details.context.type, "close");

  const silent = await connected("", { reconnection: false });
  silent.io.engine._pingTimeoutTime = Date.now() - 1;
  silent.emit("hi");
  assert.equal((await next(silent, "disconnect"))[0], "ping timeout");
});

test("a ping that does not come ends the connection", async () => {
  const socket = open("", { reconnection: false });
  socket.io.engine.on("handshake", (data) => Object.assign(data, { pingInterval: 30, pingTimeout: 20 }));
  assert.equal((await next(socket, "disconnect"))[0], "ping timeout");
});

test("pings are answered, and told", async () => {
  const socket = await connected();
  await next(socket.io, "ping"); // the server's interval is two seconds
  assert.equal(await socket.emitWithAck("echo", 1), 1);
});

test("a manager tells its options, and takes new ones", () => {
  const manager = new Manager(nobody, { autoConnect: false });
  const names = ["reconnection", "reconnectionAttempts", "reconnectionDelay", "reconnectionDelayMax"];
  const values = () => [...names, "randomizationFactor", "timeout"].map((name) => manager[name]());
  assert.deepEqual(values(), [true, Infinity, 1000, 5000, 0.5, 20000]);
  manager.reconnectionAttempts(3).reconnectionDelay(1).reconnectionDelayMax(2).randomizationFactor(0);
  manager.timeout(false).reconnection(false);
  assert.deepEqual(values(), [false, 3, 1, 2, 0, false]);
});

test("delays follow the formula", () => {
  const manager = new Manager(nobody, { autoConnect: false });
  const { random } = Math;
  const delays = (value) => {
    Math.random = () => value;
    manager.backoff.reset();
    return Array.from({ length: 5 }, () => manager.backoff.duration());
  };
  try {
    assert.deepEqual(delays(0), [1000, 2000, 4000, 5000, 5000]);
    assert.deepEqual(delays(0.25), [875, 1750, 3500, 5000, 5000]); // digit 2, even: less
    assert.deepEqual(delays(0.55), [1275, 2550, 5000, 5000, 5000]); // digit 5, odd: more
    manager.randomizationFactor(0);
    assert.deepEqual(delays(0.55), [1000, 2000, 4000, 5000, 5000]);
  } finally {
    Math.random = random;
  }
});

test("a connection that was opened by hand while one waits to be tried again is the only one", async () => {
  const manager = manage(url, { reconnectionDelay: 50, randomizationFactor: 0 });
  const socket = manager.socket("/");
  await next(socket, "connect");
  const gone = next(socket, "disconnect");
  const again = next(socket, "connect");
  manager.engine.close();
  await gone;
  manager.open();
  await again;
  const { engine } = manager;
  await sleep(120);
  assert.equal(manager.engine, engine);
  const back = next(socket, "connect");
  engine.close();
  await back; // and it still reconnects
});

test("connecting by hand whenever the connection is lost does no harm", async () => {
  const socket = await connected();
  socket.on("disconnect", () => socket.connect());
  const calm = never(socket.io, "reconnect_attempt", 300);
  for (let time = 0; time < 5; time++) {
    const back = next(socket, "connect");
    socket.io.engine.close();
    await back;
  }
  await calm;
  socket.off("disconnect");
  const back = next(socket.io, "reconnect");
  socket.io.engine.close();
  await back;
});

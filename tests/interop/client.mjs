// Scenarios of the stock JavaScript client; prints one line of JSON, or fails with the reason.
import assert from "node:assert/strict";
import { io } from "socket.io-client";

const { scenario, url, options = {} } = JSON.parse(process.argv[2]);

const open = (extra = {}, path = "") =>
  new Promise((resolve, reject) => {
    const socket = io(url + path, { forceNew: true, reconnection: false, ...options, ...extra });
    socket.once("connect", () => resolve(socket));
    socket.once("connect_error", reject);
  });
const next = (socket, event, ms = 10000) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no ${event} within ${ms} ms`)), ms);
    socket.once(event, (...args) => {
      clearTimeout(timer);
      resolve(args);
    });
  });
const ask = (socket, ...args) => socket.timeout(10000).emitWithAck(...args);

// Two sockets that two different workers own.
const apart = async () => {
  const first = await open();
  const { pid } = await ask(first, "whoami");
  const others = []; // who stays makes the other worker the next one's choice
  for (let attempt = 0; attempt < 50; attempt++) {
    const other = await open();
    if ((await ask(other, "whoami")).pid !== pid) {
      for (const one of others) one.close();
      return [first, other];
    }
    others.push(other);
  }
  throw new Error("every connection went to one worker");
};

const scenarios = {
  async transport() {
    const socket = await open();
    const { transport, id } = await ask(socket, "whoami");
    assert.equal(id, socket.id);
    return { transport, named: socket.io.engine.transport.name };
  },

  async upgrade() {
    const socket = await open();
    const engine = socket.io.engine;
    if (engine.transport.name !== "websocket") await new Promise((done) => engine.once("upgrade", done));
    for (let n = 0; n < 50; n++) assert.deepEqual(await ask(socket, "echo", n), n);
    return { transport: (await ask(socket, "whoami")).transport };
  },

  // Events that fly while the transport changes: none lost, doubled or out of order.
  async upgrade_in_flight() {
    const socket = await open();
    const { engine } = socket.io;
    const got = [];
    socket.on("replied", (n) => got.push(n));
    let sent = 0;
    while (sent < 500 || engine.transport.name !== "websocket") {
      assert.ok(sent < 20_000, "no upgrade");
      socket.emit("reply", sent++);
      // Slower after a while: an upgrade that takes long must not find thousands that wait.
      if (sent % 10 === 0 || sent > 500) await new Promise((done) => setTimeout(done, 1));
    }
    await ask(socket, "echo", "end");
    assert.deepEqual(got, Array.from({ length: sent }, (_, n) => n));
    return { transport: engine.transport.name };
  },

  async events() {
    const socket = await open();
    const value = { text: "Ünïcode ✓ 🐚", list: [1, 2.5, null, true], nested: { deep: ["x"] } };
    socket.emit("reply", value, "two", 3);
    assert.deepEqual(await next(socket, "replied"), [value, "two", 3]);
    assert.deepEqual(await ask(socket, "echo", value), value);
    socket.on("question", (question, answer) => answer(question * 2));
    assert.equal(await ask(socket, "ask me", 21), 42);
    await assert.rejects(socket.timeout(200).emitWithAck("never"));
    return {};
  },

  async binary() {
    const socket = await open();
    const bytes = Buffer.from(Array.from({ length: 100000 }, (_, n) => n % 251));
    const value = { first: bytes, list: [Buffer.from([1, 2, 3]), "text"] };
    const back = await ask(socket, "echo", value);
    assert.ok(bytes.equals(Buffer.from(back.first)));
    assert.deepEqual([...Buffer.from(back.list[0])], [1, 2, 3]);
    socket.emit("reply", Buffer.from([9, 8]));
    assert.deepEqual([...Buffer.from((await next(socket, "replied"))[0])], [9, 8]);
    socket.on("question", (question, answer) => answer(Buffer.concat([question, question])));
    assert.deepEqual([...Buffer.from(await ask(socket, "ask me", Buffer.from([7])))], [7, 7]);
    return {};
  },

  async rooms() {
    const [a, b] = await apart();
    const pidA = await ask(a, "join", "cove");
    const pidB = await ask(b, "join", "cove");
    assert.notEqual(pidA, pidB);
    for (let n = 0; n < 100; n++) {
      const both = Promise.all([next(a, "said"), next(b, "said")]);
      await ask(n % 2 ? a : b, "say", "cove", n, Buffer.from([n]));
      for (const args of await both) assert.deepEqual([args[0], [...Buffer.from(args[1])]], [n, [n]]);
    }
    const heard = [];
    a.on("said", (what) => heard.push(what));
    a.emit("say others", "cove", "not to me");
    assert.deepEqual(await next(b, "said"), ["not to me"]);
    await ask(b, "leave", "cove");
    b.emit("say others", "cove", "from outside");
    assert.deepEqual(await next(a, "said"), ["from outside"]);
    assert.deepEqual(heard, ["from outside"]);
    a.emit("say all", "everybody");
    assert.deepEqual(await next(b, "said"), ["everybody"]);
    return { pids: [pidA, pidB] };
  },

  // The private room of a socket on the other worker.
  async direct() {
    const [a, b] = await apart();
    const arrived = next(b, "said");
    await ask(a, "say", b.id, "just you");
    assert.deepEqual(await arrived, ["just you"]);
    return {};
  },

  async namespaces() {
    await assert.rejects(open({}, "/admin"), (error) => error.message === "wrong token" && error.data.hint === "ask the admin");
    await assert.rejects(open({}, "/nowhere"), /Invalid namespace/);
    const socket = await open({ auth: { token: "secret" } }, "/admin");
    assert.equal(await ask(socket, "echo", "in"), "in");
    return {};
  },

  async disconnect() {
    const one = await open();
    one.emit("kick me", false);
    assert.equal((await next(one, "disconnect"))[0], "io server disconnect");
    const two = await open();
    two.emit("kick me", true);
    assert.equal((await next(two, "disconnect"))[0], "io server disconnect");
    return {};
  },

  // Told to stay: prints its worker, waits for its death and says when it is back.
  async reconnect() {
    const socket = await open({ reconnection: true, reconnectionDelay: 200, reconnectionDelayMax: 1000 });
    const before = await ask(socket, "whoami");
    const errors = [];
    socket.on("connect_error", (error) => errors.push(String(error)));
    const lost = next(socket, "disconnect", 20000);
    console.log(JSON.stringify({ ready: before.pid }));
    const [reason] = await lost;
    if (!socket.connected) await next(socket, "connect", 20000);
    const after = await ask(socket, "whoami");
    assert.notEqual(after.pid, before.pid);
    assert.notEqual(after.id, before.id);
    return { reason, errors };
  },
};

try {
  console.log(JSON.stringify({ done: await scenarios[scenario]() }));
  process.exit(0);
} catch (error) {
  console.error(error?.stack ?? error);
  process.exit(1);
}

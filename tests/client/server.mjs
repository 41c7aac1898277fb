// The official server with the events of tests/servers/python_client_app.py and of the app below it.
// node server.mjs '{"port": 0, "options": {}}'; it prints "ready on http://127.0.0.1:PORT".

import { createServer } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { Server } from "socket.io";

const { port = 0, options = {} } = JSON.parse(process.argv[2] ?? "{}");
const http = createServer((_request, response) => response.writeHead(404).end());
const io = new Server(http, {
  pingInterval: 2000,
  connectionStateRecovery: {},
  allowRequest: (_request, answer) => setTimeout(() => answer(null, true), 10),
  ...options,
});

// A client may be back before its earlier connection has ended here, and only then there is
// something to recover: that end is waited for.
const main = io.of("/");
const restore = main.adapter.restoreSession;
main.adapter.restoreSession = async function (pid, offset) {
  while ([...main.sockets.values()].some((socket) => socket.pid === pid)) await sleep(5);
  return restore.call(this, pid, offset);
};

const TEXTS = ["てすと", "Я Б Г Д Ж Й", "Ä ä Ü ü ß", "utf8 — string", "utf8 — string"];
const DATA = Buffer.from("asdfasdf");
const isMixed = ({ hello, message, goodbye }) =>
  hello === "lol" && Buffer.isBuffer(message) && goodbye === "gotcha";

io.use((socket, next) =>
  next(socket.handshake.query.fail ? new Error("Auth failed (main namespace)") : undefined),
);
io.of("/no").use((_socket, next) => {
  const error = new Error("Auth failed (custom namespace)");
  error.data = { hint: "never" };
  next(error);
});
for (const name of ["/timeout_socket", "/valid", "/asd", "/bar"]) io.of(name);
io.of("/foo").on("connection", (socket) => socket.on("getId", (ack) => ack(socket.id)));
io.of("/abc").on("connection", (socket) => socket.emit("handshake", socket.handshake));
io.of("/early").use((socket, next) => {
  socket.packet({ type: 2, data: ["early", 1] }); // emit would go to a room it is not in yet
  next();
});

io.on("connection", (socket) => {
  let first = false;
  const blobs = [];
  const handlers = {
    hi: () => socket.emit("hi"),
    echo: (value, ack) => ack(value),
    ack: () =>
      socket.emit("ack", (number, { test }) => number === 5 && test && socket.emit("got it")),
    getAckDate: (_data, ack) => ack(new Date()),
    getDate: () => socket.emit("takeDate", new Date()),
    getDateObj: () => socket.emit("takeDateObj", { date: new Date() }),
    getUtf8: () => TEXTS.forEach((text) => socket.emit("takeUtf8", text)),
    false: () => socket.emit("false", false),
    doge: () => socket.emit("doge", DATA),
    getbin: () => socket.emit("takebin", DATA),
    buffa: (data) => Buffer.isBuffer(data) && socket.emit("buffack"),
    jsonbuff: (data) => isMixed(data) && socket.emit("jsonbuff-ack"),
    abuff1: (data) => (first = Buffer.isBuffer(data)),
    abuff2: () => first && socket.emit("abuff2-ack"),
    blob: (data) => Buffer.isBuffer(data) && socket.emit("back"),
    jsonblob: (data) => isMixed(data) && socket.emit("jsonblob-ack"),
    blob1: (data) => blobs.push(data),
    blob2: (text) => blobs.push(text),
    blob3: (data) =>
      blobs[1] === "second" && [blobs[0], data].every(Buffer.isBuffer) && socket.emit("blob3-ack"),
    getHandshake: (ack) => ack(socket.handshake),
    getId: (ack) => ack(socket.id),
    // those of tests/servers/python_client_app.py
    mirror: (...values) => socket.emit("mirrored", ...values),
    values: (...values) => values.pop()(...values),
    whoami: (ack) => ack({ id: socket.id, transport: socket.conn.transport.name }),
    "ask me": (question, ack) =>
      socket.emit("question", question, (...answers) => ack(...answers)),
    items: (count, text) => {
      for (let number = 0; number < count; number++) socket.emit("item", number, text);
    },
    "kick me": (close) => socket.disconnect(close),
    "end it": () => socket.conn.close(),
  };
  for (const [event, handler] of Object.entries(handlers)) socket.on(event, handler);
});

http.listen(port, "127.0.0.1", () =>
  console.log(`ready on http://127.0.0.1:${http.address().port}`),
);

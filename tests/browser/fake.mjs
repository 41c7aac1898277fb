// A server of a few lines that does what it is told: for what no real one would do.
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

const OPEN = { sid: "s1", upgrades: ["websocket"], pingInterval: 25000, pingTimeout: 20000, maxPayload: 1000000 };

/**
 * Answers a handshake with `open`, confirms every CONNECT, and holds polls until `send`.
 *
 * `on(request)` sees each request first: `{ method, url, query, headers, body, answer(status, text) }`;
 * when it returns true, it has answered, or never will.
 */
export class FakeServer {
  requests = [];
  queue = [];
  poll = null;
  sockets = []; // WebSockets
  upgraded = undefined; // the one that took over from polling
  onSocket = (socket) => socket.on("message", (data) => this.message(String(data), socket));

  constructor(open = {}, on = () => false) {
    this.open = { ...OPEN, ...open };
    this.on = on;
    this.http = createServer((request, response) => this.handle(request, response));
    this.ws = new WebSocketServer({ server: this.http });
    this.ws.on("connection", (socket, request) => {
      socket.query = Object.fromEntries(new URL(request.url, "http://x").searchParams);
      socket.headers = request.headers;
      socket.path = request.url;
      this.sockets.push(socket);
      this.onSocket(socket);
      if (!socket.query.sid) socket.send("0" + JSON.stringify(this.open));
    });
  }

  static async start(...args) {
    const server = new FakeServer(...args);
    await new Promise((done) => server.http.listen(0, "127.0.0.1", done));
    server.url = `http://127.0.0.1:${server.http.address().port}`;
    return server;
  }

  stop() {
    for (const socket of this.ws.clients) socket.terminate();
    this.http.close();
    this.http.closeAllConnections();
  }

  async handle(request, response) {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const { method, url, headers } = request;
    const query = Object.fromEntries(new URL(url, "http://x").searchParams);
    const answer = (status, text) => response.writeHead(status).end(text);
    const seen = { method, url, headers, query, body: Buffer.concat(chunks).toString(), answer };
    response.on("close", () => (seen.aborted = !response.writableFinished));
    this.requests.push(seen);
    if (this.on(seen)) return;
    if (!query.sid) {
      answer(200, "0" + JSON.stringify(this.open));
    } else if (method === "GET") {
      this.poll = answer;
      this.flush();
    } else {
      answer(200, "ok");
      for (const packet of seen.body.split("\x1e")) this.message(packet);
    }
  }

  message(packet, socket) {
    if (packet.startsWith("40")) this.send(`40${packet.slice(2).replace(/{.*/, "")}{"sid":"x"}`, socket);
    else if (packet === "2probe") socket.send("3probe");
    else if (packet === "5") {
      this.upgraded = socket;
      for (const waiting of this.queue.splice(0)) socket.send(waiting);
    }
  }

  /** Sends a packet: to a WebSocket, or with the next poll. */
  send(packet, socket = this.upgraded) {
    if (socket) {
      socket.send(packet);
    } else {
      this.queue.push(packet);
      this.flush();
    }
  }

  flush() {
    if (!this.poll || !this.queue.length) return;
    this.poll(200, this.queue.splice(0).join("\x1e"));
    this.poll = null;
  }

  posts() {
    return this.requests.filter(({ method }) => method === "POST").map(({ body }) => body);
  }
}

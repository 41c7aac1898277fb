/*
 * The Socket.IO client of limpet, for browsers: the API of socket.io-client 4, protocol revision 5.
 *
 * This file is an ES module as it stands. The server makes the classic script (global `io`) of it
 * by dropping its last statement, the exports, and putting a function around the rest.
 *
 * From the bottom up: Emitter, Engine.IO packets, addresses, transports, Engine (one connection),
 * Socket.IO packets, Socket (one namespace), Manager (connects an Engine, again and again), io().
 *
 * Members that begin with "_" are ours to change. They are not #private, because frameworks wrap
 * sockets into proxies, which private members do not survive.
 */

const PROTOCOL = 5;
const ENGINE_PROTOCOL = 4;

// --- events --------------------------------------------------------------------------------------

class Emitter {
  _events = new Map(); // name → listeners; a list is replaced, never changed: emit walks over it

  on(event, listener) {
    this._events.set(String(event), [...this.listeners(event), listener]);
    return this;
  }

  once(event, listener) {
    const wrapper = (...args) => {
      this.off(event, wrapper);
      listener.apply(this, args);
    };
    wrapper.fn = listener;
    return this.on(event, wrapper);
  }

  /** Removes one listener, or all of an event, or all. */
  off(event, listener) {
    if (arguments.length === 0) {
      this._events.clear();
    } else if (arguments.length === 1) {
      this._events.delete(String(event));
    } else {
      const listeners = this.listeners(event);
      const at = listeners.findIndex((one) => one === listener || one.fn === listener);
      this._events.set(
        String(event),
        listeners.filter((_, index) => index !== at),
      );
    }
    return this;
  }

  /** Calls the listeners. A Socket's own `emit` sends instead, so everybody here calls this. */
  emitReserved(event, ...args) {
    for (const listener of this.listeners(event)) listener.apply(this, args);
    return this;
  }

  emit(event, ...args) {
    return this.emitReserved(event, ...args);
  }

  listeners(event) {
    return this._events.get(String(event)) || [];
  }

  hasListeners(event) {
    return this.listeners(event).length > 0;
  }
}

const { on, off } = Emitter.prototype;
Object.assign(Emitter.prototype, {
  addEventListener: on,
  removeListener: off,
  removeEventListener: off,
  removeAllListeners: off,
});

/** Listens, and returns what ends that. */
const listen = (emitter, event, listener) => {
  emitter.on(event, listener);
  return () => emitter.off(event, listener);
};

/** Calls what may throw because it is the page's; the error is reported and stops nothing of ours. */
const safely = (call) => {
  try {
    call();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
};

// Taken before anybody replaces them, for `useNativeTimers`.
const nativeTimers = { setTimeout: globalThis.setTimeout, clearTimeout: globalThis.clearTimeout };

const installTimers = (target, { useNativeTimers }) => {
  const timers = useNativeTimers ? nativeTimers : globalThis;
  target.setTimeoutFn = timers.setTimeout.bind(globalThis);
  target.clearTimeoutFn = timers.clearTimeout.bind(globalThis);
};

// --- Engine.IO packets ---------------------------------------------------------------------------

const TYPES = ["open", "close", "ping", "pong", "message", "upgrade", "noop"];
const SEPARATOR = "\x1e";
const BAD_PACKET = { type: "error", data: "parser error" };

const tagOf = (value) => Object.prototype.toString.call(value).slice(8, -1);
const isBlob = (value) => ["Blob", "File"].includes(tagOf(value));

/** Tells what travels as bytes. By tag, because a value may come from another frame. */
const isBinary = (value) =>
  typeof value === "object" &&
  value !== null &&
  (ArrayBuffer.isView(value) || tagOf(value) === "ArrayBuffer" || isBlob(value));

const bytesOf = (data) =>
  ArrayBuffer.isView(data)
    ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
    : new Uint8Array(data);

const toBase64 = (data) => {
  const bytes = bytesOf(data);
  let text = "";
  for (let at = 0; at < bytes.length; at += 8192) {
    text += String.fromCharCode(...bytes.subarray(at, at + 8192)); // arguments are limited
  }
  return btoa(text);
};

const toBinaryType = (data, binaryType) => {
  if (binaryType === "blob") return isBlob(data) ? data : new Blob([data]);
  return ArrayBuffer.isView(data) ? bytesOf(data).slice().buffer : data;
};

/** Returns the packet as a transport sends it; a promise of it when a Blob must be read. */
const encodePacket = ({ type, data }, supportsBinary) => {
  if (!isBinary(data)) return TYPES.indexOf(type) + (data ?? "");
  if (supportsBinary) return data;
  return isBlob(data)
    ? data.arrayBuffer().then((buffer) => "b" + toBase64(buffer))
    : "b" + toBase64(data);
};

const decodePacket = (data, binaryType) => {
  if (typeof data !== "string") return { type: "message", data: toBinaryType(data, binaryType) };
  if (data[0] === "b") {
    try {
      const bytes = Uint8Array.from(atob(data.slice(1)), (char) => char.charCodeAt(0));
      return { type: "message", data: toBinaryType(bytes.buffer, binaryType) };
    } catch {
      return BAD_PACKET;
    }
  }
  const type = TYPES[data[0]];
  return type ? { type, data: data.slice(1) } : BAD_PACKET;
};

/** Calls `done` with packets encoded, at once unless one of them has to be read first. */
const encodeAll = (packets, supportsBinary, done) => {
  const parts = packets.map((packet) => encodePacket(packet, supportsBinary));
  if (parts.some((part) => part.then)) Promise.all(parts).then(done);
  else done(parts);
};

const encodePayload = (packets, done) =>
  encodeAll(packets, false, (parts) => done(parts.join(SEPARATOR)));

/** Returns the packets of a polling payload, the first bad one included and nothing after it. */
const decodePayload = (payload, binaryType) => {
  const packets = [];
  for (const part of payload.split(SEPARATOR)) {
    const packet = decodePacket(part, binaryType);
    packets.push(packet);
    if (packet === BAD_PACKET) break;
  }
  return packets;
};

// --- addresses -----------------------------------------------------------------------------------

const page = typeof location === "undefined" ? undefined : location;
const ADDRESS =
  /^(?:(https?|wss?):\/\/)?(?:[^@/?#]*@)?(\[[^\]]*\]|[^:/?#]*)(?::(\d*))?([^?#]*)(?:\?([^#]*))?/;

/**
 * Takes an address apart.
 *
 * @param uri absolute, or relative to `from`; nothing: the address of `from` itself
 * @param path of the Engine.IO endpoint, which is part of the id of a connection
 * @param from the page's location
 */
function url(uri, path = "", from = page) {
  if (!from && (uri == null || uri[0] === "/")) {
    throw new Error("io() needs a whole address where there is no page");
  }
  uri ??= `${from.protocol}//${from.host}`;
  if (uri[0] === "/") uri = (uri[1] === "/" ? from.protocol : from.host) + uri;
  if (!/^(https?|wss?):\/\//.test(uri)) uri = `${from ? from.protocol : "https:"}//${uri}`;

  const [, protocol, host, port, namespace, query] = ADDRESS.exec(uri);
  const parsed = {
    source: uri,
    protocol,
    host: host.replace(/^\[|\]$/g, ""), // IPv6
    port: port || (/s$/.test(protocol) ? "443" : "80"),
    path: namespace || "/",
    query: query || "",
  };
  parsed.id = `${protocol}://${host}:${parsed.port}${path}`;
  return parsed;
}

const encodeQuery = (query) =>
  Object.entries(query)
    .map((pair) => pair.map(encodeURIComponent).join("="))
    .join("&");

const decodeQuery = (text) =>
  Object.fromEntries(
    text.split("&").map((pair) => {
      const [name, value = ""] = pair.split("=");
      return [decodeURIComponent(name), decodeURIComponent(value)];
    }),
  );

// --- transports ----------------------------------------------------------------------------------

class TransportError extends Error {
  type = "TransportError";

  constructor(reason, description, context) {
    super(reason);
    this.description = description;
    this.context = context;
  }
}

/** Emits open, packet, drain, error and close. States: opening, open, pausing, paused, closed. */
class Transport extends Emitter {
  writable = false;

  constructor(opts) {
    super();
    this.opts = opts;
    this.query = opts.query;
    this.socket = opts.socket; // the Engine
    this.supportsBinary = !opts.forceBase64;
  }

  open() {
    this.readyState = "opening";
    this.doOpen();
    return this;
  }

  close() {
    if (this.readyState !== "closed") {
      this.doClose();
      this.onClose();
    }
    return this;
  }

  send(packets) {
    // Not open: closed silently as the page went away.
    if (this.readyState === "open") this.write(packets);
  }

  onOpen() {
    this.readyState = "open";
    this.writable = true;
    this.emitReserved("open");
  }

  onPacket(packet) {
    this.emitReserved("packet", packet);
  }

  onClose(details) {
    this.readyState = "closed";
    this.writable = false;
    this.emitReserved("close", details);
  }

  onError(reason, description, context) {
    this.emitReserved("error", new TransportError(reason, description, context));
  }

  onDrain() {
    this.writable = true;
    this.emitReserved("drain");
  }

  /** Returns where to connect: `http` or `ws`, made safe if need be, and the query as it is now. */
  createUri(schema, query = this.query) {
    const { hostname, port, secure, path } = this.opts;
    const host = hostname.includes(":") ? `[${hostname}]` : hostname;
    const usual = Number(port) === (secure ? 443 : 80);
    return `${schema}${secure ? "s" : ""}://${host}${usual ? "" : ":" + port}${path}?${encodeQuery(query)}`;
  }

  stamp() {
    const random = Math.random().toString(36).slice(2, 7);
    this.query[this.opts.timestampParam] = Date.now().toString(36).slice(3) + random;
  }
}

// Requests that a page leaves behind would report errors while it goes away.
const pending = new Set();
globalThis.addEventListener?.("pagehide", ({ persisted }) => {
  if (!persisted) for (const abort of pending) abort();
});

/** Milliseconds that a handshake is given to arrive after nobody wants it any more. */
const PATIENCE = 2000;

/** HTTP long-polling: one GET waits for packets, one POST at a time sends some. */
class Polling extends Transport {
  _polling = false;
  _whenPaused = null;
  _aborts = new Set(); // of the requests on their way

  get name() {
    return "polling";
  }

  doOpen() {
    this._poll();
  }

  /** Calls `done` once nothing is on its way any more. */
  pause(done) {
    this.readyState = "pausing";
    this._whenPaused = done;
    this._settle();
  }

  resume() {
    if (this.readyState === "closed") return;
    this.readyState = "open";
    this._whenPaused = null;
    if (!this._polling) this._poll();
  }

  _settle() {
    if (this.readyState !== "pausing" || this._polling || !this.writable) return;
    this.readyState = "paused";
    this._whenPaused();
  }

  _poll() {
    this._polling = true;
    this._start(undefined, (text) => this.onData(text), this.constructor.readError);
  }

  onData(text) {
    const packets = decodePayload(text, this.socket.binaryType);
    if (this.readyState === "closed") {
      this._leaveLate(packets[0]);
      return;
    }
    for (const packet of packets) {
      if (this.readyState === "opening" && packet.type === "open") this.onOpen();
      if (packet.type === "close") {
        this.onClose({ description: "transport closed by the server" });
      } else {
        this.onPacket(packet);
      }
      if (this.readyState === "closed") return;
    }
    this._polling = false;
    if (this.readyState === "open") this._poll();
    else this._settle();
  }

  write(packets) {
    this.writable = false;
    encodePayload(packets, (payload) => {
      this._start(
        payload,
        () => {
          if (this.readyState === "closed") return;
          this.onDrain();
          this._settle();
        },
        this.constructor.writeError,
      );
    });
  }

  doClose() {
    if (this.readyState !== "opening") this._leave();
    // There may be a session soon, which must be closed then: see _leaveLate.
    else this.socket.setTimeoutFn(() => this._abort(), PATIENCE);
  }

  /** Says goodbye; the GET that waits is dropped afterwards. */
  _leave() {
    const drop = () => this._abort();
    this._aborts.add(this._request(String(TYPES.indexOf("close")), drop, drop));
  }

  /** Closes the session that a handshake opened after we were closed. */
  _leaveLate(packet) {
    if (packet.type !== "open" || this.query.sid) return;
    try {
      this.query.sid = JSON.parse(packet.data).sid;
    } catch {
      return;
    }
    this._leave();
  }

  _abort() {
    for (const abort of this._aborts) abort();
    this._aborts.clear();
  }

  _start(body, done, reason) {
    const finish = () => {
      this._aborts.delete(abort);
      pending.delete(abort);
    };
    const abort = this._request(
      body,
      (text) => {
        finish();
        done(text);
      },
      (description, context) => {
        finish();
        if (this.readyState === "closed") return;
        this.readyState = "closed";
        this._abort(); // the other request has nobody to answer to
        this.onError(reason, description, context);
      },
    );
    this._aborts.add(abort);
    pending.add(abort);
  }

  _request(body, done, failed) {
    if (this.opts.timestampRequests !== false) this.stamp();
    if (!this.supportsBinary && !this.query.sid) this.query.b64 = 1;
    return this.doRequest(this.createUri("http"), body, done, failed);
  }
}

/** Polling by XMLHttpRequest. */
class XHR extends Polling {
  static readError = "xhr poll error";
  static writeError = "xhr post error";

  doRequest(uri, body, done, failed) {
    const { extraHeaders, withCredentials, requestTimeout } = this.opts;
    const xhr = new XMLHttpRequest();
    try {
      xhr.open(body === undefined ? "GET" : "POST", uri, true);
      for (const [name, value] of Object.entries(extraHeaders || {})) {
        xhr.setRequestHeader(name, value);
      }
      if (body !== undefined) xhr.setRequestHeader("Content-type", "text/plain;charset=UTF-8");
      xhr.setRequestHeader("Accept", "*/*");
      xhr.withCredentials = !!withCredentials;
      if (requestTimeout) xhr.timeout = requestTimeout;
      xhr.onreadystatechange = () => {
        if (xhr.readyState !== 4) return;
        if (xhr.status === 200) done(xhr.responseText);
        else failed(xhr.status, xhr);
      };
      xhr.send(body ?? null);
    } catch (error) {
      queueMicrotask(() => failed(error, xhr));
    }
    return () => {
      xhr.onreadystatechange = () => {};
      xhr.abort();
    };
  }
}

/** Polling by fetch: in service workers, and where a page asks for it. */
class Fetch extends Polling {
  static readError = "fetch read error";
  static writeError = "fetch write error";

  doRequest(uri, body, done, failed) {
    const { extraHeaders, withCredentials, requestTimeout } = this.opts;
    const controller = new AbortController();
    let dropped = false;
    const headers = new Headers(extraHeaders);
    if (body !== undefined) headers.set("content-type", "text/plain;charset=UTF-8");
    const timer = requestTimeout && setTimeout(() => controller.abort(), requestTimeout);
    const run = async () => {
      let text;
      try {
        const response = await fetch(uri, {
          method: body === undefined ? "GET" : "POST",
          body,
          headers,
          credentials: withCredentials ? "include" : "same-origin",
          signal: controller.signal,
        });
        if (!response.ok) return () => failed(response.status, response);
        text = await response.text();
      } catch (error) {
        return () => failed(error);
      } finally {
        clearTimeout(timer);
      }
      return () => done(text);
    };
    run().then((finish) => dropped || finish());
    return () => {
      dropped = true;
      controller.abort();
    };
  }
}

class WS extends Transport {
  ws = null;

  get name() {
    return "websocket";
  }

  doOpen() {
    const { protocols, extraHeaders, timestampRequests } = this.opts;
    if (timestampRequests) this.stamp();
    if (!this.supportsBinary) this.query.b64 = 1;
    const uri = this.createUri("ws");
    let ws;
    try {
      // The third argument is for React Native and Node; browsers cannot send headers here.
      ws = extraHeaders
        ? new globalThis.WebSocket(uri, protocols || [], { headers: extraHeaders })
        : new globalThis.WebSocket(uri, protocols || []);
    } catch (error) {
      queueMicrotask(() => this.onError("websocket error", error));
      return;
    }
    this.ws = ws;
    ws.binaryType = this.socket.binaryType;
    ws.onopen = () => this.onOpen();
    ws.onmessage = ({ data }) => this.onPacket(decodePacket(data, this.socket.binaryType));
    ws.onerror = (event) => this.onError("websocket error", event);
    ws.onclose = (event) =>
      this.onClose({ description: "websocket connection closed", context: event });
  }

  write(packets) {
    this.writable = false;
    encodeAll(packets, this.supportsBinary, (parts) => {
      try {
        for (const part of parts) this.ws.send(part);
      } catch {
        // It has just closed; its close event is on the way.
      }
      // Later, so that whoever sent this has noted it.
      queueMicrotask(() => this.readyState === "closed" || this.onDrain());
    });
  }

  doClose() {
    const ws = this.ws;
    if (!ws) return;
    ws.onopen = ws.onmessage = ws.onclose = null;
    ws.onerror = () => {}; // a connection that is given up while it opens is no news
    ws.close();
  }
}

const TRANSPORTS = {
  get polling() {
    return typeof XMLHttpRequest === "undefined" ? Fetch : XHR;
  },
  websocket: WS,
};

// --- Engine: one connection ----------------------------------------------------------------------

/** Packets in one POST at most: servers have a limit too. */
const MAX_PACKETS = 500;

// One listener, added as the script starts: a service worker may add none later.
const engines = new Set();
globalThis.addEventListener?.("offline", () => {
  for (const engine of [...engines]) engine._onOffline();
});

/**
 * An Engine.IO session: begins with one transport, upgrades to another, ends once.
 *
 * Emits open, handshake, packet, packetCreate, data, message, drain, flush, heartbeat, ping, pong,
 * error, upgrading, upgrade, upgradeError, close.
 */
class Engine extends Emitter {
  static priorWebsocketSuccess = false;
  static protocol = ENGINE_PROTOCOL;

  id = undefined;
  transport = undefined;
  binaryType = "arraybuffer";
  readyState = "opening"; // then open, closing, closed
  upgrading = false; // the transport is paused, packets wait
  writeBuffer = []; // what was not sent, or is being sent
  _inFlight = 0; // how many of them are
  _pingTimeoutTime = Infinity;

  constructor(uri, opts = {}) {
    super();
    this.opts = {
      path: "/socket.io",
      upgrade: true,
      timestampParam: "t",
      addTrailingSlash: true,
      transportOptions: {},
      ...opts,
    };
    const options = this.opts;
    installTimers(this, options);
    if (uri) {
      const { protocol, host, port, query } = url(uri);
      Object.assign(options, { hostname: host, secure: /s$/.test(protocol), port });
      if (query) options.query = query;
    }
    if (typeof options.query === "string") options.query = decodeQuery(options.query);
    options.path = options.path.replace(/\/$/, "") + (options.addTrailingSlash ? "/" : "");
    options.secure ??= page?.protocol === "https:";
    options.port ||= (!options.hostname && page?.port) || (options.secure ? "443" : "80");
    options.hostname ||= page?.hostname.replace(/^\[|\]$/g, "") || "localhost";

    this._kinds = {};
    for (const wanted of options.transports || ["polling", "websocket"]) {
      const kind = typeof wanted === "string" ? TRANSPORTS[wanted] : wanted;
      if (kind) this._kinds[typeof wanted === "string" ? wanted : kind.prototype.name] = kind;
    }
    this.transports = Object.keys(this._kinds);

    engines.add(this);
    if (options.closeOnBeforeunload) {
      this._onBeforeunload = () => this.transport?.off().close();
      globalThis.addEventListener?.("beforeunload", this._onBeforeunload);
    }
    this._open();
  }

  _open() {
    const { transports } = this;
    if (!transports.length) {
      this.setTimeoutFn(() => this._onError(new Error("No transports available")), 0);
      return;
    }
    const remembered =
      this.opts.rememberUpgrade && Engine.priorWebsocketSuccess && transports.includes("websocket");
    const transport = this._createTransport(remembered ? "websocket" : transports[0]);
    this._setTransport(transport);
    transport.open();
  }

  _createTransport(name) {
    const query = { ...this.opts.query, EIO: ENGINE_PROTOCOL, transport: name };
    if (this.id) query.sid = this.id;
    return new this._kinds[name]({
      ...this.opts,
      query,
      socket: this,
      ...this.opts.transportOptions[name],
    });
  }

  _setTransport(transport) {
    this.transport?.off();
    this.transport = transport
      .on("drain", () => this._onDrain())
      .on("packet", (packet) => this._onPacket(packet))
      .on("error", (error) => this._onError(error))
      .on("close", (details) => this._onClose("transport close", details));
  }

  _onPacket(packet) {
    if (this.readyState === "closed") return;
    this.emitReserved("packet", packet);
    this.emitReserved("heartbeat");
    switch (packet.type) {
      case "open":
        if (!this.id) this._onHandshake(packet.data);
        break;
      case "ping":
        this._sendPacket("pong");
        this.emitReserved("ping");
        this.emitReserved("pong");
        this._resetPingTimeout();
        break;
      case "message":
        this.emitReserved("data", packet.data);
        this.emitReserved("message", packet.data);
        break;
      case "error":
        this._onError(Object.assign(new Error("server error"), { code: packet.data }));
    }
  }

  _onHandshake(text) {
    let data;
    try {
      data = JSON.parse(text);
    } catch (error) {
      this._onError(error);
      return;
    }
    this.emitReserved("handshake", data);
    this.id = this.transport.query.sid = data.sid;
    this._patience = data.pingInterval + data.pingTimeout;
    this._maxPayload = data.maxPayload;
    this.readyState = "open";
    Engine.priorWebsocketSuccess = this.transport.name === "websocket";
    this.emitReserved("open");
    this.flush();
    if (this.readyState !== "open") return;
    if (this.opts.upgrade) {
      for (const name of data.upgrades) {
        if (this.transports.includes(name) && name !== this.transport.name) this._probe(name);
      }
    }
    this._resetPingTimeout();
  }

  /** Tries another transport beside the one in use, and changes to it when it works. */
  _probe(name) {
    const transport = this._createTransport(name);
    Engine.priorWebsocketSuccess = false;
    let pausing = false;
    const subs = [];
    const leave = () => {
      transport.off();
      for (const end of subs) end();
    };
    const fail = (why) => {
      leave();
      transport.close();
      if (pausing) {
        this.upgrading = false;
        this.transport.resume?.();
      }
      const error = new Error(`probe error: ${why}`);
      error.transport = name;
      this.emitReserved("upgradeError", error);
      this.flush();
    };
    const change = () => {
      leave();
      if (this.readyState === "closed") {
        transport.close();
        return;
      }
      this._setTransport(transport);
      transport.send([{ type: "upgrade" }]);
      this.upgrading = false;
      this.emitReserved("upgrade", transport);
      this.flush();
    };
    const probed = ({ type, data }) => {
      if (type !== "pong" || data !== "probe") {
        fail("unexpected answer");
        return;
      }
      transport.off("packet");
      pausing = this.upgrading = true;
      this.emitReserved("upgrading", transport);
      Engine.priorWebsocketSuccess = name === "websocket";
      this.transport.pause(change);
    };
    transport
      .on("open", () => transport.send([{ type: "ping", data: "probe" }]))
      .on("packet", probed)
      .on("error", (error) => fail(error.message))
      .on("close", () => fail("transport closed"));
    subs.push(
      listen(this, "close", () => fail("socket closed")),
      listen(this, "upgrading", (other) => other === transport || fail("another one was faster")),
    );
    transport.open();
  }

  _resetPingTimeout() {
    this.clearTimeoutFn(this._pingTimer);
    this._pingTimeoutTime = Date.now() + this._patience;
    this._pingTimer = this.setTimeoutFn(() => this._onClose("ping timeout"), this._patience);
  }

  /** Tells whether the timer is overdue: those of a page that sleeps are late. */
  _hasPingExpired() {
    if (this._pingTimeoutTime && Date.now() <= this._pingTimeoutTime) return false;
    if (this._pingTimeoutTime) queueMicrotask(() => this._onClose("ping timeout"));
    this._pingTimeoutTime = 0;
    return true;
  }

  _sendPacket(type, data, options, sent) {
    if (this.readyState === "closing" || this.readyState === "closed") return;
    const packet = { type, data, options: { ...options, compress: options?.compress !== false } };
    this.emitReserved("packetCreate", packet);
    this.writeBuffer.push(packet);
    if (sent) this.once("flush", sent);
    this.flush();
  }

  /** Sends a message. */
  write(data, options, sent) {
    this._sendPacket("message", data, options, sent);
    return this;
  }

  send(data, options, sent) {
    return this.write(data, options, sent);
  }

  flush() {
    if (this.readyState === "closed" || this.upgrading) return;
    if (!this.transport.writable || !this.writeBuffer.length) return;
    const packets = this._writablePackets();
    this._inFlight = packets.length;
    this.transport.send(packets);
    this.emitReserved("flush");
  }

  /** Returns as much as one POST may carry, at least one packet; all of it on other transports. */
  _writablePackets() {
    if (this.transport.name !== "polling") return [...this.writeBuffer];
    const packets = this.writeBuffer.slice(0, MAX_PACKETS);
    if (!this._maxPayload || packets.length === 1) return packets;
    let size = 0;
    const end = packets.findIndex(({ data = "" }, index) => {
      size += isBinary(data)
        ? Math.ceil((data.byteLength ?? data.size) / 3) * 4
        : new TextEncoder().encode(data).length;
      size += index ? 2 : 1; // its type, and the separator
      return index > 0 && size > this._maxPayload;
    });
    return end < 0 ? packets : packets.slice(0, end);
  }

  _onDrain() {
    this.writeBuffer.splice(0, this._inFlight);
    this._inFlight = 0;
    if (this.writeBuffer.length) this.flush();
    else this.emitReserved("drain");
  }

  /** Ends the session, after what is waiting was sent. */
  close() {
    if (this.readyState !== "opening" && this.readyState !== "open") return this;
    this.readyState = "closing";
    const finish = () => this._onClose("forced close");
    const settle = () => {
      // A transport that is being paused cannot send.
      if (this.upgrading) this.once("upgrade", finish).once("upgradeError", finish);
      else finish();
    };
    if (this.writeBuffer.length) this.once("drain", settle);
    else settle();
    return this;
  }

  _onOffline() {
    if (this.opts.hostname === "localhost") return;
    this._onClose("transport close", { description: "network connection lost" });
  }

  _onError(error) {
    Engine.priorWebsocketSuccess = false;
    const others = this.transports.filter((name) => name !== this.transport?.name);
    if (this.opts.tryAllTransports && others.length && this.readyState === "opening") {
      this.transports = others;
      this._open();
      return;
    }
    this.emitReserved("error", error);
    this._onClose("transport error", error);
  }

  _onClose(reason, details) {
    if (this.readyState === "closed") return;
    this.clearTimeoutFn(this._pingTimer);
    this.transport?.off().close();
    engines.delete(this);
    globalThis.removeEventListener?.("beforeunload", this._onBeforeunload);
    this.readyState = "closed";
    this.id = null;
    this.emitReserved("close", reason, details);
    this.writeBuffer = []; // after the event, so that a listener can look at it
    this._inFlight = 0;
  }
}

// --- Socket.IO packets ---------------------------------------------------------------------------

const PacketType = {
  CONNECT: 0,
  DISCONNECT: 1,
  EVENT: 2,
  ACK: 3,
  CONNECT_ERROR: 4,
  BINARY_EVENT: 5,
  BINARY_ACK: 6,
};
const { CONNECT, DISCONNECT, EVENT, ACK, CONNECT_ERROR, BINARY_EVENT } = PacketType;

const RESERVED = new Set([
  "connect",
  "connect_error",
  "disconnect",
  "disconnecting",
  "newListener",
  "removeListener",
]);

const isObject = (value) => tagOf(value) === "Object";

/** What the payload of each type must be, when there is one. */
const VALID = [
  isObject,
  () => false,
  (data) =>
    Array.isArray(data) &&
    (typeof data[0] === "number" || (typeof data[0] === "string" && !RESERVED.has(data[0]))),
  Array.isArray,
  (data) => typeof data === "string" || isObject(data),
];

class Encoder {
  /** @param replacer as of JSON.stringify */
  constructor(replacer) {
    this.replacer = replacer;
  }

  /** Returns the packet's text, then its binary attachments. */
  encode({ type, nsp, id, data }) {
    const { replacer } = this;
    const attachments = [];
    const take = (value) => ({ _placeholder: true, num: attachments.push(value) - 1 });
    const replace = function (key, value) {
      if (isBinary(this[key])) return take(this[key]); // before a toJSON, which a Buffer has
      if (replacer) value = replacer.call(this, key, value);
      return isBinary(value) ? take(value) : value;
    };
    const mayHaveBinary = type === EVENT || type === ACK;
    const json = data == null ? "" : JSON.stringify(data, mayHaveBinary ? replace : replacer);
    const count = attachments.length;
    const head = count ? `${type + BINARY_EVENT - EVENT}${count}-` : type;
    const name = nsp && nsp !== "/" ? `${nsp},` : "";
    return [`${head}${name}${id ?? ""}${json}`, ...attachments];
  }
}

const HEAD = /^([0-6])(?:(\d{1,9})-)?(\/[^,]*,?)?(\d+)?/;

/** Emits `decoded` for each packet that is complete; `add` throws for what the protocol forbids. */
class Decoder extends Emitter {
  /** @param opts `{ reviver, maxAttachments }`, or the reviver of JSON.parse alone */
  constructor(opts) {
    super();
    this.opts = { maxAttachments: 10, ...(typeof opts === "function" ? { reviver: opts } : opts) };
    this._waiting = null; // a packet whose attachments have not all come
  }

  add(data) {
    if (typeof data === "string") {
      if (this._waiting) throw new Error("got plaintext data when reconstructing a packet");
      const { missing, ...packet } = this._decode(data);
      if (missing) this._waiting = { packet, missing, attachments: [] };
      else this.emitReserved("decoded", packet);
    } else if (isBinary(data)) {
      const waiting = this._waiting;
      if (!waiting) throw new Error("got binary data when not reconstructing a packet");
      if (waiting.attachments.push(data) < waiting.missing) return;
      this._waiting = null;
      const { packet, attachments } = waiting;
      packet.data = fill(packet.data, attachments);
      this.emitReserved("decoded", packet);
    } else {
      throw new Error(`Unknown type: ${data}`);
    }
  }

  destroy() {
    this._waiting = null;
  }

  _decode(text) {
    const head = HEAD.exec(text);
    if (!head) throw new Error(`unknown packet type ${text[0]}`);
    let type = Number(head[1]);
    let missing = 0;
    if (type >= BINARY_EVENT) {
      missing = Number(head[2] || 0);
      if (!missing) throw new Error("Illegal attachments");
      if (missing > this.opts.maxAttachments) throw new Error("too many attachments");
      type -= BINARY_EVENT - EVENT;
    } else if (head[2]) {
      throw new Error("invalid payload");
    }
    const packet = { type, nsp: head[3] ? head[3].replace(/,$/, "") : "/", missing };
    if (head[4]) {
      packet.id = Number(head[4]);
      if (!Number.isSafeInteger(packet.id)) throw new Error("invalid ack id");
    }
    const payload = text.slice(head[0].length);
    if (payload) {
      try {
        packet.data = JSON.parse(payload, this.opts.reviver);
      } catch {
        throw new Error("invalid payload");
      }
      if (!VALID[type](packet.data)) throw new Error("invalid payload");
    }
    return packet;
  }
}

/** Puts attachments where their placeholders are. */
const fill = (value, attachments) => {
  if (typeof value !== "object" || value === null) return value;
  if (value._placeholder === true) {
    if (!Number.isInteger(value.num) || !(value.num in attachments)) {
      throw new Error("illegal attachments");
    }
    return attachments[value.num];
  }
  for (const key of Object.keys(value)) value[key] = fill(value[key], attachments);
  return value;
};

// --- Socket: one namespace -----------------------------------------------------------------------

class Socket extends Emitter {
  id = undefined;
  connected = false;
  recovered = false;
  receiveBuffer = []; // events that came before the connection was confirmed
  sendBuffer = []; // packets that wait for it
  flags = {}; // of the next emit
  acks = {}; // by id
  _queue = []; // with the option `retries`: one packet at a time
  _ids = 0;
  _life = 0; // how often it was disconnected: tells acknowledgements that come too late
  _anyListeners = [];
  _anyOutgoingListeners = [];

  constructor(io, nsp, opts = {}) {
    super();
    this.io = io;
    this.nsp = nsp;
    this.auth = opts.auth;
    this._opts = { ...opts };
    if (io._autoConnect) this.open();
  }

  get disconnected() {
    return !this.connected;
  }

  /** Whether it is connected, or will be without being asked. */
  get active() {
    return !!this.subs;
  }

  // - connecting -

  connect() {
    if (this.connected) return this;
    const { io } = this;
    this.subs ||= [
      listen(io, "open", () => this.onopen()),
      listen(io, "packet", (packet) => this.onpacket(packet)),
      listen(io, "error", (error) => this.onerror(error)),
      listen(io, "close", (reason, details) => this.onclose(reason, details)),
    ];
    if (!io._reconnecting) io.open();
    if (io._readyState === "open") this.onopen();
    return this;
  }

  open() {
    return this.connect();
  }

  disconnect() {
    if (this.connected) this.packet({ type: DISCONNECT });
    this.destroy();
    if (this.connected) this.onclose("io client disconnect");
    return this;
  }

  close() {
    return this.disconnect();
  }

  onopen() {
    const send = (data) => {
      const recovery = this._pid && { pid: this._pid, offset: this._lastOffset };
      this.packet({ type: CONNECT, data: recovery ? { ...recovery, ...data } : data });
    };
    if (typeof this.auth === "function") this.auth(send);
    else send(this.auth);
  }

  onerror(error) {
    if (!this.connected) this.emitReserved("connect_error", error);
  }

  onclose(reason, details) {
    this.connected = false;
    this.id = undefined;
    this.receiveBuffer = [];
    this._life++;
    this.emitReserved("disconnect", reason, details);
    for (const [id, ack] of Object.entries(this.acks)) {
      if (this.sendBuffer.some((packet) => String(packet.id) === id)) continue; // not sent yet
      delete this.acks[id];
      if (ack.withError) ack.call(this, new Error("socket has been disconnected"));
    }
  }

  destroy() {
    for (const end of this.subs || []) end();
    this.subs = undefined;
    this.receiveBuffer = [];
    this.io._destroy(this);
  }

  packet(packet) {
    this.io._packet({ ...packet, nsp: this.nsp });
  }

  onpacket({ type, nsp, id, data }) {
    if (nsp !== this.nsp) return;
    switch (type) {
      case CONNECT:
        if (data?.sid) {
          this.onconnect(data.sid, data.pid);
        } else {
          const text = "a Socket.IO server in v2.x with a v3.x client: these are not compatible";
          this.emitReserved("connect_error", new Error(`It seems you are trying to reach ${text}`));
        }
        break;
      case EVENT:
        this.onevent(data || [], id);
        break;
      case ACK:
        this.onack(id, data || []);
        break;
      case DISCONNECT:
        this.destroy();
        this.onclose("io server disconnect");
        break;
      case CONNECT_ERROR: {
        this.destroy();
        const error = new Error(typeof data === "string" ? data : data?.message);
        error.data = data?.data;
        this.emitReserved("connect_error", error);
      }
    }
  }

  onconnect(id, pid) {
    this.id = id;
    this.recovered = !!pid && this._pid === pid;
    this._pid = pid; // only with connection state recovery
    this.connected = true;
    const { receiveBuffer, sendBuffer } = this;
    this.receiveBuffer = [];
    this.sendBuffer = [];
    for (const args of receiveBuffer) safely(() => this.emitEvent(args));
    for (const packet of sendBuffer) safely(() => this._transmit(packet));
    this._drainQueue(true);
    this.emitReserved("connect");
  }

  // - receiving -

  onevent(data, id) {
    const args = id === undefined ? data : [...data, this._answer(id)];
    if (this.connected) this.emitEvent(args);
    else this.receiveBuffer.push(args);
  }

  emitEvent(args) {
    try {
      for (const listener of [...this._anyListeners]) listener.apply(this, args);
      this.emitReserved(...args);
    } finally {
      const last = args[args.length - 1];
      if (this._pid && typeof last === "string") this._lastOffset = last;
    }
  }

  /** Returns what answers an event: once, and only on the connection on which it came. */
  _answer(id) {
    const life = this._life;
    let sent = false;
    return (...args) => {
      if (sent || life !== this._life) return;
      sent = true;
      this.packet({ type: ACK, id, data: args });
    };
  }

  onack(id, args) {
    const ack = this.acks[id];
    if (!ack) return; // late, or never asked for
    delete this.acks[id];
    if (ack.withError) ack.call(this, null, ...args);
    else ack.apply(this, args);
  }

  // - sending -

  /** Sends an event; a function as last argument is called with the acknowledgement. */
  emit(event, ...args) {
    if (RESERVED.has(event)) throw new Error(`"${String(event)}" is a reserved event name`);
    const { flags } = this;
    this.flags = {};
    if (this._opts.retries && !flags.volatile) this._enqueue([event, ...args], flags);
    else this._send([event, ...args], flags);
    return this;
  }

  send(...args) {
    return this.emit("message", ...args);
  }

  /** Sends an event and resolves to the first argument of its acknowledgement. */
  emitWithAck(event, ...args) {
    return new Promise((resolve, reject) => {
      const ack = (error, value) => (error ? reject(error) : resolve(value));
      ack.withError = true;
      this.emit(event, ...args, ack);
    });
  }

  _send(args, flags) {
    const packet = { type: EVENT, data: args, options: { compress: flags.compress !== false } };
    if (typeof args[args.length - 1] === "function") {
      packet.id = this._ids++;
      this._expect(packet.id, args.pop(), flags.timeout ?? this._opts.ackTimeout);
    }
    if (flags.volatile && !this.io.engine?.transport?.writable) return;
    if (this._ready()) this._transmit(packet);
    else this.sendBuffer.push(packet);
  }

  _ready() {
    return this.connected && !this.io.engine._hasPingExpired();
  }

  _transmit(packet) {
    for (const listener of [...this._anyOutgoingListeners]) listener.apply(this, packet.data);
    this.packet(packet);
  }

  _expect(id, ack, timeout) {
    if (timeout === undefined) {
      this.acks[id] = ack;
      return;
    }
    const timer = this.io.setTimeoutFn(() => {
      delete this.acks[id];
      this.sendBuffer = this.sendBuffer.filter((packet) => packet.id !== id);
      ack.call(this, new Error("operation has timed out"));
    }, timeout);
    this.acks[id] = (...args) => {
      this.io.clearTimeoutFn(timer);
      ack.apply(this, args);
    };
    this.acks[id].withError = true;
  }

  _enqueue(args, flags) {
    const ack = typeof args[args.length - 1] === "function" ? args.pop() : undefined;
    const entry = { flags, pending: false, tries: 0 };
    const answered = (error, ...values) => {
      if (entry !== this._queue[0]) return; // answered before, by another try
      entry.pending = false;
      if (!error || entry.tries > this._opts.retries) {
        this._queue.shift();
        ack?.(error, ...values);
      }
      this._drainQueue();
    };
    answered.withError = true;
    entry.args = [...args, answered];
    this._queue.push(entry);
    this._drainQueue();
  }

  /** Sends the first packet of the queue, unless it is on its way; `again`: even then. */
  _drainQueue(again = false) {
    const entry = this._queue[0];
    if (!entry || (entry.pending && !again) || !this._ready()) return;
    entry.pending = true;
    entry.tries++;
    this._send([...entry.args], entry.flags);
  }

  /** Sets whether the next event is compressed. */
  compress(compress) {
    this.flags.compress = compress;
    return this;
  }

  /** The next event is dropped if it cannot be sent at once. */
  get volatile() {
    this.flags.volatile = true;
    return this;
  }

  /** The acknowledgement of the next event gets an error after so many milliseconds. */
  timeout(timeout) {
    this.flags.timeout = timeout;
    return this;
  }

  // - catch-all listeners -

  onAny(listener) {
    this._anyListeners.push(listener);
    return this;
  }

  prependAny(listener) {
    this._anyListeners.unshift(listener);
    return this;
  }

  offAny(listener) {
    this._anyListeners = without(this._anyListeners, listener);
    return this;
  }

  listenersAny() {
    return this._anyListeners;
  }

  onAnyOutgoing(listener) {
    this._anyOutgoingListeners.push(listener);
    return this;
  }

  prependAnyOutgoing(listener) {
    this._anyOutgoingListeners.unshift(listener);
    return this;
  }

  offAnyOutgoing(listener) {
    this._anyOutgoingListeners = without(this._anyOutgoingListeners, listener);
    return this;
  }

  listenersAnyOutgoing() {
    return this._anyOutgoingListeners;
  }
}

/** Returns the list without the first such listener, or empty when none is named. */
const without = (listeners, listener) => {
  const at = listeners.indexOf(listener);
  return listener ? listeners.filter((_, index) => index !== at) : [];
};

// --- Manager: connects an Engine, and again ------------------------------------------------------

/** Delays that grow, spread at random so that clients do not come back all at once. */
class Backoff {
  attempts = 0;

  constructor(min, max, jitter) {
    Object.assign(this, { min, max, jitter });
  }

  duration() {
    let delay = this.min * 2 ** this.attempts++;
    if (this.jitter > 0 && this.jitter <= 1) {
      const random = Math.random();
      const deviation = Math.floor(random * this.jitter * delay);
      delay += Math.floor(random * 10) % 2 ? deviation : -deviation;
    }
    return Math.floor(Math.min(delay, this.max));
  }

  reset() {
    this.attempts = 0;
  }
}

/** Emits open, error, ping, packet, close, and reconnect_attempt, _error, _failed and reconnect. */
class Manager extends Emitter {
  engine = undefined; // until the first open
  nsps = Object.create(null);
  subs = [];
  skipReconnect = false;
  _readyState = "closed"; // then opening, open
  _reconnecting = false;

  constructor(uri, opts) {
    super();
    if (uri && typeof uri === "object") [uri, opts] = [undefined, uri];
    opts ||= {};
    opts.path ||= "/socket.io";
    installTimers(this, opts);
    this.uri = uri;
    this.opts = opts;
    this._reconnection = opts.reconnection !== false;
    this._attempts = opts.reconnectionAttempts || Infinity;
    this._timeout = opts.timeout ?? 20000;
    this.backoff = new Backoff(
      opts.reconnectionDelay || 1000,
      opts.reconnectionDelayMax || 5000,
      opts.randomizationFactor ?? 0.5,
    );
    const parser = opts.parser || { Encoder, Decoder };
    this.encoder = new parser.Encoder();
    this.decoder = new parser.Decoder();
    this._autoConnect = opts.autoConnect !== false;
    if (this._autoConnect) this.open();
  }

  // - options: each returns its value, or sets it -

  reconnection(value) {
    if (!arguments.length) return this._reconnection;
    this._reconnection = !!value;
    if (!value) this.skipReconnect = true;
    return this;
  }

  reconnectionAttempts(value) {
    if (value === undefined) return this._attempts;
    this._attempts = value;
    return this;
  }

  reconnectionDelay(value) {
    return this._delay("min", value);
  }

  reconnectionDelayMax(value) {
    return this._delay("max", value);
  }

  randomizationFactor(value) {
    return this._delay("jitter", value);
  }

  _delay(name, value) {
    if (value === undefined) return this.backoff[name];
    this.backoff[name] = value;
    return this;
  }

  timeout(value) {
    if (!arguments.length) return this._timeout;
    this._timeout = value;
    return this;
  }

  // - connecting -

  /** Connects; `done` gets the error, or nothing, and with it nobody tries again. */
  open(done) {
    if (this._readyState !== "closed") return this;
    const engine = new Engine(this.uri, this.opts);
    this.engine = engine;
    this._readyState = "opening";
    this.skipReconnect = false;
    const failed = (error) => {
      this._cleanup();
      this._readyState = "closed";
      this.emitReserved("error", error);
      if (done) {
        done(error);
      } else if (this._reconnection && (this._reconnecting || !this.backoff.attempts)) {
        this._reconnecting = false; // what was waiting for its time is given up
        this.reconnect();
      }
    };
    this.subs.push(
      listen(engine, "open", () => {
        this._onopen(engine);
        done?.();
      }),
      listen(engine, "error", failed),
      listen(engine, "close", (reason) => failed(new Error(reason))),
    );
    if (this._timeout !== false) {
      this._after(this._timeout, () => {
        failed(new Error("timeout"));
        engine.close();
      });
    }
    return this;
  }

  connect(done) {
    return this.open(done);
  }

  _onopen(engine) {
    this._cleanup();
    this._readyState = "open";
    this._reconnecting = false;
    this.subs.push(
      listen(engine, "ping", () => this.emitReserved("ping")),
      listen(engine, "data", (data) => this._ondata(data)),
      listen(engine, "error", (error) => this.emitReserved("error", error)),
      listen(engine, "close", (reason, details) => this._onclose(reason, details)),
    );
    // The page may listen for packets of a parser of its own, so only ours goes.
    const decoded = (packet) => safely(() => this.emitReserved("packet", packet));
    this.decoder.on("decoded", decoded);
    this.subs.push(() => this.decoder.off("decoded", decoded));
    this.emitReserved("open");
  }

  _ondata(data) {
    try {
      this.decoder.add(data);
    } catch (error) {
      this._onclose("parse error", error);
    }
  }

  _onclose(reason, details) {
    this._cleanup();
    this.engine?.close();
    this.backoff.reset();
    this._readyState = "closed";
    this.emitReserved("close", reason, details);
    if (this._reconnection) this.reconnect();
  }

  _cleanup() {
    for (const end of this.subs.splice(0)) end();
    this.decoder.destroy();
  }

  _after(delay, call) {
    const timer = this.setTimeoutFn(call, delay);
    this.subs.push(() => this.clearTimeoutFn(timer));
  }

  reconnect() {
    // Not closed: a listener has just connected by hand.
    if (this._reconnecting || this.skipReconnect || this._readyState !== "closed") return;
    if (this.backoff.attempts >= this._attempts) {
      this.backoff.reset();
      this.emitReserved("reconnect_failed");
      return;
    }
    this._reconnecting = true;
    this._after(this.backoff.duration(), () => {
      if (!this.skipReconnect) this.emitReserved("reconnect_attempt", this.backoff.attempts);
      if (this.skipReconnect) {
        this._reconnecting = false; // told so meanwhile
        return;
      }
      this.open((error) => {
        this._reconnecting = false;
        if (error) {
          this.reconnect();
          this.emitReserved("reconnect_error", error);
        } else {
          const { attempts } = this.backoff;
          this.backoff.reset();
          this.emitReserved("reconnect", attempts);
        }
      });
    });
  }

  // - sockets -

  /** Returns the socket of a namespace, the same each time. */
  socket(nsp, opts) {
    const known = this.nsps[nsp];
    if (!known) return (this.nsps[nsp] = new Socket(this, nsp, opts));
    if (this._autoConnect && !known.active) known.connect();
    return known;
  }

  _packet(packet) {
    for (const part of this.encoder.encode(packet)) this.engine.write(part, packet.options);
  }

  _destroy() {
    if (!Object.values(this.nsps).some((socket) => socket.active)) this._close();
  }

  _close() {
    this.skipReconnect = true;
    this._reconnecting = false;
    this._onclose("forced close");
  }

  disconnect() {
    this._close();
  }
}

// --- io() ----------------------------------------------------------------------------------------

const managers = new Map(); // by address and path

/**
 * Connects to a namespace: that of the address's path.
 *
 * Sockets of one server share a connection, unless `forceNew`, `multiplex: false`, or a second
 * socket of the same namespace asks for its own.
 */
function io(uri, opts) {
  if (typeof uri === "object") [uri, opts] = [undefined, uri];
  opts ||= {};
  const { id, source, path } = url(uri ?? undefined, opts.path || "/socket.io");
  const shared = managers.get(id);
  if (
    opts.forceNew ||
    opts["force new connection"] ||
    opts.multiplex === false ||
    (shared && path in shared.nsps)
  ) {
    return new Manager(source, opts).socket(path, opts);
  }
  const manager = shared || new Manager(source, opts);
  managers.set(id, manager);
  return manager.socket(path, opts);
}

Object.assign(io, {
  io,
  connect: io,
  lookup: io,
  protocol: PROTOCOL,
  Manager,
  Socket,
  Engine,
  Encoder,
  Decoder,
  PacketType,
  Fetch,
  XHR,
  WebSocket: WS,
  encodePayload,
  decodePayload,
  url,
});

export {
  io as default,
  io,
  io as connect,
  io as lookup,
  PROTOCOL as protocol,
  Manager,
  Socket,
  Engine,
  Encoder,
  Decoder,
  PacketType,
  Fetch,
  XHR,
  XHR as NodeXHR,
  WS as WebSocket,
  WS as NodeWebSocket,
  encodePayload,
  decodePayload,
  url,
};

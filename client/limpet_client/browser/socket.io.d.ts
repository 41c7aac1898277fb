// What limpet.js exports, for TypeScript. The API is that of socket.io-client 4.

/** The events of one direction: names, and functions that take their arguments. */
export interface EventsMap {
  [event: string]: any;
}
export interface DefaultEventsMap {
  [event: string]: (...args: any[]) => void;
}

type Listener = (...args: any[]) => void;
type EventNames<Map extends EventsMap> = keyof Map & string;
type EventParams<Map extends EventsMap, Event extends EventNames<Map>> = Parameters<Map[Event]>;
type OrReserved<Map extends EventsMap, Reserved extends EventsMap> =
  | EventNames<Map>
  | EventNames<Reserved>;
type ListenerOf<Map extends EventsMap, Reserved extends EventsMap, Event> =
  Event extends EventNames<Reserved>
    ? Reserved[Event]
    : Event extends EventNames<Map>
      ? Map[Event]
      : never;

type Last<List extends any[]> = List extends [...any[], infer End] ? End : any;
type AllButLast<List extends any[]> = List extends [...infer Rest, any] ? Rest : any[];
type FirstArgument<Function> = Function extends (first: infer First, ...rest: any) => any
  ? First
  : any;
type FirstResult<Function> = Function extends (error: Error, first: infer First) => any
  ? First
  : FirstArgument<Function>;

type WithError<List extends any[]> = {
  [Index in keyof List]: List[Index] extends (...args: infer Args) => infer Result
    ? (error: Error, ...args: Args) => Result
    : List[Index];
};
/** Events whose acknowledgements get an error first, as after `timeout()`. */
export type DecorateAcknowledgements<Map> = {
  [Event in keyof Map]: Map[Event] extends (...args: infer Args) => infer Result
    ? (...args: WithError<Args>) => Result
    : Map[Event];
};

export declare class Emitter<
  Listen extends EventsMap = DefaultEventsMap,
  Emit extends EventsMap = Listen,
  Reserved extends EventsMap = {},
> {
  on<Event extends OrReserved<Listen, Reserved>>(
    event: Event,
    listener: ListenerOf<Listen, Reserved, Event>,
  ): this;
  once<Event extends OrReserved<Listen, Reserved>>(
    event: Event,
    listener: ListenerOf<Listen, Reserved, Event>,
  ): this;
  /** Removes one listener, or all of an event, or all. */
  off<Event extends OrReserved<Listen, Reserved>>(
    event?: Event,
    listener?: ListenerOf<Listen, Reserved, Event>,
  ): this;
  addEventListener: this["on"];
  removeListener: this["off"];
  removeEventListener: this["off"];
  removeAllListeners: this["off"];
  emit<Event extends EventNames<Emit>>(event: Event, ...args: EventParams<Emit, Event>): this;
  listeners<Event extends OrReserved<Listen, Reserved>>(
    event: Event,
  ): ListenerOf<Listen, Reserved, Event>[];
  hasListeners<Event extends OrReserved<Listen, Reserved>>(event: Event): boolean;
}

// --- options -------------------------------------------------------------------------------------

export interface SocketOptions {
  /** Credentials for the namespace; a function is asked at each connection. */
  auth?: { [key: string]: any } | ((answer: (data: object) => void) => void);
  /** How often an event is sent again when it is not acknowledged. */
  retries?: number;
  /** Milliseconds after which an acknowledgement is given up; no default. */
  ackTimeout?: number;
}

export interface EngineOptions {
  host?: string;
  hostname?: string;
  port?: string | number;
  secure?: boolean;
  /** Path of the server's endpoint; default "/socket.io". */
  path?: string;
  /** Default true. */
  addTrailingSlash?: boolean;
  /** Parameters of each request. */
  query?: { [key: string]: any } | string;
  /** What to begin with, and what to upgrade to; default ["polling", "websocket"]. */
  transports?: ("polling" | "websocket" | (string & {}) | TransportClass)[];
  /** Default true. */
  upgrade?: boolean;
  /** Begin with WebSocket if that worked before; default false. */
  rememberUpgrade?: boolean;
  /** Try the next transport when one cannot connect; default false. */
  tryAllTransports?: boolean;
  /** Options for one transport, by its name. */
  transportOptions?: { [transport: string]: object };
  /** Send cookies to other origins; default false. */
  withCredentials?: boolean;
  /** Not possible for a browser's WebSocket. */
  extraHeaders?: { [header: string]: string };
  /** Subprotocols of the WebSocket. */
  protocols?: string | string[];
  /** Milliseconds that a polling request may last; default 0, as long as it likes. */
  requestTimeout?: number;
  /** Default: for polling. */
  timestampRequests?: boolean;
  /** Default "t". */
  timestampParam?: string;
  /** Default false. */
  forceBase64?: boolean;
  /** End the connection without an event when the page goes away; default false. */
  closeOnBeforeunload?: boolean;
  /** Use the timers that there were when the script was loaded; default false. */
  useNativeTimers?: boolean;
  /** Without effect here: options of Node's connections. */
  autoUnref?: boolean;
  agent?: unknown;
  perMessageDeflate?: unknown;
  rejectUnauthorized?: boolean;
}

export interface ManagerOptions extends EngineOptions {
  /** Never share the connection; default false. */
  forceNew?: boolean;
  /** Share the connection with other namespaces; default true. */
  multiplex?: boolean;
  /** Default true. */
  reconnection?: boolean;
  /** Default Infinity. */
  reconnectionAttempts?: number;
  /** Milliseconds before the first attempt; doubled each time; default 1000. */
  reconnectionDelay?: number;
  /** Default 5000. */
  reconnectionDelayMax?: number;
  /** Share of the delay by which it may be longer or shorter; default 0.5. */
  randomizationFactor?: number;
  /** Milliseconds for a connection to open; default 20000; false: no limit. */
  timeout?: number | false;
  /** Default true. */
  autoConnect?: boolean;
  /** What to use in place of `Encoder` and `Decoder`. */
  parser?: { Encoder: new () => any; Decoder: new () => any };
}

// --- Manager and Socket --------------------------------------------------------------------------

export type DisconnectDescription = Error | { description: string; context?: unknown };

interface ManagerEvents {
  open: () => void;
  error: (error: Error) => void;
  ping: () => void;
  packet: (packet: Packet) => void;
  close: (reason: string, description?: DisconnectDescription) => void;
  reconnect_attempt: (attempt: number) => void;
  reconnect_error: (error: Error) => void;
  reconnect_failed: () => void;
  reconnect: (attempt: number) => void;
}

/** Connects to a server, again and again, and shares the connection among namespaces. */
export declare class Manager<
  Listen extends EventsMap = DefaultEventsMap,
  Emit extends EventsMap = Listen,
> extends Emitter<{}, {}, ManagerEvents> {
  constructor(options: ManagerOptions);
  constructor(uri?: string, options?: ManagerOptions);
  engine: Engine;
  opts: ManagerOptions;
  open(done?: (error?: Error) => void): this;
  connect(done?: (error?: Error) => void): this;
  socket(namespace: string, options?: SocketOptions): Socket<Listen, Emit>;
  reconnection(): boolean;
  reconnection(value: boolean): this;
  reconnectionAttempts(): number;
  reconnectionAttempts(value: number): this;
  reconnectionDelay(): number;
  reconnectionDelay(value: number): this;
  reconnectionDelayMax(): number;
  reconnectionDelayMax(value: number): this;
  randomizationFactor(): number;
  randomizationFactor(value: number): this;
  timeout(): number | false;
  timeout(value: number | false): this;
}

interface SocketEvents {
  connect: () => void;
  connect_error: (error: Error & { data?: any }) => void;
  disconnect: (reason: Socket.DisconnectReason, description?: DisconnectDescription) => void;
}

/** A namespace of a server. */
export declare class Socket<
  Listen extends EventsMap = DefaultEventsMap,
  Emit extends EventsMap = Listen,
> extends Emitter<Listen, Emit, SocketEvents> {
  constructor(io: Manager, namespace: string, options?: SocketOptions);
  readonly io: Manager<Listen, Emit>;
  /** Undefined while it is not connected. */
  id: string | undefined;
  connected: boolean;
  readonly disconnected: boolean;
  /** Whether it is connected, or will be without being asked. */
  readonly active: boolean;
  /** Whether the last connection went on with the state of the one before. */
  recovered: boolean;
  auth: SocketOptions["auth"];
  receiveBuffer: ReadonlyArray<any>[];
  sendBuffer: Packet[];
  connect(): this;
  open(): this;
  disconnect(): this;
  close(): this;
  send(...args: any[]): this;
  /** Resolves to the first argument of the acknowledgement. */
  emitWithAck<Event extends EventNames<Emit>>(
    event: Event,
    ...args: AllButLast<EventParams<Emit, Event>>
  ): Promise<FirstResult<Last<EventParams<Emit, Event>>>>;
  /** Gives the acknowledgement of the next event an error after so many milliseconds. */
  timeout(milliseconds: number): Socket<Listen, DecorateAcknowledgements<Emit>>;
  /** Drops the next event if it cannot be sent at once. */
  readonly volatile: this;
  compress(compress: boolean): this;
  onAny(listener: Listener): this;
  prependAny(listener: Listener): this;
  offAny(listener?: Listener): this;
  listenersAny(): Listener[];
  onAnyOutgoing(listener: Listener): this;
  prependAnyOutgoing(listener: Listener): this;
  offAnyOutgoing(listener?: Listener): this;
  listenersAnyOutgoing(): Listener[];
}

export declare namespace Socket {
  type DisconnectReason =
    | "io server disconnect"
    | "io client disconnect"
    | "ping timeout"
    | "transport close"
    | "transport error"
    | "parse error";
}

// --- below ---------------------------------------------------------------------------------------

export type RawData = string | ArrayBuffer | ArrayBufferView | Blob;

export interface EnginePacket {
  type: "open" | "close" | "ping" | "pong" | "message" | "upgrade" | "noop" | "error";
  data?: RawData;
  options?: { compress?: boolean };
}

interface EngineEvents {
  open: () => void;
  handshake: (data: {
    sid: string;
    upgrades: string[];
    pingInterval: number;
    pingTimeout: number;
    maxPayload: number;
  }) => void;
  packet: (packet: EnginePacket) => void;
  packetCreate: (packet: EnginePacket) => void;
  data: (data: RawData) => void;
  message: (data: RawData) => void;
  drain: () => void;
  flush: () => void;
  heartbeat: () => void;
  ping: () => void;
  pong: () => void;
  error: (error: Error) => void;
  upgrading: (transport: Transport) => void;
  upgrade: (transport: Transport) => void;
  upgradeError: (error: Error) => void;
  close: (reason: string, description?: DisconnectDescription) => void;
}

/** One connection. */
export declare class Engine extends Emitter<{}, {}, EngineEvents> {
  constructor(uri?: string, options?: EngineOptions);
  static readonly protocol: number;
  id: string | null | undefined;
  transport: Transport;
  binaryType: "arraybuffer" | "blob";
  readyState: "opening" | "open" | "closing" | "closed";
  writeBuffer: EnginePacket[];
  write(data: RawData, options?: { compress?: boolean }, sent?: () => void): this;
  send(data: RawData, options?: { compress?: boolean }, sent?: () => void): this;
  close(): this;
}

export declare class Transport extends Emitter<DefaultEventsMap> {
  constructor(options: object);
  readonly name: string;
  query: { [key: string]: string };
  writable: boolean;
  open(): this;
  close(): this;
  send(packets: EnginePacket[]): void;
}
export type TransportClass = new (options: any) => Transport;

/** Polling by XMLHttpRequest. */
export declare class XHR extends Transport {}
export { XHR as NodeXHR };
/** Polling by fetch. */
export declare class Fetch extends Transport {}
declare class WS extends Transport {}
export { WS as WebSocket, WS as NodeWebSocket };

export declare const PacketType: {
  readonly CONNECT: 0;
  readonly DISCONNECT: 1;
  readonly EVENT: 2;
  readonly ACK: 3;
  readonly CONNECT_ERROR: 4;
  readonly BINARY_EVENT: 5;
  readonly BINARY_ACK: 6;
};

export interface Packet {
  type: number;
  nsp: string;
  data?: any;
  id?: number;
}

type Transform = (this: any, key: string, value: any) => any;

export declare class Encoder {
  constructor(replacer?: Transform);
  /** Returns the packet's text, then its attachments. */
  encode(packet: Packet): RawData[];
}

export declare class Decoder extends Emitter<{}, {}, { decoded: (packet: Packet) => void }> {
  constructor(options?: Transform | { reviver?: Transform; maxAttachments?: number });
  /** Takes a text or an attachment; throws for what the protocol forbids. */
  add(data: RawData): void;
  destroy(): void;
}

export declare function encodePayload(
  packets: EnginePacket[],
  done: (payload: string) => void,
): void;
export declare function decodePayload(
  payload: string,
  binaryType?: "arraybuffer" | "blob",
): EnginePacket[];

/** Takes an address apart, relative to that of the page. */
export declare function url(
  uri?: string,
  path?: string,
  from?: { protocol: string; host: string },
): {
  source: string;
  protocol: string;
  host: string;
  port: string;
  path: string;
  query: string;
  id: string;
};

// --- io() ----------------------------------------------------------------------------------------

/** Revision of the Socket.IO protocol. */
export declare const protocol: 5;

interface IO {
  (options?: ManagerOptions & SocketOptions): Socket;
  (uri?: string, options?: ManagerOptions & SocketOptions): Socket;
  io: IO;
  connect: IO;
  lookup: IO;
  protocol: typeof protocol;
  Manager: typeof Manager;
  Socket: typeof Socket;
  Engine: typeof Engine;
  Encoder: typeof Encoder;
  Decoder: typeof Decoder;
  PacketType: typeof PacketType;
  Fetch: typeof Fetch;
  XHR: typeof XHR;
  WebSocket: typeof WS;
  encodePayload: typeof encodePayload;
  decodePayload: typeof decodePayload;
  url: typeof url;
}

/** Connects to a namespace: that of the address's path. */
export declare const io: IO;
export { io as connect, io as lookup, io as default };

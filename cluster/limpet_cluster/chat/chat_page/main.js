// The chat: its connection, its rooms, and what the person in front of it does.
//
// `?transports=polling`, `websocket` or both in the address choose how it connects.

import { $, announce, copyOf, memory, newId, pause, withText } from "./page.js";
import { Pictures } from "./pictures.js";
import { Message, Room } from "./room.js";

const PATIENCE = 10_000; // milliseconds for an answer of the server
const TELL_TYPING = 2000; // milliseconds between two tellings that we type
const SHOW_BACK = 3000; // milliseconds for which the page says that the connection is back
const RECEIPTS = 250; // milliseconds in which receipts gather
const TRANSPORTS = { polling: "long polling", websocket: "WebSocket" };

const rooms = new Map(); // by name, in the order in which they were entered
let current = null; // the room on the screen
let me = "";
let worker = "";
let lostAt = 0; // when the connection was lost; 0 while there is one
let welcomed = false; // whether there ever was one

// --- the connection ---------------------------------------------------------

const wanted = new URLSearchParams(location.search).get("transports") ?? "";
const transports = wanted.split(",").filter((name) => name in TRANSPORTS);

const socket = globalThis.io?.({
  path: document.documentElement.dataset.path,
  autoConnect: false,
  auth: (give) => give({ name: me }),
  ...(transports.length ? { transports } : {}),
});

/** Send an event and return what the server answers. It throws when the connection is lost first. */
async function ask(event, ...values) {
  try {
    if (!socket.connected) throw new Error("There is no connection.");
    return await socket.timeout(PATIENCE).emitWithAck(event, ...values);
  } catch (error) {
    error.lost = true;
    throw error;
  }
}

function listen() {
  socket.on("connect", connected);
  socket.on("disconnect", () => {
    lostAt = Date.now();
    for (const room of rooms.values()) room.lost();
    showConnection();
    showBanner("lost", "Connection lost. Trying again…");
    if (!socket.active) setTimeout(() => socket.connect(), 1000); // the server has ended it
  });
  socket.on("connect_error", (error) => {
    showConnection();
    if (!socket.active) setTimeout(() => socket.connect(), 5000); // refused, so said the server
    const why = socket.active ? "" : ` ${error.message}`;
    showBanner("lost", `${welcomed ? "Connection lost" : "No connection"}.${why} Trying again…`);
  });
  socket.io.on("reconnect_attempt", (attempt) => {
    showBanner("lost", `Connection lost. Trying again, attempt ${attempt}…`);
  });
  socket.on("welcome", (told) => {
    me = told.user;
    worker = told.worker;
    pictures.limits = told.limits;
    $("file").accept = told.limits.types.join();
    $("text").maxLength = told.limits.text;
    showConnection();
  });
  socket.on("people", (told) => rooms.get(told.room)?.setPeople(told));
  socket.on("entered", ({ room, user }) => rooms.get(room)?.came(user));
  socket.on("left", ({ room, user }) => rooms.get(room)?.went(user));
  socket.on("renamed", ({ room, from, to }) => rooms.get(room)?.renamed(from, to));
  socket.on("typing", ({ room, user, on }) => {
    if (on) rooms.get(room)?.startedTyping(user);
    else rooms.get(room)?.stoppedTyping(user);
  });
  socket.on("said", (told) => {
    const room = rooms.get(told.room);
    if (!room) return;
    let message = room.entries.get(told.id);
    if (!message) room.add((message = new Message({ ...told, mine: false })));
    message.whenSeen().then(() => seen(room, told.from, told.id));
  });
  socket.on("shown", ({ room, ids }) => {
    for (const id of ids) rooms.get(room)?.entries.get(id)?.tick(2);
  });
  socket.on("picture", (told) => {
    const room = rooms.get(told.room);
    if (room) pictures.onPicture(room, told);
  });
  socket.on("piece", (told) => pictures.onPiece(told));
  socket.on("missing", (told) => pictures.onMissing(told));
  socket.on("gap", () => {
    for (const room of rooms.values()) room.notice("Messages of others may be missing here.");
  });
}

async function connected() {
  const away = lostAt && Math.max(1, Math.round((Date.now() - lostAt) / 1000));
  lostAt = 0;
  welcomed = true;
  showBanner("", "");
  socket.io.engine.on("upgrade", showConnection);
  showConnection();
  await Promise.all([...rooms.values()].map((room) => enter(room, away)));
  if (away && socket.connected) {
    showBanner("back", `Connected again, by worker ${worker}.`);
    await pause(SHOW_BACK);
  }
  if (socket.connected && $("banner").className !== "banner lost") showBanner("", "");
}

/** Enter a room, for the first time or again, and send what waits for that. */
async function enter(room, away) {
  let answer;
  try {
    answer = await ask("enter", room.name);
  } catch {
    return; // the next connection enters it
  }
  if (!answer.ok) {
    room.notice(`You cannot enter. ${answer.error}`);
    return;
  }
  room.entered = true;
  room.setPeople(answer);
  if (away) room.notice(`You were away for ${away} s. What was said meanwhile is not here.`);
  deliver(room);
  pictures.resume(room);
  sendReceipts();
}

/** Send what was not acknowledged, in order. Ids stay, so nothing is shown twice. */
async function deliver(room) {
  if (room.delivering) return;
  room.delivering = true;
  while (room.entered && room.unsent.size) {
    const [message] = room.unsent.values();
    try {
      const answer = await ask("say", room.name, message.text, message.id);
      room.unsent.delete(message.id);
      if (answer.ok) message.tick(1, answer.at);
      else message.refuse(answer.error);
    } catch {
      await pause(500);
    }
  }
  room.delivering = false;
}

// --- receipts ----------------------------------------------------------------

const receipts = new Map(); // ids by room and sender
let receiptsTimer = 0;

/** Tell a sender that something of theirs is on the screen here, soon and with others. */
function seen(room, from, id) {
  receiptsTimer ||= setTimeout(sendReceipts, RECEIPTS);
  const key = JSON.stringify([room.name, from]);
  receipts.set(key, [...(receipts.get(key) ?? []), id].slice(-50));
}

/** The connection was lost before the server had it. */
function tellAgain(name, from, ids) {
  const room = rooms.get(name);
  if (room) for (const id of ids) seen(room, from, id);
}

function sendReceipts() {
  clearTimeout(receiptsTimer);
  receiptsTimer = 0;
  for (const [key, ids] of receipts) {
    const [name, from] = JSON.parse(key);
    if (rooms.has(name) && !rooms.get(name).entered) continue; // `enter` comes back to it
    receipts.delete(key);
    if (rooms.has(name)) ask("shown", name, from, ids).catch(() => tellAgain(name, from, ids));
  }
}

const pictures = new Pictures(ask, seen);

// --- what is on the screen ---------------------------------------------------

function showConnection() {
  const transport = socket.connected && socket.io.engine?.transport.name;
  $("connection").classList.toggle("lost", !transport);
  $("connection-text").textContent = transport
    ? `${TRANSPORTS[transport] ?? transport}${worker && `, worker ${worker}`}`
    : welcomed ? "reconnecting" : "connecting";
}

function showBanner(kind, text) {
  $("banner").className = `banner ${kind}`;
  if ($("banner").textContent !== text) $("banner").textContent = text;
}

function showRoom(room) {
  if (current) {
    current.log.hidden = true;
    current.draft = $("text").value;
  }
  current = room;
  $("conversation").classList.toggle("nowhere", !room);
  for (const control of $("compose").elements) control.disabled = !room;
  if (room) {
    room.log.hidden = false;
    room.unread = 0;
    room.follow();
    $("text").value = room.draft;
    grow();
  }
  remember();
  showPeople();
  showRooms();
}

function showRooms() {
  const list = $("room-list");
  for (const item of [...list.children]) if (!rooms.has(item.dataset.room)) item.remove();
  for (const room of rooms.values()) {
    let item = [...list.children].find((one) => one.dataset.room === room.name);
    if (!item) {
      item = copyOf("room-template");
      item.dataset.room = room.name;
      item.querySelector("bdi").textContent = room.name;
      item.querySelector(".leave").setAttribute("aria-label", `Leave ${room.name}`);
      item.querySelector(".leave").title = `Leave ${room.name}`;
      item.querySelector(".go").addEventListener("click", () => go(room));
      item.querySelector(".leave").addEventListener("click", () => leave(room));
      list.append(item);
    }
    item.querySelector(".go").toggleAttribute("aria-current", room === current);
    showCount(item.querySelector(".badge"), room.unread);
  }
  const unread = [...rooms.values()].reduce((sum, room) => sum + room.unread, 0);
  showCount($("unread"), unread);
  document.title = `${unread ? `(${unread}) ` : ""}${current ? `${current.name} · ` : ""}limpet chat`;
}

function showCount(badge, count) {
  badge.hidden = !count;
  badge.replaceChildren(`${count || ""}`, withText("span", " new", "spoken"));
}

function showPeople() {
  $("room-name").textContent = current?.name ?? "No room";
  $("typing").textContent = current?.typists ?? "";
  $("people-count").textContent = current?.count ?? "";
  const names = [...(current?.users ?? [])].sort((one, other) => one.localeCompare(other));
  const items = names.map((name) => {
    const item = withText("li", "");
    item.append(withText("bdi", name));
    if (name === me) item.append(withText("span", " (you)", "quiet"));
    return item;
  });
  $("people-list").replaceChildren(...items);
  const many = current && !current.users;
  $("people-note").textContent = !many ? "" : current.count ? `${current.count} people` : "Not known right now.";
  if (document.activeElement !== $("name")) $("name").value = me;
}

/** Write down where we are, for a reload, and in the address, for others. */
function remember() {
  memory.set("limpet.name", me, true);
  memory.set("limpet.rooms", JSON.stringify([...rooms.keys()]));
  const place = current ? `#${encodeURIComponent(current.name)}` : "";
  history.replaceState(null, "", location.pathname + location.search + place);
}

// --- what somebody does ------------------------------------------------------

/** Go to a room; enter it if need be. */
function open(name) {
  let room = rooms.get(name);
  if (!room) {
    room = new Room(name);
    room.onchange = () => {
      if (room === current) showPeople();
      showRooms();
    };
    rooms.set(name, room);
    $("logs").append(room.log);
    if (socket.connected) enter(room);
  }
  go(room);
}

function go(room) {
  showRoom(room);
  closeDrawers();
  announce(`You are in ${room.name}.`);
  $("text").focus();
}

function leave(room) {
  rooms.delete(room.name);
  room.entered = false;
  pictures.leave(room);
  room.close();
  if (socket.connected) socket.emit("leave", room.name);
  if (current === room) {
    current = null;
    showRoom([...rooms.values()].at(-1) ?? null);
  } else {
    showRooms();
    remember();
  }
  announce(`You left ${room.name}.`);
  $("another-room").focus();
}

let toldTyping = 0;

function tellTyping(on) {
  if (!current?.entered || (on && Date.now() - toldTyping < TELL_TYPING) || (!on && !toldTyping)) return;
  toldTyping = on ? Date.now() : 0;
  socket.volatile.emit("typing", current.name, on);
}

function say() {
  const text = $("text").value.trim();
  if (!text || !current) return;
  const about = { id: newId(), user: me, at: Date.now() / 1000, mine: true, text };
  const message = new Message(about);
  current.add(message);
  current.follow(true);
  current.unsent.set(message.id, message);
  deliver(current);
  $("text").value = "";
  grow();
  tellTyping(false);
}

function sendFiles(files) {
  for (const file of files) {
    const why = pictures.refusal(file);
    if (why) current.notice(why);
    else pictures.send(current, file, me);
  }
}

/** As high as its text, within limits that the style sheet sets. */
function grow() {
  const box = $("text");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

const DRAWERS = [["show-rooms", "rooms"], ["show-people", "people"]];

function closeDrawers() {
  for (const [button, drawer] of DRAWERS) {
    $(button).setAttribute("aria-expanded", "false");
    $(drawer).classList.remove("open");
  }
}

function act() {
  $("come-in").addEventListener("submit", (event) => {
    event.preventDefault();
    const [name, room] = [$("door-name").value.trim(), $("door-room").value.trim()];
    if (!name || !room) $("door-error").textContent = "Please fill in both.";
    else comeIn(name, [room], room);
  });
  $("enter-room").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = $("another-room").value.trim();
    $("another-room").value = "";
    if (name) open(name);
  });
  $("rename").addEventListener("submit", async (event) => {
    event.preventDefault();
    const answer = await ask("name", $("name").value).catch((error) => ({ ok: false, error: error.message }));
    if (answer.ok) {
      me = answer.name;
      remember();
      announce(`You are now called ${me}.`);
      closeDrawers();
      $("text").focus();
    } else announce(`Your name stays. ${answer.error}`);
    showPeople();
  });
  $("compose").addEventListener("submit", (event) => {
    event.preventDefault();
    say();
    $("text").focus();
  });
  $("text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    say();
  });
  $("text").addEventListener("input", () => {
    grow();
    tellTyping(Boolean($("text").value));
  });
  $("text").addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    sendFiles(event.clipboardData.files);
  });
  $("picture").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => {
    sendFiles($("file").files);
    $("file").value = "";
    $("text").focus();
  });
  $("newest").addEventListener("click", () => {
    current.follow(true);
    $("text").focus();
  });
  for (const [button, drawer] of DRAWERS) {
    $(button).addEventListener("click", () => {
      const open = !$(drawer).classList.contains("open");
      closeDrawers();
      $(button).setAttribute("aria-expanded", `${open}`);
      $(drawer).classList.toggle("open", open);
      if (open) $(drawer).querySelector("h2").focus();
    });
    $(drawer).addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !$(drawer).classList.contains("open")) return;
      closeDrawers();
      $(button).focus();
    });
  }
  document.addEventListener("visibilitychange", () => {
    if (document.hidden || !current) return;
    current.unread = 0;
    showRooms();
  });
}

// --- the beginning -----------------------------------------------------------

function comeIn(name, names, place) {
  me = name;
  $("door").hidden = true;
  $("chat").hidden = false;
  socket.connect();
  for (const one of names) open(one);
  open(place);
}

function begin() {
  const place = decode(location.hash.slice(1)).trim().slice(0, 80);
  if (place) $("door-room").value = place;
  $("door-name").value = memory.get("limpet.name") ?? "";
  const before = decodeList(memory.get("limpet.rooms"));
  if ($("door-name").value && before.length) comeIn($("door-name").value, before, place || before[0]);
  else ($("door-name").value ? $("door-room") : $("door-name")).focus();
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

function decodeList(text) {
  try {
    return JSON.parse(text).filter((name) => typeof name === "string");
  } catch {
    return [];
  }
}

if (socket) {
  listen();
  act();
  begin();
} else {
  showBanner("lost", "The Socket.IO client could not be loaded, so there is no chat here.");
}

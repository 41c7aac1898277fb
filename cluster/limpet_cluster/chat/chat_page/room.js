// A room as this page shows it: what was said, who is there, who types.

import { $, copyOf, listed, sizeOf, withText } from "./page.js";

const KEPT = 300; // entries of a room that stay on the page
const GROUPED = 5 * 60; // seconds in which messages of one person share a heading
const TYPES_FOR = 4000; // milliseconds after which somebody who types no more is forgotten
const TICKS = [
  ["", "not sent yet"],
  ["✓", "the server has it"],
  ["✓✓", "somebody has seen it"],
];

// Tells when an entry is really on the screen: in the room that is shown, and scrolled to.
const onScreen = new IntersectionObserver((changes) => {
  for (const { isIntersecting, target } of changes) {
    if (isIntersecting && target.onScreen) {
      onScreen.unobserve(target);
      target.onScreen();
    }
  }
});

const hueOf = (user) => [...user].reduce((sum, letter) => (sum * 61 + letter.codePointAt(0)) % 1009, 0) % 8;

/** Something that was said or shown. */
export class Entry {
  constructor({ id, user, at, mine }) {
    this.id = id;
    this.user = user;
    this.mine = mine;
    this.at = at;
    this.element = copyOf("message-template");
    this.element.classList.toggle("mine", mine);
    const face = this.element.querySelector(".face");
    face.textContent = [...user][0].toUpperCase();
    face.classList.add(`hue-${hueOf(user)}`);
    this.element.querySelector(".user").textContent = user;
    this.ticks = this.element.querySelector(".ticks");
    if (!mine) this.ticks.remove();
    this.body = this.element.querySelector(".body");
    this.reached = 0;
    this.#dated(at);
  }

  /** One tick: the server has it. Two: it was on somebody's screen. */
  tick(reached, at) {
    if (at) this.#dated(at);
    if (!this.mine || reached <= this.reached) return;
    this.reached = reached;
    const [sign, meaning] = TICKS[reached];
    this.ticks.textContent = sign;
    this.ticks.setAttribute("aria-label", meaning);
    this.ticks.title = meaning;
    this.ticks.dataset.reached = reached;
  }

  /** The server did not take it. */
  refuse(why) {
    this.ticks.remove();
    this.body.after(withText("p", `Not sent. ${why}`, "error"));
  }

  /** A promise that is kept once it has been on the screen. */
  whenSeen() {
    this.seen ??= new Promise((done) => {
      this.element.onScreen = done;
      onScreen.observe(this.element);
    });
    return this.seen;
  }

  forget() {
    onScreen.unobserve(this.element);
    this.element.remove();
  }

  #dated(at) {
    const when = new Date(at * 1000);
    const time = this.element.querySelector("time");
    time.dateTime = when.toISOString();
    time.textContent = when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  }
}

/** Words. */
export class Message extends Entry {
  constructor(about) {
    super(about);
    this.text = about.text;
    this.body.textContent = about.text;
  }
}

/** A picture, and how far it is. */
export class PictureEntry extends Entry {
  constructor(about) {
    super(about);
    this.title = about.name;
    this.size = about.size;
    this.figure = copyOf("picture-template");
    this.figure.querySelector(".title").textContent = about.name;
    const bar = this.figure.querySelector("progress");
    bar.setAttribute("aria-label", `${about.mine ? "Sending" : "Receiving"} ${about.name}`);
    this.body.append(this.figure);
    this.progress(0);
  }

  /** So many bytes are there. */
  progress(bytes) {
    this.figure.querySelector("progress").value = bytes / this.size;
    this.#state(`${Math.floor((100 * bytes) / this.size)} % of ${sizeOf(this.size)}`);
  }

  /** It went all the way. */
  done() {
    this.figure.querySelector("progress").hidden = true;
    this.#state(sizeOf(this.size));
  }

  /** It will not come. */
  fail(why) {
    this.figure.querySelector("progress").hidden = true;
    this.#state(why);
  }

  /** Show the picture; settles once it is there. */
  show(blob) {
    this.forgetPicture();
    this.url = URL.createObjectURL(blob);
    const image = this.figure.querySelector("img");
    image.alt = `Picture of ${this.user}: ${this.title}`;
    image.src = this.url;
    image.hidden = false;
    const save = this.figure.querySelector("a");
    save.href = this.url;
    save.download = this.title;
    save.hidden = this.mine;
    return image.decode().catch(() => {
      image.hidden = true;
      this.#state("This browser cannot show it.");
    });
  }

  forgetPicture() {
    if (this.url) URL.revokeObjectURL(this.url);
  }

  forget() {
    this.forgetPicture();
    super.forget();
  }

  #state(text) {
    this.figure.querySelector(".state").textContent = text;
  }
}

/** One room that this page is in. */
export class Room {
  constructor(name) {
    this.name = name;
    this.entered = false; // whether the server knows, since the last connection
    this.unsent = new Map(); // what the server has not acknowledged, by id, in order
    this.entries = new Map(); // what is on the page, by id
    this.users = null; // a Set; null: a crowd, or nobody knows
    this.count = null;
    this.typing = new Map(); // timers, by user
    this.unread = 0;
    this.draft = "";
    this.atEnd = true; // whether it follows what is said
    this.top = 0; // how far it was scrolled
    this.log = document.createElement("div");
    this.log.className = "log";
    this.log.setAttribute("role", "log");
    this.log.setAttribute("aria-label", `Messages in ${name}`);
    this.log.tabIndex = 0; // so that a keyboard can scroll it
    this.log.hidden = true;
    this.log.append(withText("p", `This is ${name}. What was said before you came is not kept.`, "notice"));
    this.log.addEventListener("scroll", () => this.#scrolled());
    // What grows later, like a picture, must not push the end out of sight.
    this.grows = new ResizeObserver(() => this.follow());
    this.grows.observe(this.log);
    this.last = null;
    this.onchange = () => {}; // called when people, typing or unread have changed
  }

  /** Whether this is the room on the screen. */
  get shown() {
    return !this.log.hidden;
  }

  /** Add an entry; false when it is there already. */
  add(entry) {
    if (this.entries.has(entry.id)) return false;
    const follows = this.last;
    const grouped = follows && follows.user === entry.user && entry.at - follows.at < GROUPED;
    entry.element.classList.toggle("again", Boolean(grouped && follows.mine === entry.mine));
    this.last = entry;
    this.entries.set(entry.id, entry);
    this.#append(entry.element);
    this.stoppedTyping(entry.user);
    if (!entry.mine && (!this.shown || document.hidden)) {
      this.unread += 1;
      this.onchange();
    }
    return true;
  }

  /** Add a line about the room itself. */
  notice(text) {
    this.last = null;
    this.#append(withText("p", text, "notice"));
  }

  /** Scroll to the end, unless somebody reads further up. */
  follow(force = false) {
    if (force) this.atEnd = true;
    if (this.atEnd) this.log.scrollTop = this.log.scrollHeight;
    if (this.shown) $("newest").hidden = this.atEnd;
  }

  // --- people ---------------------------------------------------------------

  /** Take the whole list. */
  setPeople({ users, count }) {
    this.users = users && new Set(users);
    this.count = users ? users.length : count;
    this.onchange();
  }

  came(user) {
    if (!this.users || this.users.has(user)) return;
    this.users.add(user);
    this.count = this.users.size;
    this.notice(`${user} came in`);
    this.onchange();
  }

  went(user) {
    this.stoppedTyping(user);
    if (!this.users?.delete(user)) return;
    this.count = this.users.size;
    this.notice(`${user} left`);
    this.onchange();
  }

  renamed(from, to) {
    this.stoppedTyping(from);
    if (!this.users || (!this.users.has(from) && this.users.has(to))) return;
    this.users.delete(from);
    this.users.add(to);
    this.notice(`${from} is now called ${to}`);
    this.onchange();
  }

  startedTyping(user) {
    clearTimeout(this.typing.get(user));
    if (this.typing.size > 20) return;
    this.typing.set(user, setTimeout(() => this.stoppedTyping(user), TYPES_FOR));
    this.onchange();
  }

  stoppedTyping(user) {
    clearTimeout(this.typing.get(user));
    if (this.typing.delete(user)) this.onchange();
  }

  /** Who types, in words. */
  get typists() {
    const names = [...this.typing.keys()];
    if (names.length > 3) return "Several people are typing…";
    return names.length ? `${listed(names)} ${names.length > 1 ? "are" : "is"} typing…` : "";
  }

  /** The connection was lost: nothing is known until it is back. */
  lost() {
    this.entered = false;
    for (const user of [...this.typing.keys()]) this.stoppedTyping(user);
  }

  /** Take it off the page. */
  close() {
    this.lost();
    this.grows.disconnect();
    for (const entry of this.entries.values()) entry.forget();
    this.log.remove();
  }

  #append(element) {
    this.log.append(element);
    this.grows.observe(element);
    while (this.entries.size > KEPT || this.log.childElementCount > 2 * KEPT) this.#dropOldest();
    this.follow();
  }

  #dropOldest() {
    const oldest = this.log.firstElementChild;
    this.grows.unobserve(oldest);
    oldest.remove();
    for (const [id, entry] of this.entries) {
      if (entry.element === oldest) {
        entry.forget();
        this.entries.delete(id);
      }
      break; // the map is in the order of the page
    }
  }

  #scrolled() {
    if (!this.shown) return;
    const { scrollTop, scrollHeight, clientHeight } = this.log;
    if (scrollHeight - scrollTop - clientHeight < 40) this.atEnd = true;
    else if (scrollTop < this.top) this.atEnd = false; // somebody went up; what grew did not do this
    this.top = scrollTop;
    $("newest").hidden = this.atEnd;
  }
}

// Pictures: sent in pieces that are acknowledged, received in pieces, of which missing ones are
// asked for. The server keeps nothing of them; a sender keeps its last few files at hand.

import { newId } from "./page.js";
import { PictureEntry } from "./room.js";

const AT_ONCE = 3; // pieces under way to the server
const KEPT = 4; // own pictures that others may ask pieces of: as many as the server knows
const QUEUED = 200; // pieces that others may wait for
const ASKED = 4; // pieces asked for at a time, where they come quickly
const QUICK = 1000; // milliseconds in which they come then
const COMING = 8; // pictures that may be on their way to us
const QUIET = 400; // milliseconds without a piece after which missing ones are asked for
const UNANSWERED = [1500, 15_000]; // milliseconds after which they are asked for again, least and most
const PATIENCE = 90_000; // milliseconds without a piece after which a picture is given up

/**
 * The pictures of this page.
 *
 * @param ask sends an event and returns the promise of the server's answer
 * @param seen tells the sender of an entry, once it has been on the screen
 */
export class Pictures {
  constructor(ask, seen) {
    this.ask = ask;
    this.seen = seen;
    this.limits = null; // as the server says
    this.sent = new Map(); // by id, the oldest first
    this.coming = new Map(); // by id
    this.again = []; // pieces that others missed
    this.repeating = false;
  }

  // --- sending --------------------------------------------------------------

  /** Why a file cannot be sent; an empty string when it can. */
  refusal(file) {
    if (!this.limits) return "There is no connection yet.";
    if (!this.limits.types.includes(file.type)) return `${file.name} is not a picture that can be sent.`;
    if (file.size > this.limits.picture) {
      return `${file.name} is too large: at most ${this.limits.picture >> 20} MiB can be sent.`;
    }
    return file.size ? "" : `${file.name} is empty.`;
  }

  /** Send a file to a room. */
  send(room, file, user) {
    const name = file.name.slice(-this.limits.room) || "picture";
    const about = { id: newId(), user, at: Date.now() / 1000, mine: true, name, size: file.size };
    const entry = new PictureEntry(about);
    room.add(entry);
    room.follow(true);
    entry.show(file);
    const picture = { room, file, entry, name, id: about.id, piece: this.limits.piece, passed: 0, done: false };
    this.sent.set(picture.id, picture);
    const settled = [...this.sent.values()].filter((one) => one.done);
    if (this.sent.size > KEPT && settled.length) this.sent.delete(settled[0].id);
    this.#upload(picture);
  }

  /**
   * Go on after the connection was lost: say under which id we can be asked for pieces now, send
   * what the server had not got, and ask for what we had not got.
   */
  resume(room) {
    for (const picture of this.sent.values()) {
      if (picture.room === room && !picture.failed) this.#upload(picture);
    }
    for (const picture of this.coming.values()) {
      if (picture.room !== room) continue;
      picture.unanswered = 1; // its sender may have moved meanwhile
      this.#watch(picture);
    }
  }

  /** Forget the pictures of a room. */
  leave(room) {
    for (const all of [this.sent, this.coming]) {
      for (const [id, one] of all) {
        if (one.room !== room) continue;
        one.done = true;
        clearTimeout(one.timer);
        all.delete(id);
      }
    }
  }

  async #upload(picture) {
    if (picture.uploading) return;
    picture.uploading = true;
    try {
      await this.#pass(picture);
    } catch {
      // The connection was lost, or nobody answered: `resume` begins anew.
    } finally {
      picture.uploading = false;
    }
  }

  async #pass(picture) {
    const { id, file, entry, room, name, passed } = picture;
    const about = { id, type: file.type, size: file.size, name, next: passed };
    const answer = await this.ask("picture", room.name, about);
    if (!answer.ok) return this.#refused(picture, answer.error);
    const underWay = new Set();
    let failed = null;
    for (let number = passed; number * picture.piece < file.size && !failed; number += 1) {
      const data = await this.#piece(picture, number);
      while (underWay.size >= AT_ONCE) await Promise.race(underWay);
      const passing = this.ask("piece", id, number, data)
        .then((taken) => {
          if (!taken.ok) throw new Error(taken.error);
          picture.passed = number + 1;
          entry.progress(taken.got);
        })
        .catch((error) => (failed ??= error))
        .finally(() => underWay.delete(passing));
      underWay.add(passing);
    }
    await Promise.all(underWay);
    if (failed?.lost) throw failed;
    if (failed) return this.#refused(picture, failed.message);
    picture.done = true;
    entry.tick(1, answer.at);
    entry.done();
  }

  #refused(picture, why) {
    picture.done = picture.failed = true;
    picture.entry.fail("Not sent.");
    picture.entry.refuse(why);
  }

  #piece({ file, piece }, number) {
    return file.slice(number * piece, (number + 1) * piece).arrayBuffer();
  }

  /** Somebody missed some pieces. */
  async onMissing({ id, by, numbers }) {
    for (const number of numbers) {
      const waits = this.again.some((one) => one.id === id && one.by === by && one.number === number);
      if (!waits && this.again.length < QUEUED) this.again.push({ id, by, number });
    }
    if (this.repeating) return;
    this.repeating = true;
    try {
      while (this.again.length) {
        const { id, by, number } = this.again.shift();
        const picture = this.sent.get(id);
        if (!picture || number >= picture.passed) continue;
        await this.ask("piece", id, number, await this.#piece(picture, number), by);
      }
    } catch {
      this.again = []; // they ask again
    } finally {
      this.repeating = false;
    }
  }

  // --- receiving ------------------------------------------------------------

  /** A picture is announced, for the first time or once more. */
  onPicture(room, about) {
    const known = this.coming.get(about.id);
    if (known) {
      known.from = about.from; // its sender has a new connection
      known.last = Date.now();
      known.wait = UNANSWERED[0];
      return this.#watch(known);
    }
    const shown = room.entries.get(about.id);
    if (shown) {
      if (shown.whole) this.#tellSeen(room, shown, about.from);
      return;
    }
    const pieces = Math.ceil(about.size / about.piece);
    if (about.next >= pieces) return; // it was there before we were
    const entry = new PictureEntry({ ...about, mine: false });
    room.add(entry);
    if (this.coming.size >= COMING) return entry.fail("Too many pictures at a time.");
    const picture = {
      room,
      entry,
      about,
      from: about.from,
      pieces: new Array(pieces).fill(null),
      bytes: 0,
      asked: new Set(), // numbers of pieces that we asked for and that did not come yet
      askedAt: 0,
      ask: 1, // how many to ask for
      wait: UNANSWERED[0], // how long to wait for them
      unanswered: 0, // how often nothing came
      last: Date.now(),
    };
    this.coming.set(about.id, picture);
    this.#watch(picture);
  }

  /** A piece came. */
  onPiece({ id, from, number, data }) {
    const picture = this.coming.get(id);
    if (!picture || picture.pieces[number] !== null) return;
    picture.pieces[number] = data;
    picture.from = from;
    picture.unanswered = 0;
    picture.bytes += data.byteLength;
    picture.last = Date.now();
    picture.entry.progress(picture.bytes);
    if (!picture.pieces.includes(null)) return this.#complete(picture);
    if (!picture.asked.size) return this.#watch(picture);
    if (!picture.asked.delete(number) || picture.asked.size) return;
    const took = Date.now() - picture.askedAt;
    picture.ask = took < QUICK ? Math.min(2 * picture.ask, ASKED) : 1;
    picture.wait = Math.max(4 * took, UNANSWERED[0]);
    this.#askFor(picture);
  }

  async #complete(picture) {
    const { room, entry, about } = picture;
    this.coming.delete(about.id);
    clearTimeout(picture.timer);
    await entry.show(new Blob(picture.pieces, { type: about.type }));
    entry.done();
    entry.whole = true;
    this.#tellSeen(room, entry, picture.from);
  }

  #tellSeen(room, entry, from) {
    entry.whenSeen().then(() => this.seen(room, from, entry.id));
  }

  /** Ask for what is missing, unless a piece comes before. */
  #watch(picture, wait = QUIET) {
    clearTimeout(picture.timer);
    picture.timer = setTimeout(() => this.#askFor(picture), wait);
  }

  /** Ask for the first pieces that are missing; no more than the way to us can take. */
  #askFor(picture) {
    if (Date.now() - picture.last > PATIENCE) {
      this.coming.delete(picture.about.id);
      return picture.entry.fail("It did not arrive completely.");
    }
    const missing = picture.pieces.flatMap((piece, number) => (piece ? [] : [number]));
    picture.asked = new Set(missing.slice(0, picture.ask));
    picture.askedAt = Date.now();
    const { room, from, about } = picture;
    // Who does not answer may have a new connection by now: then the whole room is asked.
    const whom = picture.unanswered++ ? null : from;
    this.ask("missing", room.name, whom, about.id, [...picture.asked]).catch(() => {});
    picture.wait = Math.min(picture.wait, UNANSWERED[1]);
    this.#watch(picture, picture.wait);
    picture.wait *= 2; // the next time, unless they come
  }
}

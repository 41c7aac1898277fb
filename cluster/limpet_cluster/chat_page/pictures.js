// Pictures: sent in pieces that are acknowledged, received in pieces, of which missing ones are
// asked for. The server keeps nothing of them; a sender keeps its last few files at hand.

import { newId } from "./page.js";
import { PictureEntry } from "./room.js";

const AT_ONCE = 3; // pieces under way to the server
const KEPT = 4; // own pictures that others may ask pieces of: as many as the server knows
const QUEUED = 200; // pieces that others may wait for
const ASKED = 4; // pieces asked for at a time
const COMING = 8; // pictures that may be on their way to us
const QUIET = 400; // milliseconds without a piece after which missing ones are asked for
const PATIENCE = 60_000; // milliseconds without a piece after which a picture is given up

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

  /** Begin anew with what the server had not got of a room's pictures when the connection was lost. */
  resume(room) {
    for (const picture of this.sent.values()) {
      if (picture.room === room && !picture.done) this.#upload(picture);
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
    const { id, file, entry, room, name } = picture;
    const answer = await this.ask("picture", room.name, { id, type: file.type, size: file.size, name });
    if (!answer.ok) return this.#refused(picture, answer.error);
    picture.passed = 0;
    const under_way = new Set();
    let failed = null;
    for (let number = 0; number * picture.piece < file.size && !failed; number += 1) {
      const data = await this.#piece(picture, number);
      while (under_way.size >= AT_ONCE) await Promise.race(under_way);
      const passing = this.ask("piece", id, number, data)
        .then((passed) => {
          if (!passed.ok) throw new Error(passed.error);
          picture.passed = Math.max(picture.passed, number + 1);
          entry.progress(passed.got);
        })
        .catch((error) => (failed ??= error))
        .finally(() => under_way.delete(passing));
      under_way.add(passing);
    }
    await Promise.all(under_way);
    if (failed instanceof Error && failed.lost) throw failed;
    if (failed) return this.#refused(picture, failed.message);
    picture.done = true;
    entry.tick(1, answer.at);
    entry.done();
  }

  #refused(picture, why) {
    picture.done = true;
    picture.entry.fail("Not sent.");
    picture.entry.refuse(why);
  }

  #piece({ file, piece }, number) {
    return file.slice(number * piece, (number + 1) * piece).arrayBuffer();
  }

  /** Somebody missed some pieces. */
  async onMissing({ id, by, numbers }) {
    for (const number of numbers) {
      if (this.again.length < QUEUED) this.again.push({ id, by, number });
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
      return;
    }
    if (room.entries.has(about.id)) return;
    const entry = new PictureEntry({ ...about, mine: false });
    room.add(entry);
    if (this.coming.size >= COMING) return entry.fail("Too many pictures at a time.");
    const picture = {
      room,
      entry,
      about,
      from: about.from,
      pieces: new Array(Math.ceil(about.size / about.piece)).fill(null),
      bytes: 0,
      asked: new Set(),
      last: Date.now(),
      wait: QUIET,
    };
    this.coming.set(about.id, picture);
    this.#watch(picture);
  }

  /** A piece came. */
  onPiece({ id, number, data }) {
    const picture = this.coming.get(id);
    if (!picture || picture.pieces[number] !== null) return;
    picture.pieces[number] = data;
    picture.bytes += data.byteLength;
    picture.last = Date.now();
    picture.wait = QUIET;
    picture.entry.progress(picture.bytes);
    const answered = picture.asked.delete(number) && !picture.asked.size;
    if (picture.pieces.includes(null)) {
      if (answered) this.#askFor(picture);
      else this.#watch(picture);
    } else this.#complete(picture);
  }

  async #complete(picture) {
    const { room, entry, about } = picture;
    this.coming.delete(about.id);
    clearTimeout(picture.timer);
    await entry.show(new Blob(picture.pieces, { type: about.type }));
    entry.done();
    entry.whenSeen(() => this.seen(room, picture.from, about.id));
  }

  #watch(picture) {
    clearTimeout(picture.timer);
    picture.timer = setTimeout(() => this.#askFor(picture), picture.wait);
  }

  /** Ask for the first pieces that are missing; wait longer each time that nothing comes. */
  #askFor(picture) {
    if (Date.now() - picture.last > PATIENCE) {
      this.coming.delete(picture.about.id);
      return picture.entry.fail("It did not arrive completely.");
    }
    const missing = picture.pieces.flatMap((piece, number) => (piece ? [] : [number]));
    picture.asked = new Set(missing.slice(0, ASKED));
    const { room, from, about } = picture;
    this.ask("missing", room.name, from, about.id, [...picture.asked]).catch(() => {});
    this.#watch(picture);
    picture.wait = Math.min(2 * picture.wait, 5000);
  }
}

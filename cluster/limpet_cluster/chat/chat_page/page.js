// Small things that the other files share: finding and making elements, and saying something aloud.

/** The element of an id. */
export const $ = (id) => document.getElementById(id);

/** A copy of a template's element. */
export const copyOf = (template) => $(template).content.firstElementChild.cloneNode(true);

/** A new element with a text: text stays text, whatever is in it. */
export function withText(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}

/** An id that nobody else has. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Wait. */
export const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

/** Let a screen reader say something that others see elsewhere. */
export function announce(text) {
  $("announce").textContent = text;
}

/** Bytes, as people read them. */
export function sizeOf(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** Names in a sentence. */
export function listed(names) {
  return new Intl.ListFormat("en").format(names);
}

/** What a page remembers, where the browser lets it. */
export const memory = {
  get(key) {
    try {
      return sessionStorage.getItem(key) ?? localStorage.getItem(key);
    } catch {
      return null;
    }
  },
  /** For this tab, and with `lasting` for those opened later. */
  set(key, value, lasting = false) {
    try {
      sessionStorage.setItem(key, value);
      if (lasting) localStorage.setItem(key, value);
    } catch {
      // A browser that forbids it: the next visit begins at the door.
    }
  },
};

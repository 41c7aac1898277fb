// Addresses: which server, which namespace, which connection.
import assert from "node:assert/strict";
import { test } from "node:test";

import { url } from "../../client/limpet_client/browser/limpet.js";

const at = (protocol, host, port) => ({ protocol, host, port, hostname: host.replace(/:\d*$/, "") });
const parts = ({ protocol, host, port, path, id }) => ({ protocol, host, port, path, id });

test("works with undefined", () => {
  const parsed = url(undefined, undefined, at("https:", "woot.com:4005", "4005"));
  assert.deepEqual(parts(parsed), {
    protocol: "https",
    host: "woot.com",
    port: "4005",
    path: "/",
    id: "https://woot.com:4005",
  });
});

test("works with relative paths", () => {
  const { protocol, host, port, path } = url("/test", undefined, at("https:", "woot.com:3000", "3000"));
  assert.deepEqual([protocol, host, port, path], ["https", "woot.com", "3000", "/test"]);
});

test("works with no protocol", () => {
  const { protocol, host, port } = url("localhost:3000", undefined, at("http:", "a.b", ""));
  assert.deepEqual([protocol, host, port], ["http", "localhost", "3000"]);
  assert.equal(url("example.org").protocol, "https");
});

test("works with no schema", () => {
  const { protocol, host, port } = url("//localhost:3000", undefined, at("http:", "a.b", ""));
  assert.deepEqual([protocol, host, port], ["http", "localhost", "3000"]);
});

test("forces ports for unique url ids", () => {
  const ids = ["http://google.com:80/", "http://google.com/", "https://google.com/"].map((uri) => url(uri).id);
  assert.equal(ids[0], ids[1]);
  assert.notEqual(ids[0], ids[2]);
  assert.notEqual(url("http://google.com/", "/test").id, ids[1]);
});

test("identifies the namespace", () => {
  assert.equal(url("/woot", undefined, at("http:", "a.b", "")).path, "/woot");
  assert.equal(url("http://google.com").path, "/");
  assert.equal(url("http://google.com/").path, "/");
  assert.equal(url("http://google.com/a/b?c=d#e").path, "/a/b");
  assert.equal(url("http://google.com/ü b").path, "/ü b");
});

test("works with ipv6", () => {
  const { protocol, host, port, id } = url("http://[::1]");
  assert.deepEqual([protocol, host, port, id], ["http", "::1", "80", "http://[::1]:80"]);
  assert.equal(url("ws://[2001:db8::1]:8080/x").id, "ws://[2001:db8::1]:8080");
});

test("works with ipv6 location", () => {
  const { host, port, id } = url(undefined, undefined, at("http:", "[::1]:", ""));
  assert.deepEqual([host, port, id], ["::1", "80", "http://[::1]:80"]);
});

test("works with a custom path", () => {
  const { id, path } = url("https://woot.com/some-namespace", "/some-path");
  assert.deepEqual([id, path], ["https://woot.com:443/some-path", "/some-namespace"]);
});

test("a query is no part of the namespace, nor are credentials of the host", () => {
  const { host, path, query } = url("https://ada:secret@woot.com/a?b=c&d=e");
  assert.deepEqual([host, path, query], ["woot.com", "/a", "b=c&d=e"]);
});

test("without a page an address must be whole", () => {
  assert.throws(() => url(), /needs a whole address/);
  assert.throws(() => url("/test"), /needs a whole address/);
});

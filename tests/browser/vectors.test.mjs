// The vectors that the Python side is held to as well.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Decoder, Encoder, decodePayload, encodePayload } from "../../client/limpet_client/browser/limpet.js";

const vectors = JSON.parse(readFileSync(new URL("../vectors/packets.json", import.meta.url)));
const bytes = (base64) => new Uint8Array(Buffer.from(base64, "base64")).buffer;
const base64 = (buffer) => Buffer.from(buffer).toString("base64");

/** A value of the file with its bytes. */
const alive = (value) => {
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map(alive);
  if ("$bytes" in value) return bytes(value.$bytes);
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, alive(one)]));
};

/** Decodes as a connection does; everything must be there. */
const decode = ({ text, attachments = [] }) => {
  const decoder = new Decoder();
  const packets = [];
  decoder.on("decoded", (packet) => packets.push(packet));
  decoder.add(text);
  for (const attachment of attachments) decoder.add(bytes(attachment));
  assert.equal(packets.length, 1);
  return packets[0];
};

for (const vector of vectors.packets) {
  test(`reads: ${vector.name}`, () => {
    const { data, ...packet } = decode(vector);
    const { data: wanted, ...rest } = vector.packet;
    assert.deepEqual(packet, rest);
    assert.deepEqual(data, alive(wanted));
  });
  if (vector.only === "decode") continue;
  test(`writes: ${vector.name}`, () => {
    const [text, ...attachments] = new Encoder().encode(alive(vector.packet));
    assert.equal(text, vector.text);
    assert.deepEqual(attachments.map(base64), vector.attachments ?? []);
  });
}

for (const vector of vectors.bad_packets) {
  test(`refuses: ${vector.name}`, () => {
    assert.throws(() => decode(vector), (error) => error.name === "Error");
  });
}

const plain = ({ type, data }) =>
  typeof data === "string" ? { type, data } : { type, bytes: base64(data) };

for (const vector of vectors.payloads) {
  test(`reads the payload: ${vector.name}`, () => {
    assert.deepEqual(decodePayload(vector.payload).map(plain), vector.packets);
  });
  test(`writes the payload: ${vector.name}`, () => {
    const packets = vector.packets.map((packet) => ({
      type: packet.type,
      data: "bytes" in packet ? bytes(packet.bytes) : packet.data,
    }));
    let written;
    encodePayload(packets, (payload) => (written = payload));
    assert.equal(written, vector.payload);
  });
}

for (const vector of vectors.bad_payloads) {
  test(`reads a bad payload up to its fault: ${vector.name}`, () => {
    const packets = decodePayload(vector.payload);
    assert.deepEqual(packets.pop(), { type: "error", data: "parser error" });
    assert.equal(packets.length, vector.good);
    assert.ok(packets.every(({ type }) => type === "message"));
  });
}

test("text while attachments are outstanding, and bytes that nobody waits for, are refused", () => {
  const decoder = new Decoder();
  assert.throws(() => decoder.add(new ArrayBuffer(1)), /got binary data/);
  decoder.add('51-["a",{"_placeholder":true,"num":0}]');
  assert.throws(() => decoder.add('2["b"]'), /got plaintext data/);
  decoder.destroy();
  const packets = [];
  decoder.on("decoded", ({ data }) => packets.push(data));
  decoder.add('2["b"]');
  assert.deepEqual(packets, [["b"]]);
  assert.throws(() => decoder.add(5), /Unknown type/);
});

test("the number of attachments can be limited otherwise", () => {
  assert.throws(() => new Decoder({ maxAttachments: 1 }).add('52-["a"]'), /too many attachments/);
  new Decoder({ maxAttachments: 20 }).add('520-["a"]');
});

test("a reviver and a replacer are those of JSON", () => {
  const decoder = new Decoder((key, value) => (value === "x" ? "y" : value));
  let data;
  decoder.on("decoded", (packet) => ({ data } = packet));
  decoder.add('2["a","x"]');
  assert.deepEqual(data, ["a", "y"]);
  const encoder = new Encoder((key, value) => (typeof value === "bigint" ? `${value}` : value));
  assert.deepEqual(encoder.encode({ type: 2, nsp: "/", data: ["a", 1n] }), ['2["a","1"]']);
});

test("values are written as JSON.stringify does", () => {
  const data = ["a", undefined, NaN, new Date(0), { toJSON: () => "b" }, { gone: undefined }];
  const [text] = new Encoder().encode({ type: 2, nsp: "/", data });
  assert.equal(text, '2["a",null,null,"1970-01-01T00:00:00.000Z","b",{}]');
});

test("each kind of bytes becomes an attachment", () => {
  const whole = new Uint8Array([0, 1, 2, 3, 4, 5, 6, 7]);
  const kinds = [
    whole.buffer,
    whole.subarray(2, 4),
    new DataView(whole.buffer, 1, 2),
    new Float32Array(2),
    Buffer.from("x"),
    new Blob(["x"]),
    { toJSON: () => whole },
  ];
  const [text, ...attachments] = new Encoder().encode({ type: 3, nsp: "/", id: 1, data: kinds });
  assert.ok(text.startsWith('67-1[{"_placeholder":true,"num":0},'));
  assert.equal(attachments.length, kinds.length);
  assert.deepEqual(attachments.slice(0, 6), kinds.slice(0, 6));
  assert.equal(attachments[6], whole);
});

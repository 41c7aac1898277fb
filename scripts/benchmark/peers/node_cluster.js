// The benchmark's events on socket.io in a Node cluster: sticky balancing, cluster adapter, N workers.
"use strict";

const cluster = require("cluster");
const http = require("http");
const { setupMaster, setupWorker } = require("@socket.io/sticky");
const { createAdapter, setupPrimary } = require("@socket.io/cluster-adapter");
const { serve } = require("./node_single.js");

if (cluster.isPrimary) {
  const server = http.createServer();
  // Round robin: the default counts only sessions already announced, and a burst lands on one worker.
  setupMaster(server, { loadBalancingMethod: "round-robin" });
  setupPrimary();
  cluster.setupPrimary({ serialization: "advanced" });
  let missing = Number(process.argv[3] || 2);
  cluster.on("message", (worker, message) => {
    if (message && message.type === "bench:ready" && --missing === 0) {
      server.listen(Number(process.argv[2]), "127.0.0.1", 4096);
    }
  });
  for (let i = missing; i > 0; i--) cluster.fork();
  process.on("SIGTERM", () => process.exit(0));
} else {
  const { io } = serve();
  io.adapter(createAdapter());
  setupWorker(io);
  process.send({ type: "bench:ready" });
}
